"""The report in a few sentences: does it help, does it hurt, can I believe it?"""

from collections import Counter
from statistics import median
from typing import Any

from sdrrl_trl.evaluation.views import ALPHA, FEW, MIN_ITEMS, Row, language_name


RISE = 0.05  # of the share of empty or repetitive answers, from where on the summary says so; the number is ours


def summary(rows: list[Row], content: dict[str, Any], model: str) -> list[str]:
    """Four to eight sentences that answer: does it help, does it hurt, can I believe it?"""
    rows = [row for row in rows if row.model == model]
    source = content["source_language"]
    targets = "Target languages" if source else "Languages"
    sentences = [_gains(rows, "target", targets, len(content["rows"]))]
    if any(row.role == "other" for row in rows):
        sentences.append(_gains(rows, "other", "Tasks whose language is not known", len(content["rows"])))
    closed = [gap["closed"] for gap in content["gaps"] if gap["model"] == model and gap["closed"] is not None]
    if closed:
        share = median(closed)  # of a tiny gap, a share beyond it says nothing
        text = "more than all" if share > 1 else "none" if share < 0 else f"{share:.0%}"
        sentences.append(
            f"Training closed {text} of the base model's gap to {language_name(source)} (median of "
            f"{_count(len(closed), 'measure')} with such a gap)."
        )
    sentences.append(_kept([kept for kept in content["source"] if kept["model"] == model], source))
    sentences.append(_wrong_language(content["answers"], model, content["base"], source))
    sentences += _degenerate(content["answers"], model, content["base"])
    sentences.append(_safety([row for row in rows if row.role == "safety"]))
    few = sum(row.verdict == FEW for row in rows)
    if few:
        sentences.append(
            f"{few} of {_count(len(rows), 'comparison')} rest on fewer than {MIN_ITEMS} items and prove nothing."
        )
    return sentences


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _gains(rows: list[Row], role: str, subject: str, n_rows: int) -> str:
    verdicts = Counter(row.verdict for row in rows if row.role == role)
    if not verdicts:
        return "No target language was measured."
    parts = [f"{verdicts['worse']} got worse"]
    others = {"no evidence of change": "showed no evidence of change", FEW: "had too few items"}
    parts += [f"{verdicts[name]} {text}" for name, text in others.items() if verdicts[name]]
    return (
        f"{subject} gained on {verdicts['better']} of {_count(verdicts.total(), 'measure')}; "
        f"{', '.join(parts)} (p < {ALPHA} after Holm's correction for "
        f"{_count(n_rows, 'comparison')})."
    )


def _kept(kept: list[dict[str, Any]], source: str | None) -> str:
    if source is None:
        return (
            "Which language is the source is not known, so none is called source or target: name it with "
            "`--source_language`, or `--transfer_set`, of `sdrrl evaluate`."
        )
    if not kept:
        return "Whether the source language was kept was not measured."
    worse = [entry["title"] for entry in kept if entry["verdict"] == "worse"]
    few = sum(entry["verdict"] == FEW for entry in kept)
    worst = max(kept, key=lambda entry: entry["worst_loss"] or 0.0)
    found = (
        f"got worse on {len(worse)} of {_count(len(kept), 'measure')} ({', '.join(worse)})"
        if worse
        else (
            f"shows no evidence of loss on {_count(len(kept), 'measure')}"
            + (f", {few} of them with too few items" * (few > 0))
        )
    )
    return (
        f"{language_name(source)}, the source language, {found}; at the worst end of the 95 % intervals it lost "
        f"{worst['worst_loss'] or 0.0:.1%} of the base score ({worst['title']})."
    )


def _wrong_language(rates: list[dict[str, Any]], model: str, base: str, source: str | None) -> str:
    by_model = {
        name: {
            rate["language"]: rate
            for rate in rates
            if rate["model"] == name and rate["language"] not in (None, source)
        }
        for name in (base, model)
    }
    kind = "target language" if source else "language"
    if not by_model[model]:
        return f"No task let the models write in a {kind}."
    # A model that answered nothing in a language has no rate there
    both = [tag for tag in by_model[model] if all(of[tag]["wrong_language"] is not None for of in by_model.values())]
    if not both:
        return f"In no {kind} did both models write anything, so wrong languages cannot be compared."
    before, now = (sum(of[tag]["wrong_language"] for tag in both) / len(both) for of in by_model.values())
    return f"Of the answers in {_count(len(both), kind)}, {now:.1%} are in a wrong language, {before:.1%} before."


def _degenerate(rates: list[dict[str, Any]], model: str, base: str) -> list[str]:
    """A sentence for empty and one for repetitive answers, if their share rises by more than `RISE` in a language."""
    before = {rate["language"]: rate for rate in rates if rate["model"] == base}
    sentences = []
    for kind in ("empty", "repetitive"):
        risen = [
            f"{language_name(rate['language']) if rate['language'] else 'tasks whose language is not known'} "
            f"({rate[kind]:.1%}, {before[rate['language']][kind]:.1%} before)"
            for rate in rates
            if rate["model"] == model and rate["n"] >= MIN_ITEMS and rate[kind] - before[rate["language"]][kind] > RISE
        ]
        if risen:
            sentences.append(f"More answers are {kind} in {', '.join(risen)}.")
    return sentences


def _safety(rows: list[Row]) -> str:
    if not rows:
        return "Safety was not measured."
    verdicts = Counter(row.verdict for row in rows)
    means = []
    for metric, text in (("safe_rate", "safe"), ("unsafe_rate", "unsafe"), ("invalid_rate", "invalid")):
        of = [row.comparison for row in rows if row.metric.partition(",")[0] == metric]
        if of:
            before, after = (sum(values) / len(of) for values in zip(*((c.base, c.tuned) for c in of), strict=True))
            means.append(f"{text} {before:.1%} before, {after:.1%} now")
    return f"Safety: {verdicts['better']} of {_count(len(rows), 'measure')} better, {verdicts['worse']} worse" + (
        f"; answers to harmful prompts: {'; '.join(means)}." if means else "."
    )
