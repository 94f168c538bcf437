"""
`sdrrl evaluate`: several models on the same lm-eval tasks, in one process.

Tasks go to lm-eval several at a time, as their small batches would not fill up apart. After each such chunk its
results are in the folder of the model, as `lm_eval --log_samples --output_path` writes them. A run that was stopped
goes on with the tasks that no results file holds with all samples. So there may be several results files; the newest
of a task counts. One that is asked again alone is in other batches than before, which may change the last digits of
its scores, in bfloat16 more often than in float32. Under `accelerate launch` or `torchrun` each process asks its share
of the items of every task, and the first writes.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

from sdrrl_trl.engines.chat import check_template_arguments
from sdrrl_trl.engines.endpoint import hide_keys, server_key
from sdrrl_trl.evaluation.ask import ask, n_items, prepare_tasks
from sdrrl_trl.evaluation.heldout import held_out_tasks, is_held_out
from sdrrl_trl.evaluation.models import load_lm, parse_arguments, parse_gen_kwargs, processes
from sdrrl_trl.evaluation.outputs import UNFINISHED, finished_tasks, save
from sdrrl_trl.evaluation.suite import language_of, select
from sdrrl_trl.evaluation.weights import (
    base_path,
    check_between,
    check_strength,
    is_adapter,
    split_strength,
    tokenizer_path,
)
from sdrrl_trl.hub import check_server
from sdrrl_trl.languages import get_language
from sdrrl_trl.stages import check_options, recorded_options, write_options
from sdrrl_trl.transfer.publish import answered_by_another, load_manifest
from sdrrl_trl.utils import (
    SDRRLError,
    check_output_dir,
    fingerprint,
    is_first_process,
    locked,
    package_version,
    progress,
    timed,
)


CHUNK_ITEMS = 512  # so few that a killed run loses little, so many that the last batch of a chunk does not count


@dataclass
class EvaluationConfig:
    r"""
    Configuration class for [`evaluate`].

    Parameters:
        models (`list[str]`):
            Models as `name=path or hub id`, such as `base=gpt2 tuned=output/model`. Adapters are put on their base.
            `tuned=output/model@0.75` uses three quarters of what training changed; of a full model, from `base=...`.
        tasks (`list[str]`):
            Names of lm-eval tasks, groups or tags, such as `sdrrl_multilingual`; `sdrrl_heldout` stands for those on
            the held-out questions and sentences of `transfer_set`, `sdrrl_heldout_bpb` for those of this form.
        output_dir (`str`):
            Folder of the results.
        transfer_set (`str`, *optional*):
            Folder made by `sdrrl build`, for its held-out questions and its system message.
        languages (`list[str]`, *optional*):
            Only tasks about these languages.
        limit (`int`, *optional*):
            Use only the first so many items of each task.
        backend (`str`, *optional*, defaults to `"hf"`):
            How the models are run: `"hf"` with transformers, `"vllm"`, or one of lm-eval's names for servers, such as
            `"local-chat-completions"`.
        model_args (`str`, *optional*):
            Arguments for the backend, as lm-eval has them: `dtype=float32`, or for a server
            `base_url=http://localhost:8000/v1/...`.
        gen_kwargs (`str`, *optional*):
            How answers are generated, as lm-eval has it, in the place of what the tasks set: `max_gen_toks=64`.
        batch_size (`int`, *optional*, defaults to `16`):
            Items per batch.
        apply_chat_template (`bool`, *optional*, defaults to `True`):
            Ask through the model's chat template.
        skip_missing (`bool`, *optional*, defaults to `False`):
            Leave out tasks that cannot be loaded, and print which and why. Default: they are an error.
        dry_run (`bool`, *optional*, defaults to `False`):
            Check everything, and only show what would be asked and how long it may take.
    """

    models: list[str] = field(metadata={"help": "`name=path`, or `name=path@0.5`: half the change; base first."})
    tasks: list[str] = field(metadata={"help": "lm-eval tasks, groups, tags; `sdrrl_heldout`: of `transfer_set`."})
    output_dir: str = field(metadata={"help": "Folder of the results."})
    transfer_set: str | None = field(default=None, metadata={"help": "Folder made by `sdrrl build`."})
    languages: list[str] | None = field(default=None, metadata={"help": "Only tasks about these languages."})
    limit: int | None = field(default=None, metadata={"help": "Use only the first so many items of each task."})
    backend: str = field(default="hf", metadata={"help": "`hf`, `vllm`, or lm-eval's name of another backend."})
    model_args: str | None = field(default=None, metadata={"help": "lm-eval's arguments, as `dtype=float32`."})
    gen_kwargs: str | None = field(default=None, metadata={"help": "For generation, as `max_gen_toks=64`."})
    batch_size: int = field(default=16, metadata={"help": "Items per batch."})
    apply_chat_template: bool = field(default=True, metadata={"help": "Ask through the model's chat template."})
    skip_missing: bool = field(default=False, metadata={"help": "Leave out tasks that cannot be loaded."})
    dry_run: bool = field(default=False, metadata={"help": "Only show what would be asked, and the time it takes."})

    def __post_init__(self):
        for model in self.models:
            # A name becomes that of a folder, beside files of ours
            if not re.fullmatch(r"\w[\w.-]*(?<!\.json)=.+", model):
                raise SDRRLError(f"`models`: {model!r} is not of the form `name=path`, such as `tuned=output/model`.")
        if not self.models or not self.tasks:
            raise SDRRLError("`models` and `tasks` must each name at least one: there would be nothing to evaluate.")
        if len(self.model_paths) < len(self.models):
            raise SDRRLError(f"`models` names a model twice: {self.models}. Give each its own name.")
        if any(map(is_held_out, self.tasks)) and self.transfer_set is None:
            raise SDRRLError("The task `sdrrl_heldout` needs `transfer_set`, whose held-out questions it asks.")
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SDRRLError(f"`{name}` must be at least 1, got {value}.")
        self.arguments = parse_arguments(self.backend, self.model_args)
        self.generation = parse_gen_kwargs(self.backend, self.gen_kwargs)
        for model in self.model_paths.values():
            has_strength = split_strength(model)[1] is not None
            if self.backend == "hf":
                check_strength(model)
            elif has_strength:
                raise SDRRLError(
                    f"`models`: {model!r} has a strength, which only the backend `hf` knows. Write that model with "
                    "`sdrrl merge`, and name its folder."
                )
            if has_strength and not is_adapter(model) and "base" not in self.model_paths:
                raise SDRRLError(f"`models`: {model!r} needs the model that it was trained from as `base=...`.")

    @property
    def model_paths(self) -> dict[str, str]:
        return dict(model.split("=", 1) for model in self.models)


def evaluate(config: EvaluationConfig) -> Path:
    """
    Evaluates all models on all tasks, or goes on where an interrupted run stopped.

    Returns:
        `Path`: `output_dir`, with lm-eval's `results_<date>.json` and `samples_<task>_<date>.jsonl` in a folder for
            each model.

    Raises:
        `SDRRLError`: for unknown tasks, missing models and the like, before any model is loaded.
    """
    folder = Path(config.output_dir)
    # All that can be wrong is found before a model is loaded
    check_output_dir(folder, needed_bytes=100_000_000)
    if url := config.arguments.get("base_url"):
        check_server(url)
    if config.backend != "hf" and (key := server_key()):
        os.environ["OPENAI_API_KEY"] = key  # without the end of its line, for lm-eval reads it itself
    if config.backend == "hf":
        from sdrrl_trl.engines.transformers import check_model, load_tokenizer

        arguments = config.arguments
        of_template = {*arguments.get("chat_template_args", ()), *({"enable_thinking"} & arguments.keys())}
        for path in config.model_paths.values():
            check_model(base_path(path), config.apply_chat_template)
            if of_template:
                check_template_arguments(load_tokenizer(tokenizer_path(path)), path, sorted(of_template))
            if split_strength(path)[1] is not None:
                check_between(path, base_path(path) if is_adapter(path) else config.model_paths["base"])
    transfer_set = load_manifest(Path(config.transfer_set)) if config.transfer_set else None
    # What a server calls a model is no path, even if it looks like one
    known_by = _fingerprint if config.backend in ("hf", "vllm") else str
    options, models = _options(config, transfer_set), {n: known_by(path) for n, path in config.model_paths.items()}
    tasks = load_benchmarks(config) | load_held_out_tasks(config)
    likelihoods = [name for name, task in tasks.items() if task.get_config("output_type") != "generate_until"]
    if likelihoods and "chat-completions" in config.backend:
        raise SDRRLError(
            f"A chat server tells no likelihoods, which {', '.join(likelihoods)} need. Leave these out, or use "
            "`local-completions`."
        )
    # Models and tasks may come later; those that are there already must still be the same
    now = {"models": models, "data": {name: _hash_of_data(task, config.limit) for name, task in tasks.items()}}
    recorded = recorded_options(folder, "evaluate") or now
    together = {part: recorded[part] | now[part] for part in now}
    compared = {part: {name: together[part][name] for name in recorded[part]} for part in now}
    check_options(folder, options | compared, "evaluate")
    first = next(iter(models.values()))  # the base, if there are several
    if transfer_set and len(models) > 1 and is_first_process():
        if warning := answered_by_another(transfer_set, first):
            print(f"evaluate: {warning}", file=sys.stderr, flush=True)
    system_prompt = options["system_prompt"]
    if config.dry_run:
        from sdrrl_trl.plan import plan_evaluation

        print(plan_evaluation(config.model_paths, tasks, config, system_prompt))
        return folder
    state = processes()
    # One process locks, records and writes; the others only ask
    with locked(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            results = [f"{name}/{kind}_*.json*" for name in together["models"] for kind in ("results", "samples")]
            write_options(folder, options | together, "evaluate", ("timings.json", *results))
            for left in folder.glob(f"*/{UNFINISHED}*"):  # by a run that was killed while it wrote
                shutil.rmtree(left)
        state.wait_for_everyone()
        with timed(folder / "timings.json", "evaluate") if state.is_main_process else nullcontext():
            _run(config, tasks, system_prompt)
    state.wait_for_everyone()
    return folder


def _fingerprint(model: str) -> str:
    path, strength = split_strength(model)
    return fingerprint(path) + (f"@{strength}" if strength is not None else "")


def _hash_of_data(task: Any, limit: int | None) -> str:
    """Tells other data of a task, by which two models could not be compared. Of images and the like, only the kind."""
    digest = hashlib.sha256()
    for doc in islice(task.eval_docs, limit):
        digest.update(json.dumps(doc, sort_keys=True, default=lambda value: type(value).__name__).encode())
    return digest.hexdigest()[:16]


def _options(config: EvaluationConfig, transfer_set: dict[str, Any] | None) -> dict[str, Any]:
    """What the results depend on, beside the models."""
    names = ("limit", "backend", "model_args", "gen_kwargs", "apply_chat_template")
    options = {name: getattr(config, name) for name in names}
    # How answers are scored is in the environment. Without addresses, which may hold a key
    names = ("SDRRL_JUDGE", "SDRRL_JUDGE_MODEL", "SDRRL_FLORES_REPO")
    options["environment"] = {name: os.environ[name] for name in names if name in os.environ}
    # Of the transfer set, what is before each question; its held-out rows are known by their hash, as other data
    options["system_prompt"] = transfer_set["options"]["system_prompt"] if transfer_set else None
    if any(map(is_held_out, config.tasks)) and "test.parquet" not in transfer_set["sha256"]:
        raise SDRRLError(f"{config.transfer_set} holds no questions out. Build it with a `test_size` above 0.")
    return options


def load_benchmarks(config: EvaluationConfig) -> dict[str, Any]:
    """The tasks of a configuration that are not about a transfer set."""
    names = [name for name in config.tasks if not is_held_out(name)]
    return select(names, config.languages, config.skip_missing, are_all=len(names) == len(config.tasks))


def load_held_out_tasks(config: EvaluationConfig) -> dict[str, Any]:
    """
    The tasks of a configuration that are made of its transfer set.

    Raises:
        `SDRRLError`: for a name without a task there, in the languages of the configuration.
    """
    tasks: dict[str, Any] = {}
    if not (names := list(filter(is_held_out, config.tasks))):
        return tasks
    wanted = {get_language(language).tag for language in config.languages or ()}
    # Made here and now: their data are a file of the user's
    held_out = held_out_tasks(Path(config.transfer_set))
    for name in names:
        asked = [task for task in held_out if not wanted or language_of(task) in wanted]
        found = {task: held_out[task] for task in asked if f"{task}_".startswith(f"{name}_")}
        if not found:
            where = f" in {', '.join(sorted(wanted))}" if wanted else ""
            raise SDRRLError(f"Unknown task {name!r}{where}. Of this transfer set there are: {', '.join(held_out)}.")
        tasks |= found
    return tasks


def _run(config: EvaluationConfig, tasks: dict[str, Any], system_prompt: str | None) -> None:
    """Evaluates what is not finished, chunk by chunk."""
    from sdrrl_trl.plan import plan_evaluation

    folder, state = Path(config.output_dir), processes()
    left = {name: set(tasks) - finished_tasks(folder / name) for name in config.model_paths}
    state.wait_for_everyone()  # before the first result is written, so that all see the same
    prepare_tasks(tasks, config.limit, state.num_processes, config.generation)
    if state.is_main_process and all(names == set(tasks) for names in left.values()):
        print(plan_evaluation(config.model_paths, tasks, config, system_prompt), file=sys.stderr, flush=True)

    def chunk_by_chunk() -> Iterator[tuple[int, None]]:
        paths = config.model_paths
        for name in filter(left.get, paths):
            lm = load_lm(paths[name], config.backend, config.arguments, config.batch_size, paths.get("base"))
            # Cut once, so that a run that was interrupted asks in much the same batches as one that was not
            for chunk in chunks(tasks, config.limit):
                if todo := {task: tasks[task] for task in chunk if task in left[name]}:
                    _ask_and_save(name, lm, todo, config, system_prompt)
                    yield len(todo), None
            del lm  # before the next one is loaded: there may be no room for two

    total = len(tasks) * len(left)
    done = total - sum(map(len, left.values()))
    for _ in progress(chunk_by_chunk(), total, "evaluate", "model × task", done=done):
        pass


def chunks(tasks: dict[str, Any], limit: int | None) -> list[list[str]]:
    """Cuts the names of tasks where another `CHUNK_ITEMS` items are full."""
    items = accumulate(n_items(task, limit) for task in tasks.values())
    cut = groupby(zip(tasks, items, strict=True), key=lambda task: task[1] // CHUNK_ITEMS)
    return [[name for name, _ in chunk] for _, chunk in cut]


def _ask_and_save(
    name: str, lm: Any, tasks: dict[str, Any], config: EvaluationConfig, system_prompt: str | None
) -> None:
    """Asks a model tasks; the first process writes the results."""
    started = time.time()
    try:
        results, found_nan = ask(lm, tasks, config.limit, config.apply_chat_template, system_prompt)
    except Exception as error:
        if config.backend == "hf":
            raise
        raise SDRRLError(  # lm-eval hands on what any library raises, after three attempts
            f"The backend {config.backend!r} failed at the model {name!r}, asked {', '.join(tasks)} "
            f"({type(error).__name__}: {hide_keys(str(error))}). What was finished is kept: the same "
            "command goes on."
        ) from error
    if found_nan:
        raise SDRRLError(
            f"The logits of the model {name!r} are NaN on one of {', '.join(tasks)}. It knows no answers, but lm-eval "
            "would count its first choices as such. Its training may have diverged, or the data type be too narrow: "
            "try `--model_args dtype=float32`, or leave the model out."
        )
    if not results:  # in all processes but the first
        return
    path = config.model_paths[name]
    model_args = {"pretrained": base_path(path), "peft": path} if is_adapter(path) else {"pretrained": path}
    # What `lm_eval.simple_evaluate` notes beside the results
    results["config"] = {"model": config.backend, "model_args": model_args | config.arguments}
    results["config"] |= {"gen_kwargs": config.generation or None, "limit": config.limit}
    results["date"] = started
    results |= {f"{package}_version": package_version(package) for package in ("lm_eval", "transformers")}
    template = lm.chat_template(True) if config.apply_chat_template else None
    about = {"model_source": config.backend, "model_args": model_args, "system_instruction": system_prompt}
    about |= {"chat_template": template, "fewshot_as_multiturn": False}
    save(Path(config.output_dir) / name, results, about)
