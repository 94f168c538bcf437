"""The report in a few sentences: does it help, does it hurt, can I believe it?"""

from collections import Counter
from statistics import mean, median
from typing import Any

from sdrrl_trl.evaluation.compare import ALPHA, FEW, MIN_ITEMS, Row, language_name


RISE = 0.05  # of the share of empty or repetitive answers, from where on it is said; the number is not from the paper
SAFETY = {"refusal_rate": "refused", "safe_rate": "safe", "unsafe_rate": "unsafe", "invalid_rate": "invalid"}


def summary(rows: list[Row], content: dict[str, Any], model: str) -> list[str]:
    """Four to eight sentences about one tuned model."""
    by_role: dict[str, list[Row]] = {"target": [], "other": [], "source": [], "safety": []}
    for row in rows:
        if row.model == model:
            by_role.setdefault(row.role, []).append(row)
    source, n_rows = language_name(content["source_language"]), len(content["rows"])
    sentences = [_gains(by_role["target"], "Target languages", n_rows)]
    if by_role["other"]:
        sentences.append(_gains(by_role["other"], "Tasks whose language is not known", n_rows))
    closed = [gap["closed"] for gap in content["gaps"] if gap["model"] == model and gap["closed"] is not None]
    if closed:
        share = median(closed)  # of a tiny gap, a share beyond it says nothing
        text = "more than all" if share > 1 else "none" if share < 0 else f"{share:.0%}"
        measures = f"median of {_count(len(closed), 'measure')} with such a gap"
        sentences.append(f"Training closed {text} of the base model's gap to {source} ({measures}).")
    sentences += [_kept(by_role["source"], source), *_answers(content, model), _safety(by_role["safety"])]
    few = sum(row.verdict == FEW for row in rows if row.model == model)
    if few:
        sentences.append(f"{_count(few, 'comparison')} rest on fewer than {MIN_ITEMS} items and prove nothing.")
    return sentences


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _gains(rows: list[Row], subject: str, n_rows: int) -> str:
    if not rows:
        return "No target language was measured."
    verdicts = Counter(row.verdict for row in rows)
    parts = [f"{verdicts['worse']} got worse"]
    for verdict, text in (("no evidence of change", "showed no evidence of change"), (FEW, "had too few items")):
        parts += [f"{verdicts[verdict]} {text}"] if verdicts[verdict] else []
    return (
        f"{subject} gained on {verdicts['better']} of {_count(len(rows), 'measure')}; {', '.join(parts)} "
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
        f"{source}, the source language, {found}; at the worst end of the 95 % intervals it lost "
        f"{worst.worst_loss or 0.0:.1%} of the base score ({worst.title})."
    )


def _answers(content: dict[str, Any], model: str) -> list[str]:
    """Wrong languages; then empty and repetitive answers, if their share rises by more than `RISE` in a language."""
    before, now = (
        {rate["language"]: rate for rate in content["answers"] if rate["model"] == name}
        for name in (content["base"], model)
    )
    targets = [tag for tag in now if tag not in (None, content["source_language"])]
    # A model that answered nothing in a language has no rate there
    both = [tag for tag in targets if all(rates[tag]["wrong_language"] is not None for rates in (before, now))]
    if not both:
        sentences = ["In no target language did both models write anything: wrong languages cannot be compared."]
    else:
        old, new = (mean(rates[tag]["wrong_language"] for tag in both) for rates in (before, now))
        answers = f"Of the answers in {_count(len(both), 'target language')}"
        sentences = [f"{answers}, {new:.1%} are in a wrong language, {old:.1%} before."]
    for kind in ("empty", "repetitive"):
        risen = []
        for tag, rate in now.items():
            if rate["n"] >= MIN_ITEMS and rate[kind] - before[tag][kind] > RISE:
                name = language_name(tag) if tag else "tasks whose language is not known"
                risen.append(f"{name} ({rate[kind]:.1%}, {before[tag][kind]:.1%} before)")
        sentences += [f"More answers are {kind} in {', '.join(risen)}."] if risen else []
    return sentences


def _safety(rows: list[Row]) -> str:
    if not rows:
        return "Safety was not measured."
    verdicts = Counter(row.verdict for row in rows)
    parts = [f"{verdicts['better']} of {_count(len(rows), 'measure')} better, {verdicts['worse']} worse"]
    for metric, text in SAFETY.items():
        of = [row.comparison for row in rows if row.metric.partition(",")[0] == metric]
        if of:
            parts.append(f"{text} {mean(c.base for c in of):.1%} before, {mean(c.tuned for c in of):.1%} now")
    return f"Safety: {'; '.join(parts)}."
