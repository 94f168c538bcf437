"""
Filters: pure functions from a text (or a pair) to the reason why it is rejected, `None` if it is good.

The paper mentions no filter; these and their thresholds are not from it.
"""

import re

from sdrrl_trl.engines import Generation
from sdrrl_trl.languages import LANGUAGES, in_language


# Short English answers that begin like this refuse to answer
_REFUSAL = re.compile(
    r"(I'm|I am) (sorry|unable|not able)|I (can't|cannot|can not|won't) |(I apologi[sz]e|Sorry)\b|As an AI\b",
    re.IGNORECASE,
)


def reject_answer(answer: Generation, language: str) -> str | None:
    """Reason to reject an answer of the model in its source language."""
    if answer.finish_reason == "prompt_too_long":
        return "question_too_long"
    if answer.finish_reason not in ("stop", "length"):  # such as "content_filter"
        return answer.finish_reason or "unfinished"
    if not answer.text:
        return "empty"
    if language == "en" and len(answer.text) < 300 and _REFUSAL.match(answer.text.replace("’", "'")):
        return "refusal"
    return _reject_text(answer.text, language)


def reject_translation(original: str, translation: str | None, language: str) -> str | None:
    """
    Reason to reject the translation of a whole question or answer, or of a sentence, whose original may be missing;
    `None` has segments that were not translated.
    """
    if translation is None or not translation.strip():
        return "empty"
    if original == translation and sum(char.isalpha() for char in original) >= 20:
        return "untranslated"
    longer, shorter = sorted((len(original), len(translation)), reverse=True)
    if original and longer >= 40 and longer / shorter > 3:
        return "length_ratio"
    return _reject_text(translation, language)


def _reject_text(text: str, language: str) -> str | None:
    if is_repetitive(text, LANGUAGES[language].spaces):
        return "repetition"
    return None if in_language(text, language) else "wrong_language"


def is_repetitive(text: str, spaces: bool, n: int = 4, max_repeated: float = 0.5) -> bool:
    """
    Whether more than `max_repeated` of the n-grams (words; 5-grams of characters in scripts without spaces) are
    repetitions of earlier ones, as in the endless loops of small models. Texts under 20 n-grams pass.
    """
    units = text.split() if spaces else list(text)
    n = n if spaces else 5
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return len(grams) >= 20 and 1 - len(set(grams)) / len(grams) > max_repeated
