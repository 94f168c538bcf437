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

from sdrrl_trl.evaluation.suite import HARMFUL
from sdrrl_trl.tasks.judge import first
from sdrrl_trl.utils import SDRRLError, read_json


UNFINISHED = ".unfinished-"
_AGAIN = "Delete it and run the same command again: `sdrrl evaluate` then asks only these items."


@dataclass(frozen=True)
class Item:
    """
    One item of a task.

    Args:
        doc_id (`int`): Its number in the task's data.
        doc_hash (`str`): lm-eval's hash of its data.
        prompt_hash (`str`): lm-eval's hash of its prompt.
        prompt (`str`): What the model read.
        target (`str`): The right answer.
        response (`str`, *optional*): What the model wrote, if it wrote.
        scores (`dict[str, Any]`): Its score in each metric; for corpus metrics, what the score is computed from.
    """

    doc_id: int
    doc_hash: str
    prompt_hash: str
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
    """

    metrics: dict[str, float]
    higher_is_better: dict[str, bool | None]
    signature: dict[str, Any]
    items: list[Item]


@dataclass(frozen=True)
class Output:
    """
    All results of one model.

    Args:
        model (`str`): Path or hub id of the model, or of its adapter.
        tasks (`dict[str, TaskResult]`): Results by task.
        adapted (`str`, *optional*): Of an adapter, the model that it is on.
    """

    model: str
    tasks: dict[str, TaskResult]
    adapted: str | None = None


def save(folder: Path, results: dict[str, Any], about: dict[str, Any]) -> None:
    """
    Writes results as lm-eval does, but with null for NaN and infinite numbers.

    Args:
        folder (`Path`):
            Folder of the model.
        results (`dict[str, Any]`):
            What lm-eval's `evaluate` returns, and the `config` that its `simple_evaluate` adds.
        about (`dict[str, Any]`):
            Arguments of lm-eval's `log_experiment_args`: model, system message, chat template.

    Raises:
        `SDRRLError`: if lm-eval could not write.
    """
    from lm_eval.loggers import EvaluationTracker

    folder.mkdir(parents=True, exist_ok=True)
    # lm-eval would write NaN, which is no JSON: hardly any reader but Python's takes it
    results = without_nan(results)
    samples = results.pop("samples")
    # lm-eval writes file by file in place: beside the results at first, so that a kill leaves no half of them
    with TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
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


def without_nan(value: Any) -> Any:
    """A copy with null for NaN and infinite numbers."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    files = [folder] if folder.is_file() else sorted(folder.glob("results_*.json"))
    files = files or sorted(folder.glob("*/results_*.json"))
    if not files:
        raise SDRRLError(
            f"There are no results in {folder}: no `results_*.json` of `sdrrl evaluate` or of `lm_eval run "
            "--log_samples --output_path`."
        )
    newest = _newest(files)
    models = {str(content["model_name"]) for _, content in newest.values()}
    folders = {file.parent for file in files}
    if len(models) > 1 or len(folders) > 1:
        found = sorted(map(str, folders if len(folders) > 1 else models))
        raise SDRRLError(f"{folder} holds results of several models: {', '.join(found)}. Name the folder of one.")
    # lm-eval 0.5 puts the group before a task's name, as `group::task`
    tasks = {task.rpartition("::")[2]: _read_task(task, *found) for task, found in newest.items()}
    return Output(models.pop(), tasks, _adapted(next(iter(newest.values()))[1]))


def _adapted(content: dict[str, Any]) -> str | None:
    about = content.get("config")
    given = about.get("model_args") if isinstance(about, dict) else None
    if isinstance(given, str):  # as `lm_eval` notes what it was given
        given = dict(pair.split("=", 1) for pair in given.split(",") if "=" in pair)
    return given.get("pretrained") if isinstance(given, dict) and given.get("peft") else None


def finished_tasks(folder: Path) -> set[str]:
    """Tasks of a model's folder that need not be run again: those whose samples are all there."""
    finished = set()
    # Only lines are counted: reading all samples again would take as long as a report
    for task, (samples, content) in _newest(sorted(folder.glob("results_*.json"))).items():
        n = content["n-samples"][task]["effective"]
        if samples.exists() and samples.read_bytes().count(b"\n") >= n:
            finished.add(task)
    return finished


