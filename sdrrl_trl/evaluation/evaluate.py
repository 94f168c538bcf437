"""`sdrrl evaluate`: several models on the same lm-eval tasks, in one process, each model and task kept when done."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.models import base_of, processes
from sdrrl_trl.evaluation.run_tasks import RESULT_KEYS, environment, run_tasks
from sdrrl_trl.evaluation.suite import HARMFUL, Selection, language_of, select
from sdrrl_trl.evaluation.tasks import ask_whole_conversation, held_out_tasks
from sdrrl_trl.languages import get_language
from sdrrl_trl.stages import check_options, clear_stage, recorded_options, write_options
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import SDRRLError, check_output_dir, fingerprint, locked, read_json, write_json


HELD_OUT = "sdrrl_heldout"


@dataclass
class EvaluationConfig:
    r"""
    Configuration class for [`evaluate`].

    Parameters:
        models (`list[str]`):
            Models as `name=path or hub id`, such as `base=gpt2 tuned=output/model`. Adapters are put on their base.
        tasks (`list[str]`):
            Names of lm-eval tasks, groups or tags, such as `sdrrl_multilingual`; `sdrrl_heldout` stands for the
            held-out questions of `transfer_set`.
        output_dir (`str`):
            Folder of the results.
        transfer_set (`str`, *optional*):
            Folder made by `sdrrl build`.
        languages (`list[str]`, *optional*):
            Only tasks about these languages.
        source_language (`str`, *optional*):
            Language whose loss the report tells from the gain in the others. Default: that of `transfer_set`; if there
            is none either, all languages count as targets.
        limit (`int`, *optional*):
            Use only the first so many items of each task.
        backend (`str`, *optional*, defaults to `"hf"`):
            How the models are run: `"hf"` with transformers, `"vllm"`, or one of lm-eval's names for servers, such as
            `"local-chat-completions"`.
        model_args (`str`, *optional*):
            More for another backend than `"hf"`, as lm-eval has it: `base_url=http://localhost:8000/v1/...`.
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
    tasks: list[str] = field(metadata={"help": "lm-eval tasks, groups or tags; `sdrrl_heldout`: held-out questions."})
    output_dir: str = field(metadata={"help": "Folder of the results."})
    transfer_set: str | None = field(default=None, metadata={"help": "Folder made by `sdrrl build`."})
    languages: list[str] | None = field(default=None, metadata={"help": "Only tasks about these languages."})
    source_language: str | None = field(
        default=None, metadata={"help": "Language that must not be lost. Default: that of the transfer set."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many items of each task."})
    backend: str = field(default="hf", metadata={"help": "`hf`, `vllm`, or lm-eval's name of another backend."})
    model_args: str | None = field(default=None, metadata={"help": "lm-eval's options of another backend."})
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
        if self.source_language is not None:
            self.source_language = get_language(self.source_language).tag
        for name in ("limit", "batch_size", "max_gen_toks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SDRRLError(f"`{name}` must be at least 1, got {value}.")

    @property
    def model_paths(self) -> dict[str, str]:
        return dict(model.split("=", 1) for model in self.models)


def evaluate(config: EvaluationConfig) -> Path:
    """
    Evaluates all models on all tasks, or goes on where an interrupted run stopped. Under `accelerate launch` each
    process takes its share of the items.

    Returns:
        `Path`: `output_dir`, with `<model>/<task>.json` (scores, samples, signature) and `manifest.json`.

    Raises:
        `SDRRLError`: for unknown tasks, missing models and the like, before any model is loaded.
    """
    folder = Path(config.output_dir)
    check_output_dir(folder, needed_bytes=100_000_000)
    fingerprints = {name: fingerprint(path) for name, path in config.model_paths.items()}
    if config.backend == "hf":
        from sdrrl_trl.engines.transformers import check_model

        for path in config.model_paths.values():
            check_model(base_of(path), config.apply_chat_template)
    names = ("limit", "dtype", "max_gen_toks", "apply_chat_template", "backend", "model_args")
    options = {name: getattr(config, name) for name in names} | {"environment": environment()}
    # Models may come later; one that is there already must still be the same
    known = {} if config.overwrite_stage else (recorded_options(folder, "evaluate") or {}).get("models", {})
    options["models"] = {name: fingerprints.get(name, known[name]) for name in known} or fingerprints
    system_prompt, source_language = None, config.source_language
    if config.transfer_set:
        manifest = load_manifest(Path(config.transfer_set))
        system_prompt = manifest["options"]["system_prompt"]
        source_language = source_language or manifest["options"]["source_language"]
        options["held_out"] = manifest["sha256"].get("test.parquet")
        if HELD_OUT in config.tasks and options["held_out"] is None:
            raise SDRRLError(f"{config.transfer_set} holds no questions out. Build it with a `test_size` above 0.")
    if not config.overwrite_stage:
        check_options(folder, options, "evaluate")

    selection = select_tasks(config)
    state = processes()
    with locked(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            if config.overwrite_stage:
                clear_stage(folder, "evaluate")
            options["models"] |= fingerprints
            write_options(folder, options, "evaluate")
        state.wait_for_everyone()
        run_tasks(config, selection.tasks, system_prompt)
        if state.is_main_process:
            manifest = {
                "models": config.model_paths,
                "tasks": sorted(selection.tasks),
                "languages": selection.languages,
                "groups": selection.groups,
                "harmful": [task for task in selection.tasks if task.startswith(HARMFUL)],
                "source_language": source_language,
            }
            write_json(folder / "manifest.json", manifest | {"options": options})
    state.wait_for_everyone()
    return folder


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
    results: dict[str, dict[str, dict[str, Any]]] = {model: {} for model in manifest["models"]}
    broken = []
    for model, by_task in results.items():
        for task in manifest["tasks"]:
            file = folder / model / f"{task}.json"
            try:
                by_task[task] = read_json(file, RESULT_KEYS)
            except SDRRLError:
                broken.append(str(file))
    if broken:
        raise SDRRLError(
            f"{len(broken)} results are missing or damaged: {', '.join(broken[:5])}. Without them the models were not "
            "asked the same. Run the same `sdrrl evaluate` command again: it makes these anew and keeps the others."
        )
    return results


def select_tasks(config: EvaluationConfig) -> Selection:
    """
    Loads the tasks of a configuration, with their data.

    Raises:
        `SDRRLError`: for unknown tasks or languages, and for data that are not here.
    """
    selection = select([name for name in config.tasks if name != HELD_OUT], config.languages)
    if HELD_OUT in config.tasks and config.transfer_set is not None:
        held_out = held_out_tasks(Path(config.transfer_set), config.max_gen_toks)
        wanted = {get_language(language).tag for language in config.languages or ()}
        held_out = {name: task for name, task in held_out.items() if not wanted or language_of(name) in wanted}
        loaded = selection.manager.load(list(held_out.values()))["tasks"]
        selection.tasks |= {name: ask_whole_conversation(task) for name, task in loaded.items()}
        selection.languages |= {name: language_of(name) for name in held_out}
    return selection
