"""Results of several models on the same items → rows: a metric of a task, a tuned model against the base."""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdrrl_trl.evaluation.outputs import Output, TaskResult
from sdrrl_trl.evaluation.significance import Comparison, compare_pairs, corpus_score, holm, item_statistics
from sdrrl_trl.evaluation.suite import BY_FLORES, HARMFUL, language_of
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.render import inline
from sdrrl_trl.utils import SDRRLError


SEED = 1234
ALPHA = 0.05
MIN_ITEMS = 20  # below, intervals and p-values are too good to be true; the number is not from the paper
FEW = "too few items"
# In the order of the table
ROLES = ("target", "source", "drift", "other", "agreement", "format", "safety")
SAMPLED = "own,temperature1,top_p1"  # held-out answers that drift can be estimated from, as a signature has them
# Whether an answer can be read, not whether it is right
_FORMAT = ("in_language", "wrong_language", "language_unknown", "invalid", "judge_failed")
_FORMAT += ("contradicts", "no_answer_first", "no_answer_alone")  # of choices


@dataclass(frozen=True)
class Row:
    """
    One line of the table: a metric of a task, a tuned model against the base.

    Args:
        model (`str`): Name of the tuned model.
        task (`str`): Name of the task.
        metric (`str`): Name of the metric.
        language (`str`, *optional*): Tag of the language that the task is about.
        role (`str`): What the row is evidence of: `"target"`, `"source"`, `"drift"` (from the base model, by the
            likelihood of samples of it in the source language), `"other"` (the task's language is not known),
            `"safety"`, `"format"` (language and format of the answers), or `"agreement"` (with the base model's own
            answers, neither good nor bad).
        higher_is_better (`bool`): Direction of the metric.
        comparison ([`Comparison`]): The numbers; those of drift are the base model's, 0, and the difference.
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
        if self.role == "agreement":
            return "no verdict"
        if self.role == "drift":  # below zero is noise
            return "drifted" if self.p_holm < ALPHA and self.comparison.delta > 0 else "no drift measured"
        if not self.p_holm < ALPHA:
            return "no evidence of change"
        return "better" if (self.comparison.delta > 0) == self.higher_is_better else "worse"

    @property
    def worst_loss(self) -> float | None:
        """Loss at the bad end of the interval, as a share of the base model's score; none if that is zero."""
        c = self.comparison
        loss = max(0.0, -c.low if self.higher_is_better else c.high)
        return loss / abs(c.base) if c.base else None

    @property
    def benchmark(self) -> str:
        return benchmark_of(self.task, self.language)

    @property
    def metric_name(self) -> str:
        """The metric without its filter."""
        return self.metric.partition(",")[0]

    @property
    def title(self) -> str:
        if self.role == "drift":
            return "drift from the base model: bits per byte of its own answers"
        task = re.sub(r"sdrrl_heldout_gen_.+", "held-out questions", self.task)
        task = re.sub(r"sdrrl_heldout_bpb_.+", "held-out answers", task)
        task = re.sub(r"sdrrl_heldout_text_.+", "held-out sentences", task)
        name, _, by = self.metric.partition(",")
        measure = name.removeprefix("answer_").replace("_", " ") + (f" ({by})" if by else "")
        return inline(f"{task.removeprefix('sdrrl_')}: {measure}")

    @property
    def digits(self) -> int:
        """Decimal places that suit the scale: chrF and BLEU go to 100, the others to 1 or so."""
        return 1 if re.match("chrf|bleu|ter", self.metric) else 3


def benchmark_of(task: str, language: str | None) -> str:
    """Name of a task with `*` for its language: the same for all languages of a benchmark."""
    if language is None:
        return task
    return re.sub(rf"(?<=[-_])({LANGUAGES[language].flores}|{language})(?=[-_]|$)", "*", task)


def answer_language(task: str, language: str | None) -> str | None:
    """Language that the answers to a task should be in: that of the task; for a translation, what it goes into."""
    pair = re.search(r"[a-z]{3}_[A-Z][a-z]{3}-([a-z]{3}_[A-Z][a-z]{3})$", task)
    return BY_FLORES.get(pair[1]) if pair else language


def role_of(task: str, metric: str, language: str | None, source: str, signature: dict[str, Any]) -> str:
    """Role of a [`Row`]."""
    if metric.partition(",")[0] in _FORMAT:
        return "format"
    if task.startswith(HARMFUL):
        return "safety"
    if language is None:
        return "other"
    if language != source:
        return "target"
    answers = signature.get("answers", "own")
    if not re.match("sdrrl_heldout_(gen|bpb)", task) or not answers.startswith("own"):
        return "source"
    # Samples of what the base model says if it is asked through its chat template
    sampled = answers == SAMPLED and signature["chat_template"] != "none"
    return "drift" if sampled and task.startswith("sdrrl_heldout_bpb") else "agreement"


