"""The report in a few sentences: does it help, does it hurt, can I believe it?"""

from collections import Counter
from statistics import median
from typing import Any

from sdrrl_trl.evaluation.compare import ALPHA, FEW, MIN_ITEMS, Row, language_name


RISE = 0.05  # of the share of empty or repetitive answers, from where on it is said; the number is not from the paper


def summary(rows: list[Row], content: dict[str, Any], model: str) -> list[str]:
    """Four to eight sentences about one tuned model."""
    rows = [row for row in rows if row.model == model]
    source, n_rows = content["source_language"], len(content["rows"])
    sentences = [_gains([row for row in rows if row.role == "target"], "Target languages", n_rows)]
    others = [row for row in rows if row.role == "other"]
    if others:
        sentences.append(_gains(others, "Tasks whose language is not known", n_rows))
    closed = [gap["closed"] for gap in content["gaps"] if gap["model"] == model and gap["closed"] is not None]
    if closed:
        share = median(closed)  # of a tiny gap, a share beyond it says nothing
        text = "more than all" if share > 1 else "none" if share < 0 else f"{share:.0%}"
        sentences.append(
            f"Training closed {text} of the base model's gap to {language_name(source)} (median of "
            f"{_count(len(closed), 'measure')} with such a gap)."
        )
    sentences.append(_kept([row for row in rows if row.role == "source"], source))
    sentences += _answers(content["answers"], model, content["base"], source)
    sentences.append(_safety([row for row in rows if row.role == "safety"]))
    few = sum(row.verdict == FEW for row in rows)
    if few:
        sentences.append(
            f"{few} of {_count(len(rows), 'comparison')} rest on fewer than {MIN_ITEMS} items and prove nothing."
        )
    return sentences


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _gains(rows: list[Row], subject: str, n_rows: int) -> str:
    verdicts = Counter(row.verdict for row in rows)
    if not verdicts:
        return "No target language was measured."
    parts = [f"{verdicts['worse']} got worse"]
    others = {"no evidence of change": "showed no evidence of change", FEW: "had too few items"}
    parts += [f"{verdicts[name]} {text}" for name, text in others.items() if verdicts[name]]
    return (
        f"{subject} gained on {verdicts['better']} of {_count(verdicts.total(), 'measure')}; {', '.join(parts)} "
        f"(p < {ALPHA} after Holm's correction for {_count(n_rows, 'comparison')})."
    )


def _kept(rows: list[Row], source: str) -> str:
    if not rows:
        return "Whether the source language was kept was not measured."
    worse = [row.title for row in rows if row.verdict == "worse"]
    few = sum(row.verdict == FEW for row in rows)
    found = f"shows no evidence of loss on {_count(len(rows), 'measure')}"
    if worse:
        found = f"got worse on {len(worse)} of {_count(len(rows), 'measure')} ({', '.join(worse)})"
    elif few:
        found += f", {few} of them with too few items"
    worst = max(rows, key=lambda row: row.worst_loss or 0.0)
    return (
        f"{language_name(source)}, the source language, {found}; at the worst end of the 95 % intervals it lost "
        f"{worst.worst_loss or 0.0:.1%} of the base score ({worst.title})."
    )


def _answers(rates: list[dict[str, Any]], model: str, base: str, source: str) -> list[str]:
    """Wrong languages; then empty and repetitive answers, if their share rises by more than `RISE` in a language."""
    before, now = ({rate["language"]: rate for rate in rates if rate["model"] == name} for name in (base, model))
    targets = [tag for tag in now if tag not in (None, source)]
    # A model that answered nothing in a language has no rate there
    both = [tag for tag in targets if all(of[tag]["wrong_language"] is not None for of in (before, now))]
    if not targets:
        sentences = ["No task let the models write in a target language."]
    elif not both:
        sentences = ["In no target language did both models write anything: wrong languages cannot be compared."]
    else:
        was, is_now = (sum(of[tag]["wrong_language"] for tag in both) / len(both) for of in (before, now))
        sentences = [
            f"Of the answers in {_count(len(both), 'target language')}, {is_now:.1%} are in a wrong language, "
            f"{was:.1%} before."
        ]
    for kind in ("empty", "repetitive"):
        risen = [
            f"{language_name(tag) if tag else 'tasks whose language is not known'} "
            f"({now[tag][kind]:.1%}, {before[tag][kind]:.1%} before)"
            for tag in now
            if now[tag]["n"] >= MIN_ITEMS and now[tag][kind] - before[tag][kind] > RISE
        ]
        if risen:
            sentences.append(f"More answers are {kind} in {', '.join(risen)}.")
    return sentences


def _safety(rows: list[Row]) -> str:
    if not rows:
        return "Safety was not measured."
    verdicts = Counter(row.verdict for row in rows)
    means = []
    names = {
        "refusal_rate": "refused",
        "safe_rate": "safe",
        "unsafe_rate": "unsafe",
        "invalid_rate": "invalid",
    }
    for metric, text in names.items():
        of = [row.comparison for row in rows if row.metric.partition(",")[0] == metric]
        if of:
            before, after = (sum(values) / len(of) for values in zip(*((c.base, c.tuned) for c in of), strict=True))
            means.append(f"{text} {before:.1%} before, {after:.1%} now")
    return f"Safety: {verdicts['better']} of {_count(len(rows), 'measure')} better, {verdicts['worse']} worse" + (
        f"; answers to harmful prompts: {'; '.join(means)}." if means else "."
    )
