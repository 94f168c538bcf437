"""
What the report says beside its comparisons: how much of the gap is closed, what each strength gains and
loses, and what the answers are like.
"""

import os
from collections import Counter, defaultdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from sdrrl_trl.evaluation.compare import FEW, MIN_ITEMS, SEED, Row, answer_language
from sdrrl_trl.evaluation.outputs import Item, Output
from sdrrl_trl.evaluation.suite import language_of
from sdrrl_trl.evaluation.weights import split_strength
from sdrrl_trl.languages import LANGUAGES, in_language
from sdrrl_trl.transfer.filters import is_repetitive


# Scores that mean the same in every language; others depend on script and reference
_ALIKE = ("acc", "acc_norm", "acc_bytes", "accuracy", "f1", "token_f1", "em", "exact_match")


def gaps(rows: list[Row], outputs: dict[str, Output]) -> list[dict[str, Any]]:
    """
    Share of the base model's gap between source and target language that training closed, with its 95 % interval.

    Only for scores that mean the same in every language, and where the base model is better in the source language
    (lower end of the gap's interval above zero).
    """
    base = next(iter(outputs))
    source_tasks = {(row.benchmark, row.metric): row.task for row in rows if row.role == "source"}
    found = []
    for row in rows:
        source_task = source_tasks.get((row.benchmark, row.metric))
        if row.role != "target" or source_task is None or row.metric_name not in _ALIKE:
            continue
        before, after, source = (
            np.array([item.scores[row.metric] for item in outputs[model].tasks[task].items], dtype=float)
            for model, task in ((base, row.task), (row.model, row.task), (base, source_task))
        )
        scores = {"base_source": source.mean(), "base_target": before.mean(), "tuned_target": after.mean()}
        about = {"model": row.model, "language": row.language, "benchmark": row.benchmark, "metric": row.metric}
        closed = _closed(before, after, source, 1 if row.higher_is_better else -1)
        found.append(about | {name: float(score) for name, score in scores.items()} | closed)
    return found


def _closed(before: np.ndarray, after: np.ndarray, source: np.ndarray, sign: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    # The two models share their items; the languages are resampled apart, which holds for any items
    of_target, of_source = (rng.multinomial(k, np.full(k, 1 / k), size=1000) / k for k in (len(after), len(source)))
    gap = sign * (of_source @ source - of_target @ before)
    # Nothing is said of few items, and nothing of a gap that may be none
    note = FEW if min(len(before), len(source)) < MIN_ITEMS else "no gap" if np.percentile(gap, 2.5) <= 0 else None
    if note:
        return {"closed": None, "low": None, "high": None, "note": note}
    moved, some = sign * (of_target @ (after - before)), gap != 0  # no share of a gap of nothing
    low, high = np.percentile(moved[some] / gap[some], [2.5, 97.5])
    closed = (after.mean() - before.mean()) / (source.mean() - before.mean())
    return {"closed": float(closed), "low": float(low), "high": float(high), "note": note}


def trade_off(rows: list[Row], outputs: dict[str, Output]) -> list[dict[str, Any]]:
    """Of each model at several strengths: what each gained and lost, on what could be compared at all of them."""
    by_path: dict[str, dict[str, float]] = defaultdict(dict)
    for name, output in list(outputs.items())[1:]:
        path, strength = split_strength(output.model)
        by_path[os.path.normpath(path)][name] = 1.0 if strength is None else strength
    found = []
    for path, strengths in by_path.items():
        if len(set(strengths.values())) < 2:
            continue
        measured = Counter((row.task, row.metric) for row in rows if row.model in strengths)
        common = [row for row in rows if measured[row.task, row.metric] == len(strengths)]
        for name, strength in sorted(strengths.items(), key=itemgetter(1)):
            mine = [row for row in common if row.model == name]
            about = {"tuned": Path(path).name, "strength": strength, "model": name}
            about |= {role: _mean_change([row for row in mine if row.role == role]) for role in ("target", "source")}
            found.append(about | {"drift": next((r.comparison.delta for r in mine if r.role == "drift"), None)})
    return found


def _mean_change(rows: list[Row]) -> float | None:
    """In per cent of the base model's scores, above zero for the better."""
    changes = [row.comparison.delta / abs(row.comparison.base) for row in rows if row.comparison.base]
    signs = [1 if row.higher_is_better else -1 for row in rows if row.comparison.base]
    return 100 * float(np.mean(np.multiply(signs, changes))) if changes else None


def answers(outputs: dict[str, Output]) -> list[dict[str, Any]]:
    """Rates of empty and of repetitive answers, and, of those not empty, in a wrong language; all generation tasks."""
    # Pooled over tasks: a model writes in a wrong language whatever it is asked
    pools: dict[tuple[str | None, str], list[Item]] = defaultdict(list)
    for model, output in outputs.items():
        for task, result in output.tasks.items():
            tag = answer_language(task, language_of(task))
            pools[tag, model] += [item for item in result.items if item.response is not None]  # no log-likelihoods
    return [
        {"language": tag, "model": model, "n": len(items)} | _rates(items, tag)
        for (tag, model), items in sorted(pools.items(), key=lambda pool: str(pool[0][0]))
        if items
    ]


def _rates(items: list[Item], tag: str | None) -> dict[str, float | None]:
    written = [item for item in items if item.response.strip()]
    wrong = [is_wrong_language(item, tag) for item in written] if tag else []
    repetitive = [is_repetitive(item.response, LANGUAGES[tag].spaces if tag else True) for item in items]
    return {
        "wrong_language": sum(wrong) / len(wrong) if wrong else None,
        "empty": (len(items) - len(written)) / len(items),
        "repetitive": sum(repetitive) / len(items),
    }


def is_wrong_language(item: Item, tag: str) -> bool:
    """By the task's own rule if it has one, such as MKQA's, where a right name is in every language."""
    if "wrong_language" in item.scores:
        return bool(item.scores["wrong_language"])
    return not (item.scores["in_language"] if "in_language" in item.scores else in_language(item.response, tag))
