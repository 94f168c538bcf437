"""`sdrrl evaluate`: several models on the same lm-eval tasks, in one process, each model and task kept when done."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.tasks import held_out_tasks, tasks_dir
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.transfer.store import check_options, clear_stage, record_options
from sdrrl_trl.utils import (
    SDRRLError,
    check_output_dir,
    fingerprint,
    locked,
    package_version,
    progress,
    read_json,
    sha256,
    timed,
    write_json,
)


HELD_OUT = "sdrrl_heldout"
_RESULT_KEYS = ("metrics", "higher_is_better", "signature", "samples")


@dataclass
class EvaluationConfig:
    r"""
    Configuration class for [`evaluate`].

    Parameters:
        models (`list[str]`):
            Models as `name=path or hub id`, such as `base=gpt2 tuned=output/model`. Adapters are put on their base.
        tasks (`list[str]`):
            Names of lm-eval tasks; `sdrrl_heldout` stands for the held-out questions of `transfer_set`.
        output_dir (`str`):
            Folder of the results.
        transfer_set (`str`, *optional*):
            Folder made by `sdrrl build`.
        limit (`int`, *optional*):
            Use only the first so many items of each task.
        batch_size (`int`, *optional*, defaults to `16`):
            Items per batch.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        max_gen_toks (`int`, *optional*, defaults to `512`):
            Longest answer to a held-out question, in tokens.
        apply_chat_template (`bool`, *optional*, defaults to `True`):
            Ask through the model's chat template.
        overwrite_stage (`str`, *optional*):
            `"evaluate"` throws away the results in `output_dir`.
    """

    models: list[str] = field(metadata={"help": "Models as `name=path or hub id`."})
    tasks: list[str] = field(metadata={"help": "Names of lm-eval tasks; `sdrrl_heldout`: the held-out questions."})
    output_dir: str = field(metadata={"help": "Folder of the results."})
    transfer_set: str | None = field(default=None, metadata={"help": "Folder made by `sdrrl build`."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many items of each task."})
    batch_size: int = field(default=16, metadata={"help": "Items per batch."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    max_gen_toks: int = field(default=512, metadata={"help": "Longest answer to a held-out question, in tokens."})
    apply_chat_template: bool = field(default=True, metadata={"help": "Ask through the model's chat template."})
    overwrite_stage: str | None = field(
        default=None, metadata={"help": "`evaluate` throws away the results.", "choices": ["evaluate"]}
    )

    def __post_init__(self):
        for model in self.models:
            name, _, path = model.partition("=")
            if not path or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise SDRRLError(f"`models`: {model!r} is not of the form `name=path`, such as `tuned=output/model`.")
        if not self.models or not self.tasks:
            raise SDRRLError("`models` and `tasks` must each name at least one: there would be nothing to evaluate.")
        if len(self.model_paths) < len(self.models):
            raise SDRRLError(f"`models` names a model twice: {self.models}. Give each its own name.")
        if HELD_OUT in self.tasks and self.transfer_set is None:
            raise SDRRLError(f"The task `{HELD_OUT}` needs `transfer_set`, whose held-out questions it asks.")
        for name in ("limit", "batch_size", "max_gen_toks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SDRRLError(f"`{name}` must be at least 1, got {value}.")

    @property
    def model_paths(self) -> dict[str, str]:
        return dict(model.split("=", 1) for model in self.models)


def evaluate(config: EvaluationConfig) -> Path:
    """
    Evaluates all models on all tasks, or goes on where an interrupted run stopped.

    Returns:
        `Path`: `output_dir`, with `<model>/<task>.json` (scores, samples, signature) and `manifest.json`.

    Raises:
        `SDRRLError`: for unknown tasks, missing models and the like, before any model is loaded.
    """
    folder = Path(config.output_dir)
    check_output_dir(folder, needed_bytes=100_000_000)
    fingerprints = {name: fingerprint(path) for name, path in config.model_paths.items()}
    from sdrrl_trl.engines.transformers import check_model

    for path in config.model_paths.values():
        check_model(_base_of(path), config.apply_chat_template)
    names = ("limit", "dtype", "max_gen_toks", "apply_chat_template", "batch_size")
    options = {name: getattr(config, name) for name in names} | {"models": fingerprints}
    system_prompt = source_language = None
    if config.transfer_set:
        manifest = load_manifest(Path(config.transfer_set))
        system_prompt, source_language = (manifest["options"][key] for key in ("system_prompt", "source_language"))
        options["held_out"] = manifest["sha256"].get("test.parquet")
        if HELD_OUT in config.tasks and options["held_out"] is None:
            raise SDRRLError(f"{config.transfer_set} holds no questions out. Build it with a `test_size` above 0.")
    if not config.overwrite_stage:
        check_options(folder, options, "evaluate")

    manager = task_manager()
    tasks = _load_tasks(config, manager)
    with locked(folder):
        if config.overwrite_stage:
            clear_stage(folder, "evaluate")
        record_options(folder, options, "evaluate")
        _run_tasks(config, tasks, manager, system_prompt)
        manifest = {"models": config.model_paths, "tasks": sorted(tasks), "source_language": source_language}
        write_json(folder / "manifest.json", manifest | {"options": options})
    return folder


def _run_tasks(config: EvaluationConfig, tasks: dict[str, Any], manager: Any, system_prompt: str | None) -> None:
    """Evaluates what has no result file yet."""
    folder = Path(config.output_dir)
    pending = {
        name: [task for task in tasks if not (folder / name / f"{task}.json").exists()] for name in config.model_paths
    }
    total = len(tasks) * len(pending)
    units = _units(config, pending)
    done = total - sum(map(len, pending.values()))
    with timed(folder / "timings.json", "evaluate"):
        for name, task, lm in progress(((1, unit) for unit in units), total, "evaluate", "model × task", done=done):
            write_json(folder / name / f"{task}.json", _evaluate_task(lm, tasks[task], manager, config, system_prompt))


def load_evaluation(folder: Path) -> dict[str, Any]:
    """
    Manifest of a finished evaluation: models, tasks, source language, options.

    Raises:
        `SDRRLError`: if the evaluation is not complete.
    """
    if not (folder / "manifest.json").exists():
        raise SDRRLError(f"{folder} holds no finished evaluation. Run `sdrrl evaluate` (again) first.")
    return read_json(folder / "manifest.json", expect=("models", "tasks", "source_language"))


def load_results(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """
    Results by model and task.

    Raises:
        `SDRRLError`: if the evaluation is not complete.
    """
    manifest = load_evaluation(folder)
    return {
        model: {task: read_json(folder / model / f"{task}.json", _RESULT_KEYS) for task in manifest["tasks"]}
        for model in manifest["models"]
    }


def task_manager() -> Any:
    """lm-eval's task manager with our tasks only: indexing lm-eval's own takes seconds."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tasks_dir()), include_defaults=False)


