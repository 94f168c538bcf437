"""`sdrrl judge`: judges saved answers to harmful questions again, without asking the model again."""

import json
import shutil
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.outputs import read_samples, without_nan
from sdrrl_trl.tasks import judge
from sdrrl_trl.utils import SDRRLError, read_json, write_atomic, write_json


def judge_again(source: Path, output: Path) -> list[dict[str, Any]]:
    """
    Copies what `lm_eval --log_samples --output_path` left, judged anew by the judge that the environment names.

    Args:
        source (`Path`):
            Folder with `samples_*.jsonl` and `results_*.json`.
        output (`Path`):
            New folder, of the same form.

    Returns:
        `list[dict]`: by file with answers, its name, the judge, the number of answers and the mean of each metric.

    Raises:
        `SDRRLError`: if there are no answers, `output` is there already, or the judge cannot work.
    """
    files = {file: rows for file in sorted(source.rglob("samples_*.jsonl")) if (rows := judged_rows(file))}
    if not files:
        raise SDRRLError(f"No answers to judge in {source}: no `samples_*.jsonl` of a judged task. Set --log_samples.")
    if output.exists() or source.resolve() in output.resolve().parents:
        raise SDRRLError(f"{output} is there already, or inside {source}. Name a new folder beside that.")
    for file in files:  # all that can be wrong is found before the judge is asked
        with_means(file, {})
    try:
        judge.preflight()
    except (ValueError, ImportError, OSError) as error:
        raise SDRRLError(str(error)) from error
    found, changed = [], {}
    for file, rows in files.items():
        docs = [row["doc"] for row in rows]
        labels = judge.judge([row["resps"] for row in rows], docs)
        scores = [judge.score_safety(doc, label) for doc, label in zip(docs, labels, strict=True)]
        means = {metric: judge.mean_of_judged([score[metric] for score in scores]) for metric in scores[0]}
        for row, label, score in zip(rows, labels, scores, strict=True):
            for metric in row["metrics"]:  # the old judge's may be others
                row.pop(metric, None)
            row |= {"filtered_resps": label, "metrics": list(score), **score}
        changed[file] = "".join(json.dumps(without_nan(row), ensure_ascii=False) + "\n" for row in rows), means
        found.append({"answers": file.name, "judge": judge.judge_name(), "n": len(rows), **means})
    shutil.copytree(source, output)  # with what other tasks left, so that the copy is complete
    for file, (text, means) in changed.items():
        target = output / file.relative_to(source)
        write_atomic(target, text)
        write_json(results_of(target), with_means(target, means))
    return found


def judged_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a file with samples that a judge has judged."""
    try:
        rows = [row for row in read_samples(file) if row["filter"] == "judge"]
        keys = ("prompt", "language", "script")
        return [row for row in rows if all(row["doc"][key] for key in keys) and row["resps"] and row["metrics"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SDRRLError(f"{file} is no file with samples of lm-eval ({type(error).__name__}: {error}).") from error


def results_of(samples: Path) -> Path:
    """The results file of a run, beside a file with samples."""
    return samples.with_name(f"results_{samples.stem.rpartition('_')[2]}.json")


def with_means(samples: Path, means: dict[str, float]) -> dict[str, Any]:
    """
    The results of a run, with other means for the task of some samples. Groups lose theirs, of the old judge.

    Raises:
        `SDRRLError`: if they are missing or damaged.
    """
    file, task = results_of(samples), samples.stem.removeprefix("samples_").rpartition("_")[0]
    content = read_json(file, ("results",))
    try:
        for name in (task, *content.get("groups", ())):
            scores = content["results"][name]
            content["results"][name] = {key: value for key, value in scores.items() if not key.endswith(",judge")}
        content["results"][task] |= {f"{metric},judge": value for metric, value in means.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise SDRRLError(f"{file} is damaged: it has no scores of {error}, whose answers are there.") from error
    return without_nan(content)
