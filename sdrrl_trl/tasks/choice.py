"""
Scores of multiple choice: of the choice that an answer names, and of the likeliest one.

Rows have `choices` (`list[str]`), `gold` (index of the right one), and for generated answers `language` and `script`.
"""

import math
import re

from sdrrl_trl.languages import rates_of_language
from sdrrl_trl.tasks.reading import choose, contradicts
from sdrrl_trl.tasks.thoughts import without_thoughts


def score(doc, results):
    """
    Scores of a generated answer: right, no choice named, the letter of one choice with the text of another, and the
    language of what is not the text of the choice.

    Not named `acc`: lm-eval 0.5 keeps that name for log-likelihoods.
    """
    text = without_thoughts(results[0])
    chosen = choose(text, doc["choices"])
    rest = text if chosen is None else text.replace(doc["choices"][chosen].strip() or "\0", "")
    return {
        "accuracy": float(chosen == doc["gold"]),
        "invalid": float(chosen is None),
        "contradicts": float(chosen is not None and contradicts(text, doc["choices"], chosen)),
        # The text of a choice alone is in no wrong language, an empty answer is
        **rates_of_language(rest if rest.strip() or not text else "-", doc["language"], doc["script"]),
    }


def score_published(doc, results):
    """Scores by the first digit or letter of a choice, and by the first that stands alone; none is wrong."""
    scores = {}
    for reading, pattern in {"first": "[{}]", "alone": r"(?<![^\W_])[{}](?![^\W_])"}.items():
        found = re.search(pattern.format(doc["letters"]), results[0])
        scores[f"accuracy_{reading}"] = float(bool(found) and found[0] == doc["gold"])
        scores[f"no_answer_{reading}"] = float(not found)
    return scores


def score_likelihoods(doc, results):
    """1.0 if the right choice has the highest log-likelihood, as lm-eval has it; but a NaN is wrong, not a choice."""
    values = [value for value, _ in results]
    broken = any(math.isnan(value) for value in values)
    return {"acc": float(not broken and values.index(max(values)) == doc["gold"])}


def score_pair(doc, results):
    """
    Is the right one of two answers the likelier: as it is, per character, per byte?

    Not by lm-eval's own metrics, which take the first answer if a log-likelihood is NaN. Here NaN and ties are wrong.
    """
    texts = doc["choices"]
    lengths = {"acc": [1, 1], "acc_norm": map(len, texts), "acc_bytes": [len(text.encode()) for text in texts]}
    scores = {}
    for metric, sizes in lengths.items():
        values = [value / max(size, 1) for (value, _), size in zip(results, sizes, strict=True)]
        scores[metric] = float(values[doc["gold"]] > values[1 - doc["gold"]])
    return scores