def _newest(files: list[Path]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """By task, its newest file of samples and the content of the results file with it."""
    newest = {}
    for file in files:  # the date in the name has sorted them
        content = read_json(file, ("results", "configs", "n-samples", "model_name"))
        date = file.stem.rpartition("_")[2]
        try:
            for task in content["configs"]:
                int(content["n-samples"][task]["effective"])
        except (LookupError, TypeError, ValueError) as error:
            raise SDRRLError(f"{file} is damaged ({type(error).__name__}: {error}). {_AGAIN}") from error
        odd = [task for task in content["configs"] if not re.fullmatch(r"[\w.:@+-]+", task)]
        if odd:  # a name becomes part of a path, and is printed
            raise SDRRLError(f"{file}: {odd[0]!r} is not the name of a task.")
        newest |= {task: (file.with_name(f"samples_{task}_{date}.jsonl"), content) for task in content["configs"]}
    return newest


def read_samples(file: Path) -> list[dict[str, Any]]:
    """Rows of a file with samples."""
    # Not splitlines(), which also splits at characters that stand inside answers, as U+2028
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def _read_task(task: str, file: Path, content: dict[str, Any]) -> TaskResult:
    if not file.exists():
        raise SDRRLError(f"{file} is missing: comparing needs every item. Run `lm_eval` with `--log_samples`.")
    try:
        results = content["results"][task]
        rows = read_samples(file)
        labels = _labels(results, {row["filter"] for row in rows})
        items: dict[int, Item] = {}
        for row in sorted(rows, key=lambda row: row["doc_id"]):
            item = items.setdefault(row["doc_id"], _item(row))
            item.scores.update({label: row[metric] for (metric, by), label in labels.items() if by == row["filter"]})
        signature = _signature(task, content, rows[0])
        metrics = {label: results[f"{metric},{by}"] for (metric, by), label in labels.items()}
        metrics = {label: math.nan if score is None else score for label, score in metrics.items()}
        higher = {label: content["higher_is_better"][task].get(metric) for (metric, _), label in labels.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SDRRLError(f"{file} is damaged ({type(error).__name__}: {error}). {_AGAIN}") from error
    if len(items) != content["n-samples"][task]["effective"]:
        raise SDRRLError(f"{file} holds {len(items)} items, not all that were asked. {_AGAIN}")
    return TaskResult(metrics, higher, signature, list(items.values()))


def _labels(results: dict[str, Any], filters: set[str]) -> dict[tuple[str, str], str]:
    """The report's name of each metric and filter of a task: with several filters, both."""
    labels = {}
    for key, score in results.items():
        metric, _, by = key.partition(",")
        if by in filters and not metric.endswith("_stderr") and isinstance(score, int | float | None):
            labels[metric, by] = metric if len(filters) == 1 else key
    return labels


def _item(row: dict[str, Any]) -> Item:
    arguments, response = row["arguments"]["gen_args_0"], row["resps"][0][0]
    prompt = arguments["arg_0"]
    return Item(
        doc_id=row["doc_id"],
        doc_hash=row["doc_hash"],
        prompt_hash=row["prompt_hash"],
        # Of chat servers, a list
        prompt=prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        target=row["target"],
        # The likelihood of a whole text is one string, too, but nothing was asked beside the text
        response=response if isinstance(response, str) and "arg_1" in arguments else None,
        scores={},
    )


def _signature(task: str, content: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    """How a task was run, as in the signatures of sacrebleu."""
    judged = task.startswith(HARMFUL) and row["filter"] == "judge"  # whose filter notes the judge in JSON
    signature = {
        "version": content["versions"][task],
        "shots": content["n-shot"][task],
        "n": content["n-samples"][task]["effective"],
        "chat_template": (content.get("chat_template_sha") or "none")[:8],
        "generation": content["configs"][task].get("generation_kwargs") or None,
        "lm_eval": content.get("lm_eval_version"),
        # Of the held-out questions: whose they are, and how they were sampled
        "answers": (content["configs"][task].get("metadata") or {}).get("answers"),
        "judge": json.loads(first(row["filtered_resps"]))["judge"] if judged else None,
    }
    return {name: re.sub(r"\s+", "", str(value)) for name, value in signature.items() if value is not None}