def compare(outputs: dict[str, Output], source: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """
    Compares every model with the first on every metric.

    Args:
        outputs (`dict[str, Output]`):
            Results of each model by its name, the base model first.
        source (`str`):
            Tag of the language that must not be lost.

    Returns:
        `tuple[list[Row], list[dict]]`: the comparisons, and the metrics that cannot be compared by item, with why.

    Raises:
        `SDRRLError`: unless all models were asked the same items in the same way.
    """
    base, *tuned = outputs
    measures, statistics, not_compared = [], [], []
    for model in tuned:
        if lone := sorted(set(outputs[base].tasks) ^ set(outputs[model].tasks)):
            raise SDRRLError(
                f"Not both {base} and {model} have results of {', '.join(lone)}. Evaluate what is missing (the same "
                "`sdrrl evaluate` goes on where it stopped), or leave the model out."
            )
        for task in outputs[base].tasks:
            both = [outputs[name].tasks[task] for name in (base, model)]
            _check_same(task, f"{base} and {model}", *both)
            for metric in both[0].metrics:
                try:
                    statistics.append((metric.partition(",")[0], *_statistics(task, metric, both)))
                except ValueError as why:
                    scores = {"base": both[0].metrics[metric], "tuned": both[1].metrics[metric]}
                    about = {"model": model, "task": task, "metric": metric}
                    not_compared.append(about | scores | {"because": str(why)})
                    continue
                role = role_of(task, metric, language_of(task), source, both[0].signature)
                measures.append((model, task, metric, language_of(task), role, both[0].higher_is_better[metric]))
    comparisons = compare_pairs(statistics, SEED)
    # One correction for all rows: a table of 200 has 10 with p < 0.05 by chance
    p_values = holm([comparison.p for comparison in comparisons])
    rows = []
    for measure, comparison, p in zip(measures, comparisons, p_values, strict=True):
        row = Row(*measure, comparison, p)
        # Of drift, the difference itself is what is measured
        drift = replace(row, comparison=replace(comparison, base=0.0, tuned=comparison.delta))
        rows.append(drift if row.role == "drift" else row)
    rows.sort(key=lambda r: (tuned.index(r.model), ROLES.index(r.role), str(r.language), r.task, r.metric))
    return rows, not_compared


def _check_same(task: str, names: str, base: TaskResult, tuned: TaskResult) -> None:
    """Raises [`SDRRLError`] unless both models were asked the same items in the same way."""
    # Everything in the signature counts, the version of lm-eval, too: it may score in another way
    keys = {**base.signature, **tuned.signature}
    fields = [key for key in keys if base.signature.get(key) != tuned.signature.get(key)]
    if set(base.metrics) != set(tuned.metrics):
        fields.append("metrics")
    # What each item was asked is told by lm-eval's hashes
    for name in ("doc_id", "doc_hash", "prompt_hash"):
        if [getattr(item, name) for item in base.items] != [getattr(item, name) for item in tuned.items]:
            fields.append(name)
    if fields:
        # A model that brings its own template is asked in another way under the same options
        template = " and without chat templates (`--apply_chat_template False`)" * ("chat_template" in fields)
        raise SDRRLError(
            f"{task}: {names} were not asked the same items in the same way, so a difference would say nothing. They "
            f"differ in: {', '.join(fields)}. Evaluate both with the same options{template} into another folder, or "
            "leave one out."
        )


def _statistics(task: str, metric: str, both: list[TaskResult]) -> list[np.ndarray]:
    """Statistics of the items of both models. Raises `ValueError` if there are none to compare, with why."""
    if any(result.higher_is_better[metric] is None for result in both):
        raise ValueError("the task does not say whether higher is better")
    pairs = [(one.scores[metric], other.scores[metric]) for one, other in zip(*(r.items for r in both), strict=True)]
    # Strict JSON has null for NaN, which is not even itself
    scored = [pair for pair in pairs if all(score is not None and score == score for score in pair)]
    # A pair that the judge failed on for either model is left out; n tells how many remain
    if len(scored) < len(pairs) and (not task.startswith(HARMFUL) or not scored):
        raise ValueError(f"{len(pairs) - len(scored)} of {len(pairs)} items have no score")
    if len(scored) < 2:
        raise ValueError("it has a single item, of which no interval can be told")
    scores = list(zip(*scored, strict=True))
    name = metric.partition(",")[0]
    found = [item_statistics(name, of_model) for of_model in scores]
    if not np.isfinite(found).all():
        raise ValueError("some of its items are infinite, of which there is no mean")
    reported = [result.metrics[metric] for result in both]
    by_item = [corpus_score(name, of_model) for of_model in scores]
    if scored == pairs and not np.allclose(reported, by_item, rtol=1e-3, atol=1e-6):
        raise ValueError("the task's score is not the mean of its items' scores")
    return found
