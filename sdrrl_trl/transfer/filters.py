"""
Filters: pure functions from a text (or a pair) to the reason why it is rejected, `None` if it is good.

The paper mentions no filter; these and their thresholds are not from it. Code, formulas, addresses and the like, which
stay as they are, count for none but the repetitions.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import regex

from sdrrl_trl.engines import Generation
from sdrrl_trl.languages import LANGUAGES, MIN_LETTERS, in_language
from sdrrl_trl.tasks.judge import refuses
from sdrrl_trl.transfer.segment import WORDS, prose, without_blocks


# English answers that begin like this and are short may refuse to answer: an apology or doubt may be part of a story
_REFUSAL = re.compile(
    r"(I'm|I am) (sorry|afraid|unable|not able)|I (can't|cannot|can not|won't) |As an AI|"
    r"(I apologi[sz]e|Sorry|Unfortunately)\b",
    re.IGNORECASE,
)
_EXCUSE = re.compile(r"(sorry|apologi[sz]e), but\b|\bAI\b|language model", re.IGNORECASE)
_CODE = Path(__file__).with_name("code_lines.txt").read_text(encoding="utf-8").splitlines()
# Longer lines are no code, and would take long to look at
_CODE_LINE = re.compile(
    f"^(?=[^\n]{{1,300}}$)[ \t]*(?:{'|'.join(line for line in _CODE if not line.startswith('# '))})", re.MULTILINE
)
_LANGUAGE_NAMES = "(?:" + "|".join(re.escape(language.name.lower()) for language in LANGUAGES.values()) + ")"
_NO_CODE = r"\A(?!.*\b(?:function|program|algorithm|code|script|python|javascript|sql)\b).*"
_SOURCE_BOUND = {
    tag: re.compile(_NO_CODE + "(?:" + "|".join(patterns).replace("LANGUAGE", _LANGUAGE_NAMES) + ")", re.DOTALL)
    for tag, patterns in WORDS["source_bound"].items()
}
_WORD = r"\p{Lu}[\p{Lu}\p{Ll}\p{M}\d'’.&-]{0,40}+"
_PARTICLES = rf"(?:(?:{'|'.join(WORDS['name_particles'].split())})[ ,]+){{0,2}}"
# Several words in a row (Leonardo da Vinci), or one that does not owe its capital to its place (in Rome, GPT-4)
_NAME = regex.compile(
    rf"\b{_WORD}(?:[ ,]+{_PARTICLES}{_WORD})+|(?<=[\p{{Ll}},;] ){_WORD}|\b\p{{L}}[\p{{L}}\d-]*[\p{{Lu}}\d][\w-]*+"
)
# 1,000.5 is 1 000,5 or 1.000,5 elsewhere, and the Indian 12,34,567 is 1,234,567
_SEPARATOR = re.compile(r"(?<=\d)[.,'’·٫٬،\u00a0\u2009\u202f](?=(?:\d\d,)*\d{3}(?!\d))")
_SPACE = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")
_LARGE = re.compile(rf"(\d)[.,٫](\d{{1,3}})(?=[\s-]?(?:{'|'.join(WORDS['large_units'].split())}))", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,300}")
# Sim. Sim. and longer ones, but not haraka haraka: many languages say some words twice
_DOUBLED = re.compile(
    r"\W*(?:(\w.{0,100}?)[\s,;:]*[.!?。！？।][\s.,;:!?。！？।]*\1|(\w.{12,100}?)[\s,;:]+\2)\W*",
    re.DOTALL | re.IGNORECASE,
)
# Han characters say as much as three letters, kana and Hangul as two. With these weights, 2.5 is passed by at most
# 0.5 % of the human translations between any two of 27 languages of FLORES-200
_DENSE = regex.compile(r"(\p{Hani})|[\p{Hira}\p{Kana}\p{Hang}]")
_MOST_TIMES = 2.5


def reject_answer(answer: Generation, language: str, keep_refusals: bool = False) -> str | None:
    """Reason to reject an answer of the model in its source language."""
    if answer.finish_reason == "prompt_too_long":
        return "question_too_long"
    if answer.finish_reason not in ("stop", "length"):  # such as "content_filter"
        return answer.finish_reason or "unfinished"
    if not answer.text:
        return "empty"
    if language == "en" and not keep_refusals and _is_refusal(answer.text.replace("’", "'")):
        return "refusal"
    if is_repetitive(answer.text, LANGUAGES[language].spaces):
        return "repetition"
    return _reject_words(prose(answer.text), language)


def _is_refusal(text: str) -> bool:
    return len(text) < 300 and bool(_REFUSAL.match(text)) and (bool(_EXCUSE.search(text)) or refuses(text))


def reject_task(original: tuple[str, str], translation: tuple[str, str], language: str) -> str | None:
    """
    Reason to reject the translation of a question with its answer for a task on the words of its language: to correct,
    rhyme, count or translate them. The question says so, or its translation has all of the answer, as a corrected
    sentence, though the original has not.
    """
    question, answer = map(_plain, original)
    if language in _SOURCE_BOUND and _SOURCE_BOUND[language].search(original[0].lower()):
        return "source_bound"
    new_question, new_answer = map(_plain, translation)
    is_lost = len(new_answer) >= 10 and new_answer in new_question and answer not in question
    return "source_bound" if is_lost else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def reject_translation(original: str, translation: str | None, language: str) -> str | None:
    """
    Reason to reject the translation of a whole question or answer, or of a sentence, whose original may be missing;
    `None` has segments that were not translated.
    """
    if translation is None or not translation.strip():
        return "empty"
    if original and _CODE_LINE.search(without_blocks(original)):
        return "code_without_fence"
    is_doubled = _DOUBLED.fullmatch(translation) and not _DOUBLED.fullmatch(original)
    if is_doubled or is_repetitive(translation, LANGUAGES[language].spaces):
        return "repetition"
    source, target = prose(original), prose(translation)
    longer, shorter = sorted((count_letters(source), count_letters(target)), reverse=True)
    if original and longer >= 40 and longer > _MOST_TIMES * shorter:
        return "length_ratio"
    if original and changed_numbers(original, translation):
        return "numbers"
    # Names may stay as they are
    names = {word for name in _NAME.findall(source) for word in name.replace(",", " ").split()}
    source, target = _without(names, source), _without(names, target)
    if source == target and sum(map(str.isalpha, source)) >= MIN_LETTERS:
        return "untranslated"
    is_formula = source == target and re.search("[=^+<>→]", source) and not re.search(r"[^\W\d_]{4}", source)
    return None if is_formula else _reject_words(target, language)


def changed_numbers(original: str, translation: str) -> bool:
    """
    Whether a translation lacks a number of the original, and has another one or the missing one is a long one that
    nobody writes in words. On FLORES-200, this is so for 0.3 % of the human translations from English.
    """
    return all(_differ(before, after) for before in _readings(original) for after in _readings(translation))


def _differ(before: set[str], after: set[str]) -> bool:
    lost, new = _missing(before, after), _missing(after, before)
    return bool(lost) and (bool(new) or any(len(number.rstrip("0")) > 2 for number in lost))


def _readings(text: str) -> Iterator[set[str]]:
    """
    The numbers in a text in Latin digits, as it may be meant: a space may stand within a number or between two (In
    2020 300 came), and decimals count by themselves, or 4.5 million is 45 with many zeros (450万 elsewhere).
    """
    for spaced in (text, _SPACE.sub("", text)):
        # More zeros than any number has: so none is ten times as much
        for plain in (spaced, _LARGE.sub(r"\g<1>\g<2>" + "0" * 30, spaced)):
            yield {str(int(number)) for number in _NUMBER.findall(_SEPARATOR.sub("", plain))}


def _missing(numbers: set[str], others: set[str]) -> list[str]:
    return [number for number in numbers if not any(_same_number(number, other) for other in others)]


def _same_number(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    # 45 million = 4500万, 12th century = 1200s, 1 lakh = 100,000. Ten times as much is a slip
    scaled = short.rstrip("0") == long.rstrip("0") and len(long) != len(short) + 1
    decade = len(short) == 2 and long.endswith(short)  # the 1960s = die 60er
    difference = abs(int(long) - int(short))
    hour = difference == 12 and len(long) == 2  # 10 pm = 22:00
    return scaled or decade or hour or difference == 543  # years in Thailand


def count_letters(text: str) -> int:
    """Length in characters of an alphabet; Khmer has invisible spaces between its words."""
    return len(text.replace("\u200b", "")) + sum(2 if match[1] else 1 for match in _DENSE.finditer(text))


def _without(names: set[str], text: str) -> str:
    return regex.sub(r"[\p{Lu}\p{Ll}\p{M}\d'’.&-]+", lambda match: "" if match[0] in names else match[0], text)


def _reject_words(words: str, language: str) -> str | None:
    has_any = any(map(str.isalpha, words))
    return "wrong_language" if has_any and not in_language(words, language) else None


def is_repetitive(text: str, spaces: bool) -> bool:
    """
    Whether more than half of the 4-grams of words (5-grams of characters in scripts without spaces) are repetitions of
    earlier ones, as in the endless loops of small models. Texts under 20 n-grams pass.
    """
    units, n = (text.split(), 4) if spaces else (list(text), 5)
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return len(grams) >= 20 and len(set(grams)) < len(grams) / 2
