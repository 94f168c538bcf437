"""
The files of lm-eval, `results_<date>.json` and `samples_<task>_<date>.jsonl`: written as `lm_eval --log_samples
--output_path` writes them, and read again, whoever wrote them.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdrrl_trl.tasks.judge import first
from sdrrl_trl.utils import SDRRLError, read_json


@dataclass(frozen=True)
class Item:
    """
    One item of a task.

    Args:
        doc_id (`int`): Its number in the task's data.
        asked (`tuple[str, str]`): lm-eval's hashes of its data and of its prompt.
        prompt (`str`): What the model read.
        target (`str`): The right answer.
        response (`str`, *optional*): What the model wrote, if it wrote.
        scores (`dict[str, Any]`): Its score in each metric; for corpus metrics, what the score is computed from.
    """

    doc_id: int
    asked: tuple[str, str]
    prompt: str
    target: str
    response: str | None
    scores: dict[str, Any]


@dataclass(frozen=True)
class TaskResult:
    """
    What is known of one task.

    Args:
        metrics (`dict[str, float]`): Score in each metric, `nan` if there is none. The name of a metric has that of
            its filter behind a comma, if the task has several.
        higher_is_better (`dict[str, bool | None]`): Direction of each metric.
        signature (`dict[str, Any]`): How the task was run: models are compared only if it is the same.
        items (`list[Item]`): The items in the order of `doc_id`.
        file (`Path`): Where they were read from.
    """

    metrics: dict[str, float]
    higher_is_better: dict[str, bool | None]
    signature: dict[str, Any]
    items: list[Item]
    file: Path


@dataclass(frozen=True)
class Output:
    """
    All results of one model.

    Args:
        model (`str`): Path or hub id of the model, or of its adapter.
        tasks (`dict[str, TaskResult]`): Results by task.
    """

    model: str
    tasks: dict[str, TaskResult]


def save(folder: Path, results: dict[str, Any], about: dict[str, Any]) -> int:
    """
    Writes results as lm-eval does.

    Args:
        folder (`Path`):
            Folder of the model.
        results (`dict[str, Any]`):
            What lm-eval's `evaluate` returns, and the `config` that its `simple_evaluate` adds.
        about (`dict[str, Any]`):
            Arguments of lm-eval's `log_experiment_args`: model, system message, chat template.

    Returns:
        `int`: how many numbers were NaN or infinite. JSON has none such, so they are written as null.

    Raises:
        `SDRRLError`: if lm-eval could not write.
    """
    from lm_eval.loggers import EvaluationTracker

    folder.mkdir(parents=True, exist_ok=True)
    results, n_lost = without_nan(results)
    samples = results.pop("samples")
    with TemporaryDirectory(prefix=".unfinished-", dir=folder) as temporary:
        tracker = EvaluationTracker(output_path=temporary)
        tracker.general_config_tracker.log_experiment_args(**about)
        tracker.save_results_aggregated(results, samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task, rows)
        written = sorted(Path(temporary).rglob("*_*.json*"), reverse=True)
        if len(written) <= len(samples):  # lm-eval only logs its errors
            raise SDRRLError(f"lm-eval could not write its results into {folder}. Is the disk full?")
        # The samples first: a results file says that they are there. A kill in between leaves some that nobody reads
        for file in written:
            file.rename(folder / file.name)
    return n_lost


def without_nan(value: Any) -> tuple[Any, int]:
    """A copy with null for NaN and infinite numbers, and how many there were."""
    if isinstance(value, float):
        return (value, 0) if math.isfinite(value) else (None, 1)
    if isinstance(value, dict):
        pairs = {key: without_nan(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, sum(n for _, n in pairs.values())
    if isinstance(value, list | tuple):
        pairs = [without_nan(item) for item in value]
        return [item for item, _ in pairs], sum(n for _, n in pairs)
    return value, 0


def load(folder: Path) -> Output:
    """
    Reads what lm-eval, or [`evaluate`], left of one model. A folder may hold several results files: for each task the
    newest counts.

    Args:
        folder (`Path`):
            Folder given to `lm_eval` as `--output_path`, the model's folder in it, or one results file.

    Raises:
        `SDRRLError`: if there are no results, or those of several models; for missing and damaged files.
    """
    newest = _newest(folder)
    models = {str(content["model_name"]) for _, content in newest.values()}
    if len(models) > 1:
        raise SDRRLError(f"{folder} holds results of several models: {', '.join(sorted(models))}. Name one's folder.")
    # lm-eval 0.5 puts the group before a task's name, as `group::task`
    return Output(models.pop(), {task.rpartition("::")[2]: _read_task(task, *found) for task, found in newest.items()})


def finished_tasks(folder: Path) -> set[str]:
    """Tasks of a model's folder that need not be run again: those whose samples are all there."""
    if not list(folder.glob("results_*.json")):
        return set()
    found = set()
    for task, (file, content) in _newest(folder).items():
        samples = _samples_file(file, task)
        if samples.exists() and samples.read_bytes().count(b"\n") >= content["n-samples"][task]["effective"]:
            found.add(task)
    return found


