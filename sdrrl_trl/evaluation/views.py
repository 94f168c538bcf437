"""What `sdrrl report` shows beside its table: gap closed, source language kept, form of the answers, safety, means."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdrrl_trl.evaluation.significance import Comparison
from sdrrl_trl.languages import LANGUAGES, in_language
from sdrrl_trl.transfer.filters import is_repetitive
from sdrrl_trl.utils import SDRRLError


ALPHA = 0.05
MIN_ITEMS = 20  # below, intervals and p-values are too good to be true; the number is ours
FEW = "too few items"
RATES = ("safe_rate", "unsafe_rate", "invalid_rate", "judge_failed")
_FORM = ("in_language", "wrong_language", "invalid", "judge_failed")
_ALIKE = (
    "acc",
    "acc_norm",
    "acc_bytes",
    "accuracy",
    "f1",
    "token_f1",
    "em",
    "exact_match",
)  # others depend on script and reference
_MEASURES = {
    "acc": "accuracy",
    "accuracy": "accuracy of generated answers",
    "bits_per_byte": "bits per byte",
    "chrf++": "chrF++",
    "em": "exact match",
    "f1": "F1",
    "token_f1": "F1",
    "rougeL": "ROUGE-L",
    "refusal_rate": "refusals",
    "in_language": "right language",
    "wrong_language": "wrong language",
    "safe_rate": "safe answers",
    "unsafe_rate": "unsafe answers",
    "invalid_rate": "invalid answers",
    "judge_failed": "not judged",
}


@dataclass(frozen=True)
class Row:
    """
    One line of the table: a metric of a task, a tuned model against the base.

    Args:
        model (`str`): Name of the tuned model.
        task (`str`): Name of the task.
        metric (`str`): Name of the metric.
        language (`str`, *optional*): Tag of the language that the task is about.
        role (`str`): What the row is evidence of: `"target"`, `"source"`, `"other"` (the task's language is not
            known), `"safety"`, `"form"` (language and format of the answers), or `"agreement"` (with the base model's
            own answers, neither good nor bad).
        higher_is_better (`bool`): Direction of the metric.
        comparison ([`Comparison`]): The numbers.
        p_holm (`float`): P-value after Holm's correction for all rows.
    """

    model: str
    task: str
    metric: str
    language: str | None
    role: str
    higher_is_better: bool
    comparison: Comparison
    p_holm: float

    @property
    def verdict(self) -> str:
        if self.comparison.n < MIN_ITEMS:
            return FEW
        if not self.p_holm < ALPHA:
            return "no evidence of change"
        return "better" if (self.comparison.delta > 0) == self.higher_is_better else "worse"

    @property
    def benchmark(self) -> str:
        return benchmark_of(self.task, self.language)

    @property
    def measure(self) -> str:
        name, _, by = self.metric.partition(",")
        return _MEASURES.get(name, name) + (f" ({by})" if by else "")

    @property
    def title(self) -> str:
        held_out = re.fullmatch(r"sdrrl_heldout_(gen|bpb)_.+", self.task)
        task = {"gen": "held-out questions", "bpb": "held-out answers"}[held_out[1]] if held_out else self.task
        return f"{task.removeprefix('sdrrl_')}: {self.measure}"

    @property
    def digits(self) -> int:
        """Decimal places that suit the scale: chrF and BLEU go to 100, the others to 1 or so."""
        return 1 if re.match("chrf|bleu|spbleu|ter", self.metric) else 3


def language_name(tag: str | None) -> str:
    return LANGUAGES[tag].name if tag else "–"


def benchmark_of(task: str, language: str | None) -> str:
    """Name of a task with `*` for its language: the same for all languages of a benchmark."""
    if language is None:
        return task
    return re.sub(rf"(?<=[-_])({LANGUAGES[language].flores}|{language})(?=[-_]|$)", "*", task)


def answer_language(task: str, language: str | None) -> str | None:
    """Language that the answers to a task should be in: that of the task; for a translation, what it goes into."""
    pair = re.search(r"[a-z]{3}_[A-Z][a-z]{3}-([a-z]{3}_[A-Z][a-z]{3})$", task)
    by_flores = {entry.flores: tag for tag, entry in LANGUAGES.items()}
    return by_flores.get(pair[1]) if pair else language


def role_of(task: str, metric: str, language: str | None, source: str | None, harmful: list[str]) -> str:
    metric = metric.partition(",")[0]
    if metric in _FORM:
        return "form"
    if task in harmful:
        return "safety"
    if language is None:
        return "other"
    if language != source:
        return "target"
    # The held-out answers in the source language are the base model's own
    return "agreement" if task.startswith("sdrrl_heldout_gen") else "source"


def gaps(rows: list[Row], results: dict[str, Any], base: str, source: str | None, seed: int) -> list[dict[str, Any]]:
    """
    Share of the base model's gap between source and target language that training closed, with its 95 % interval.

    Only for scores that mean the same in every language, and where the base model is better in the source language
    (lower end of the gap's interval above zero).
    """
    tasks = {(row.benchmark, row.metric): row.task for row in rows if row.language == source and row.role == "source"}
    found = []
    for row in rows:
        source_task = tasks.get((row.benchmark, row.metric))
        if row.role != "target" or source_task is None or row.metric.partition(",")[0] not in _ALIKE:
            continue
        items = [
            np.array([sample[row.metric] for sample in results[model][task]["samples"]], dtype=float)
            for model, task in ((base, row.task), (row.model, row.task), (base, source_task))
        ]
        values = {"closed": None, "low": None, "high": None}
        n = min(len(scores) for scores in items)
        sign = 1 if row.higher_is_better else -1
        rng = np.random.default_rng(seed)
        # The two models share their items; the languages are resampled apart, which holds for any items
        of_target, of_source = (rng.multinomial(k, np.full(k, 1 / k), size=1000) / k for k in map(len, items[1:]))
        gap = sign * (of_source @ items[2] - of_target @ items[0])
        if n < MIN_ITEMS:
            values["note"] = FEW
        elif np.percentile(gap, 2.5) <= 0:
            values["note"] = "no gap"
        else:
            low, high = np.percentile(sign * (of_target @ (items[1] - items[0])) / gap, [2.5, 97.5])
            closed = (items[1].mean() - items[0].mean()) / (items[2].mean() - items[0].mean())
            values = {"closed": float(closed), "low": float(low), "high": float(high), "note": None}
        found.append(
            {
                "model": row.model,
                "language": row.language,
                "benchmark": row.benchmark,
                "metric": row.metric,
                "base_source": float(items[2].mean()),
                "base_target": float(items[0].mean()),
                "tuned_target": float(items[1].mean()),
                **values,
            }
        )
    return found


def source_kept(rows: list[Row]) -> list[dict[str, Any]]:
    """Change in the source language, with the worst end of its interval, absolute and as a share of the base."""
    kept = []
    for row in (row for row in rows if row.role == "source"):
        c = row.comparison
        worst = c.low if row.higher_is_better else c.high
        loss = max(0.0, -worst if row.higher_is_better else worst)
        kept.append(
            {
                "model": row.model,
                "task": row.task,
                "metric": row.metric,
                "title": row.title,
                "base": c.base,
                "delta": c.delta,
                "worst": worst,
                "worst_loss": loss / abs(c.base) if c.base else None,
                "n": c.n,
                "verdict": row.verdict,
                "digits": row.digits,
            }
        )
    return kept


def answers(results: dict[str, Any], languages: dict[str, str | None]) -> list[dict[str, Any]]:
    """Rates of empty and of repetitive answers, and, of those not empty, in a wrong language; all generation tasks."""
    tally: dict[tuple[str | None, str], Counter] = defaultdict(Counter)
    for model, tasks in results.items():
        for task, result in tasks.items():
            tag = answer_language(task, languages[task])
            for sample in result["samples"]:
                text = sample["response"]
                if not isinstance(text, str):  # of log-likelihood tasks
                    continue
                count = tally[tag, model]
                count["n"] += 1
                count["written" if text.strip() else "empty"] += 1
                count["repetitive"] += is_repetitive(text, LANGUAGES[tag].spaces if tag else True)
                if text.strip() and tag:
                    count["wrong"] += _is_wrong_language(sample, text, tag)
    return [
        {
            "language": tag,
            "model": model,
            "n": count["n"],
            "wrong_language": count["wrong"] / count["written"] if tag and count["written"] else None,
            "empty": count["empty"] / count["n"],
            "repetitive": count["repetitive"] / count["n"],
        }
        for (tag, model), count in sorted(tally.items(), key=lambda item: str(item[0][0]))
    ]


def _is_wrong_language(sample: dict[str, Any], text: str, tag: str) -> bool:
    """By the task's own rule if it has one, such as MKQA's, where a right name is in every language."""
    if "wrong_language" in sample:
        return bool(sample["wrong_language"])
    return not (sample["in_language"] if "in_language" in sample else in_language(text, tag))


def mean_of(results: dict[str, Any], model: str, tasks: list[str], metric: str) -> float | None:
    """Mean over tasks, each counting alike; `None` if one of them has no value."""
    values = [results[model][task]["metrics"].get(metric, math.nan) for task in tasks]
    return None if any(math.isnan(value) for value in values) else sum(values) / len(values)


def safety(results: dict[str, Any], manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Rates of safe, unsafe, invalid (of the `n` judged) and unjudged answers (of all): groups of tasks, each task
    counting alike, then tasks.
    """
    first = next(iter(results.values()))
    judged = [task for task in manifest["harmful"] if "safe_rate" in first[task]["metrics"]]
    groups = {name: tasks for name, tasks in manifest["groups"].items() if tasks and set(tasks) <= set(judged)}
    return [
        {
            "name": name,
            "model": model,
            "tasks": len(tasks),
            "n": sum(not math.isnan(s["safe_rate"]) for task in tasks for s in results[model][task]["samples"]),
            **{rate: mean_of(results, model, tasks, rate) for rate in RATES},
        }
        for name, tasks in (groups | {task: [task] for task in judged}).items()
        for model in results
    ]


def group_means(results: dict[str, Any], manifest: dict[str, Any], base: str) -> list[dict[str, Any]]:
    """Means over the languages of a benchmark, each language counting alike, of the groups in the manifest."""
    means = []
    for group, tasks in manifest["groups"].items():
        unknown = sorted(set(tasks) - set(manifest["tasks"]))
        if unknown:
            raise SDRRLError(f"The group {group} has tasks without results: {', '.join(unknown)}. Evaluate them, too.")
        if len(tasks) < 2 or len({benchmark_of(task, manifest["languages"][task]) for task in tasks}) > 1:
            continue  # a mean over different benchmarks says nothing
        for metric in results[base][tasks[0]]["metrics"]:
            values = {model: mean_of(results, model, tasks, metric) for model in results}
            if None not in values.values():
                means.append({"group": group, "metric": metric, "tasks": len(tasks), "values": values})
    return means
