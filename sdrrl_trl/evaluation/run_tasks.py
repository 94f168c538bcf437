"""
Asks every model every task that has no result file yet, and writes one file for each model and task.

Tasks go to lm-eval several at a time, as their small batches would not fill up apart; results are written after each
such chunk. The prompts of a task are made once for all models with the same chat template.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrrl_trl.evaluation.models import loaded_models, processes, watch_for_nan
from sdrrl_trl.evaluation.suite import HARMFUL
from sdrrl_trl.utils import SDRRLError, package_version, progress, read_json, sha256, timed, write_json


if TYPE_CHECKING:
    from sdrrl_trl.evaluation.evaluate import EvaluationConfig

RESULT_KEYS = ("metrics", "higher_is_better", "signature", "samples")
CHUNK_ITEMS = 512  # so few that a killed run loses little, so many that the last batch of a chunk does not count


def run_tasks(config: "EvaluationConfig", tasks: dict[str, Any], system_prompt: str | None) -> None:
    """
    Evaluates what has no result file yet.

    Args:
        config ([`EvaluationConfig`]):
            Models and options.
        tasks (`dict[str, Any]`):
            lm-eval task objects by name.
        system_prompt (`str`, *optional*):
            Asked before every question.
    """
    from accelerate.utils import gather_object

    folder = Path(config.output_dir)
    pending = {
        name: [task for task in tasks if not is_complete(folder / name / f"{task}.json")]
        for name in config.model_paths
    }
    state = processes()
    state.wait_for_everyone()  # before the first result is written, so that all see the same
    prepare_tasks(tasks, config.limit, state.num_processes)
    made_with: dict[str, Any] = {}
    total = len(tasks) * len(pending)
    done = total - sum(map(len, pending.values()))
    # Cut once, so that a run that was interrupted asks in much the same batches as one that was not
    cut = chunks(list(tasks), tasks, config.limit)
    units = (
        (len(left), (name, lm, left))
        for name, lm in loaded_models(config, [name for name in pending if pending[name]])
        for chunk in cut
        if (left := [task for task in chunk if task in pending[name]])
    )
    with timed(folder / "timings.json", "evaluate") if state.is_main_process else nullcontext():
        for name, lm, chunk in progress(units, total, "evaluate", "model × task", done=done):
            chosen = {task: tasks[task] for task in chunk}
            with watch_for_nan(lm.model) if config.backend == "hf" else nullcontext(False) as found_nan:
                results = _evaluate_tasks(lm, chosen, config, system_prompt, made_with)
            if any(gather_object([bool(found_nan)])):
                raise SDRRLError(
                    f"The logits of the model {name!r} are NaN on one of {', '.join(chunk)}. It knows no answers, but "
                    "lm-eval would count its first choices as such. Its training may have diverged, or "
                    f"`dtype={config.dtype}` be too narrow: try `float32`, or leave the model out."
                )
            for task, result in results.items():
                write_json(folder / name / f"{task}.json", result)


def prepare_tasks(tasks: dict[str, Any], limit: int | None, n_processes: int) -> None:
    """
    What `lm_eval.simple_evaluate` does before it evaluates; that would also reset the random state and call git.

    Raises:
        `SDRRLError`: for a task with fewer items than there are processes.
    """
    for name, task in tasks.items():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        if (n_items := n_items_of(task, limit)) < n_processes:
            raise SDRRLError(
                f"{name} has {n_items} items for {n_processes} processes, and lm-eval cannot leave one without any: "
                "it would wait for ever. Use fewer processes, raise `limit`, or leave the task out."
            )


def is_complete(file: Path) -> bool:
    """Whether there is a result that can be read; a damaged one is made again."""
    try:
        read_json(file, RESULT_KEYS)
    except SDRRLError:
        return False
    return True


def n_items_of(task: Any, limit: int | None) -> int:
    """How many items of a task are asked."""
    return len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))


def chunks(names: list[str], tasks: dict[str, Any], limit: int | None) -> list[list[str]]:
    """Cuts a list of tasks after at most `CHUNK_ITEMS` items; a task with more is a chunk of its own."""
    cut: list[list[str]] = []
    n = 0
    for name in names:
        size = n_items_of(tasks[name], limit)
        if not cut or n + size > CHUNK_ITEMS:
            cut.append([])
            n = 0
        cut[-1].append(name)
        n += size
    return cut


def _evaluate_tasks(
    lm: Any, tasks: dict[str, Any], config: "EvaluationConfig", system_prompt: str | None, made_with: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """
    Results by task in the first process, nothing in the others. `made_with` notes what the requests of a task were
    made with: the chat template and the special tokens that it may write.
    """
    from lm_eval.evaluator import evaluate as lm_evaluate

    template, prompts = "the backend's", None
    if config.backend == "hf":
        prompts = lm.tokenizer.chat_template, lm.tokenizer.special_tokens_map
        template = sha256(lm.tokenizer.chat_template or "")[:8]
    for name, task in tasks.items():
        task.set_fewshot_seed(seed=1234)
        if prompts is not None and made_with.get(name) == prompts:
            _keep_requests(task)
        else:
            vars(task).pop("build_all_requests", None)  # lm-eval makes them
            made_with[name] = prompts
    results = lm_evaluate(
        lm,
        {"tasks": tasks},
        limit=config.limit,
        bootstrap_iters=0,
        apply_chat_template=config.apply_chat_template,
        system_instruction=system_prompt,
    )
    asked = {"limit": config.limit, "chat_template": template if config.apply_chat_template else None}
    asked |= {"dtype": config.dtype, "lm_eval": package_version("lm_eval")}
    return {name: _result(name, results, asked) for name in tasks} if results else {}


def _keep_requests(task: Any) -> None:
    """Has a task asked with the requests that it has, which lm-eval would make anew for each model."""
    for request in task.instances:
        request.resps, request.filtered_resps = [], {}  # the answers of the model before
    task.build_all_requests = lambda **options: None


def _result(name: str, results: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Content of a result file."""
    filters = {sample["filter"] for sample in results["samples"][name]}
    metrics, items, samples = {}, {}, {}
    for key, value in results["results"][name].items():
        metric, _, filtered = key.partition(",")
        if filtered in filters and isinstance(value, int | float) and not metric.endswith("_stderr"):
            label = metric if len(filters) == 1 else key
            metrics[label], items[label] = value, (metric, filtered)
    for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"]):
        scores = {label: sample[metric] for label, (metric, by) in items.items() if by == sample["filter"]}
        samples.setdefault(sample["doc_id"], _plain(sample, name)).update(scores)
    judge = {key: value for key, value in environment().items() if key.startswith("SDRRL_JUDGE")}
    return {
        "task": name,
        "metrics": metrics,
        "higher_is_better": {
            label: results["higher_is_better"][name].get(metric) for label, (metric, _) in items.items()
        },
        "signature": {
            "version": results["versions"][name],
            "shots": results["n-shot"][name],
            **asked,
            **(judge if "judge" in filters else {}),
        },
        "samples": list(samples.values()),
    }


def environment() -> dict[str, str]:
    """What the environment says of how answers are scored, without keys."""
    prefixes = ("SDRRL_JUDGE", "SDRRL_SPBLEU", "SDRRL_FLORES_REPO")
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefixes) and "KEY" not in key}


def _plain(sample: dict[str, Any], task: str) -> dict[str, Any]:
    """What is kept of an item."""
    response = sample["resps"][0][0]
    return {
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "prompt": sample["arguments"][0][0],
        "target": sample["target"],
        "response": response,
        # for `sdrrl judge`, which must not see the chat template
        **({"question": sample["doc"]["prompt"]} if task.startswith(HARMFUL) else {}),
    }