def _newest(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """By task, the newest results file that holds it, and its content."""
    files = [folder] if folder.is_file() else sorted(folder.glob("results_*.json"))
    files = files or sorted(folder.glob("*/results_*.json"))
    if not files:
        raise SDRRLError(
            f"There are no results in {folder}: no `results_*.json` of `sdrrl evaluate` or of `lm_eval run "
            "--log_samples --output_path`."
        )
    if len({file.parent for file in files}) > 1:
        raise SDRRLError(f"{folder} holds results of several models: name the folder of one of them.")
    newest = {}
    for file in files:  # the date in the name sorts them
        content = read_json(file, ("results", "configs", "n-samples", "model_name"))
        newest |= dict.fromkeys(content["configs"], (file, content))
    return newest


def _samples_file(file: Path, task: str) -> Path:
    date = file.stem.rpartition("_")[2]
    return file.with_name(f"samples_{task}_{date}.jsonl")


def _read_task(task: str, file: Path, content: dict[str, Any]) -> TaskResult:
    path = _samples_file(file, task)
    if not path.exists():
        raise SDRRLError(f"{path} is missing: comparing needs every item. Run `lm_eval` with `--log_samples`.")
    try:
        # Not splitlines(), which also splits at characters that stand inside answers, as U+2028
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        filters = {row["filter"] for row in rows}
        keys = _metrics(content["results"][task], filters)
        items: dict[int, Item] = {}
        for row in sorted(rows, key=lambda row: row["doc_id"]):
            item = items.setdefault(row["doc_id"], _item(row))
            item.scores.update({keys[key]: row[key[0]] for key in keys if key[1] == row["filter"]})
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SDRRLError(f"{path} is damaged ({type(error).__name__}: {error}). {again(path)}") from error
    if len(items) != content["n-samples"][task]["effective"]:
        raise SDRRLError(f"{path} holds {len(items)} items, not all that were asked. {again(path)}")
    scores = {label: content["results"][task][",".join(key)] for key, label in keys.items()}
    return TaskResult(
        metrics={label: math.nan if score is None else score for label, score in scores.items()},
        higher_is_better={label: content["higher_is_better"][task].get(metric) for (metric, _), label in keys.items()},
        signature=_signature(task, content, rows[0]),
        items=list(items.values()),
        file=path,
    )


def again(path: Path) -> str:
    """How to repair a file with samples."""
    return f"Delete it and run the same command again: `sdrrl evaluate` then asks only these items. ({path})"


def _metrics(scores: dict[str, Any], filters: set[str]) -> dict[tuple[str, str], str]:
    """Metrics of a task as lm-eval has them, `(metric, filter)`, with the name that the report has for each."""
    keys = [tuple(key.split(",", 1)) for key in scores if "," in key]
    keys = [key for key in keys if key[1] in filters and not key[0].endswith("_stderr")]
    keys = [key for key in keys if isinstance(scores[",".join(key)], int | float | None)]
    return {key: key[0] if len(filters) == 1 else ",".join(key) for key in keys}


def _item(row: dict[str, Any]) -> Item:
    prompt, response = row["arguments"]["gen_args_0"]["arg_0"], row["resps"][0][0]
    return Item(
        doc_id=row["doc_id"],
        asked=(row["doc_hash"], row["prompt_hash"]),
        prompt=prompt
        if isinstance(prompt, str)
        else json.dumps(prompt, ensure_ascii=False),  # of chat servers, a list
        target=row["target"],
        response=response if isinstance(response, str) else None,
        scores={},
    )


def _signature(task: str, content: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    """How a task was run, as in the signatures of sacrebleu."""
    signature = {
        "version": content["versions"][task],
        "shots": content["n-shot"][task],
        "n": content["n-samples"][task]["effective"],
        "chat_template": (content.get("chat_template_sha") or "none")[:8],
        "generation": content["configs"][task].get("generation_kwargs") or None,
        "lm_eval": content.get("lm_eval_version"),
        # Our tasks with a judge note it with each answer
        "judge": json.loads(first(row["filtered_resps"]))["judge"] if row["filter"] == "judge" else None,
    }
    return {name: re.sub(r"\s+", "", str(value)) for name, value in signature.items() if value is not None}
