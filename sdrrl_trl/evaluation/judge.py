"""`sdrrl judge`: judges saved answers to harmful questions again, without asking the model again."""

import json
import shutil
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.outputs import read_samples
from sdrrl_trl.render import render
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
    if output.exists():
        raise SDRRLError(f"{output} is there already, and may be of another judge. Name a new folder.")
    try:
        judge.preflight()
    except (ValueError, ImportError, OSError) as error:
        raise SDRRLError(str(error)) from error
    shutil.copytree(source, output)  # with what other tasks left, so that the copy is complete
    found = []
    for file, rows in files.items():
        docs = [row["doc"] for row in rows]
        labels = judge.judge([row["resps"] for row in rows], docs)
        scores = [judge.score_safety(doc, label) for doc, label in zip(docs, labels, strict=True)]
        means = {metric: judge.mean_of_judged([score[metric] for score in scores]) for metric in scores[0]}
        for row, label, score in zip(rows, labels, scores, strict=True):
            for metric in row["metrics"]:  # the old judge's may be others
                del row[metric]
            row |= {"filtered_resps": label, "metrics": list(score), **score}
        target = output / file.relative_to(source)
        write_atomic(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        found.append({"answers": file.name, "judge": judge.judge_name(), "n": len(rows), **means})
        task, _, date = file.stem.removeprefix("samples_").rpartition("_")
        update_results(target.with_name(f"results_{date}.json"), task, means)
    return found


def judged_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a file with samples that a judge has judged."""
    try:
        rows = [row for row in read_samples(file) if row["filter"] == "judge"]
        return [row for row in rows if row["doc"]["prompt"] and row["resps"] and row["metrics"]]
    except (ValueError, LookupError, TypeError) as error:
        raise SDRRLError(f"{file} is no file with samples of lm-eval ({type(error).__name__}: {error}).") from error


def update_results(file: Path, task: str, means: dict[str, float]) -> None:
    """Puts the means of a task into the results of its run. Groups lose theirs, which were of the old judge."""
    content = read_json(file, ("results",))
    for name in (task, *content.get("groups", ())):
        scores = content["results"][name]
        content["results"][name] = {key: value for key, value in scores.items() if not key.endswith(",judge")}
    content["results"][task] |= {f"{metric},judge": value for metric, value in means.items()}
    write_json(file, content)


def format_table(found: list[dict[str, Any]]) -> str:
    """What [`judge_again`] found, as a Markdown table."""
    return render("table.md.jinja", rows=found)