def load_benchmarks(names: list[str], manager: Any) -> dict[str, Any]:
    """
    lm-eval task objects by name. Loading them loads their data.

    Raises:
        `SDRRLError`: for an unknown task, or one whose data are not there.
    """
    for name in names:
        if name not in manager.all_tasks:
            raise SDRRLError(
                f"Unknown task {name!r}. Known: {', '.join([HELD_OUT, *manager.all_tasks])}. "
                "For tasks of lm-eval itself use the `lm_eval` command."
            )
    try:
        return manager.load(names)["tasks"]
    except (OSError, ValueError) as error:
        raise SDRRLError(
            f"Cannot load the data of a task: {error}. Set `SDRRL_DATA_DIR` to a folder that holds them, or "
            "connect to the network."
        ) from error


def _load_tasks(config: EvaluationConfig, manager: Any) -> dict[str, Any]:
    tasks = load_benchmarks([name for name in config.tasks if name != HELD_OUT], manager)
    if HELD_OUT in config.tasks:
        held_out = held_out_tasks(Path(config.transfer_set), config.max_gen_toks)
        tasks |= manager.load(list(held_out.values()))["tasks"]
    return tasks


def _units(config: EvaluationConfig, pending: dict[str, list[str]]) -> Iterator[tuple[str, str, Any]]:
    """Goes through what is still to do as `(model name, task name, lm-eval model)`, each base model loaded once."""
    by_base: dict[str, list[tuple[str, str]]] = {}
    for name, path in config.model_paths.items():
        if pending[name]:
            by_base.setdefault(_base_of(path), []).append((name, path))
    for base_path, models in by_base.items():
        from lm_eval.models.huggingface import HFLM
        from peft import PeftModel

        from sdrrl_trl.engines.transformers import load_model, load_tokenizer

        base, base_tokenizer = load_model(base_path, dtype=config.dtype)
        for name, path in sorted(models, key=lambda model: model[1] != base_path):  # the bare model first
            model = base if path == base_path else PeftModel.from_pretrained(base, path)
            own = (Path(path) / "tokenizer_config.json").exists()
            tokenizer = load_tokenizer(path) if own else copy.deepcopy(base_tokenizer)
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size)
            for task in pending[name]:
                yield name, task, lm
            base = base if path == base_path else model.unload()


def _evaluate_task(lm: Any, task: Any, manager: Any, config: EvaluationConfig, system_prompt: str | None) -> dict:
    from lm_eval.evaluator import evaluate as lm_evaluate

    # As `lm_eval.simple_evaluate` does; that would also reset the random state and call git
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(seed=1234)
    result = lm_evaluate(
        lm,
        manager.load([task]),
        limit=config.limit,
        bootstrap_iters=0,
        apply_chat_template=config.apply_chat_template,
        system_instruction=system_prompt,
    )
    name = task.task_name
    metrics = {key.split(",")[0]: value for key, value in result["results"][name].items() if key.endswith(",none")}
    metrics = {key: value for key, value in metrics.items() if not key.endswith("_stderr")}
    samples = [
        {
            "doc_id": sample["doc_id"],
            "doc_hash": sample["doc_hash"],
            "prompt": sample["arguments"][0][0],
            "target": sample["target"],
            "response": sample["filtered_resps"][0],
            **{metric: sample[metric] for metric in metrics},
        }
        for sample in result["samples"][name]
    ]
    return {
        "task": name,
        "metrics": metrics,
        "higher_is_better": result["higher_is_better"][name],
        "signature": {
            "version": result["versions"][name],
            "shots": result["n-shot"][name],
            "limit": config.limit,
            "chat_template": sha256(lm.tokenizer.chat_template)[:8] if config.apply_chat_template else None,
            "dtype": config.dtype,
            "lm_eval": package_version("lm_eval"),
        },
        "samples": samples,
    }


def _base_of(path: str) -> str:
    adapter = Path(path) / "adapter_config.json"
    return read_json(adapter, ("base_model_name_or_path",))["base_model_name_or_path"] if adapter.exists() else path
