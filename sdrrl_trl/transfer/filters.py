"""
Filters: pure functions from a text (or a pair) to the reason why it is rejected, `None` if it is good.

The paper mentions no filter; all of these and their thresholds are ours.
"""

from sdrrl_trl.engines import Generation
from sdrrl_trl.languages import LANGUAGES, in_language


def reject_answer(answer: Generation, language: str) -> str | None:
    """Reason to reject an answer of the model in its source language."""
    if not answer.text:
        return "empty"
    if answer.finish_reason == "length":
        return "truncated"
    if is_repetitive(answer.text, LANGUAGES[language].spaces):
        return "repetition"
    if not in_language(answer.text, language):
        return "wrong_language"
    return None


def reject_translation(original: str, translation: str, language: str) -> str | None:
    """Reason to reject the translation of a whole question or answer."""
    if not translation.strip():
        return "empty"
    if original == translation and sum(char.isalpha() for char in original) >= 20:
        return "untranslated"
    longer, shorter = sorted((len(original), len(translation)), reverse=True)
    if longer >= 40 and longer / shorter > 3:
        return "length_ratio"
    if is_repetitive(translation, LANGUAGES[language].spaces):
        return "repetition"
    if not in_language(translation, language):
        return "wrong_language"
    return None


def is_repetitive(text: str, spaces: bool, n: int = 4, max_repeated: float = 0.5) -> bool:
    """
    Whether more than `max_repeated` of the n-grams (words; 5-grams of characters in scripts without spaces) are
    repetitions of earlier ones, as in the endless loops of small models. Texts under 20 n-grams pass.
    """
    units = text.split() if spaces else list(text)
    n = n if spaces else 5
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return len(grams) >= 20 and 1 - len(set(grams)) / len(grams) > max_repeated
