"""Which records a row gives."""

from collections.abc import Iterator

from sdrrl_trl.transfer.parallel import MIN_COMPLETION_CHARACTERS
from sdrrl_trl.transfer.prompts import completion_prompt, translation_prompt
from sdrrl_trl.transfer.rows import Answer, Pair, Record
from sdrrl_trl.utils import sha256


def records_of(row: Answer | Pair, source: str) -> Iterator[Record]:
    """
    All records that can be made of a good row: question and answer in all combinations of the two languages.

    Args:
        row ([`Answer`] or [`Pair`]): What they are made of.
        source (`str`): Tag of the source language.
    """
    if isinstance(row, Answer):
        yield Record("source", source, row.turns, row.text, source, source, row.source_id, row.system)
        return
    if row.is_sentence:
        yield from _records_of_sentence(row, source)
        return
    target = row.language
    *question, answer = row.source
    *translated_question, translated_answer = row.target

    def record(kind: str, turns: list[str], answer: str, question_language: str, answer_language: str) -> Record:
        return Record(
            kind, target, tuple(turns), answer, question_language, answer_language, row.source_id, row.system
        )

    yield record("target", translated_question, translated_answer, target, target)
    yield record("target_to_source", translated_question, answer, target, source)
    yield record("source_to_target", question, translated_answer, source, target)
    if row.switched:
        switched_question = [*question[:-1], row.switched]
        yield record("code_switch", switched_question, answer, source, source)
        yield record("code_switch", switched_question, translated_answer, source, target)


def _records_of_sentence(pair: Pair, source: str) -> Iterator[Record]:
    """Translations in both directions, and the sentence of the target language in two halves."""
    target, (translation,) = pair.language, pair.target

    def record(kind: str, prompt: str, text: str, answer: str, question_language: str, answer_language: str) -> Record:
        turns = (f"{prompt}\n\n{text}",)
        return Record(kind, target, turns, answer, question_language, answer_language, pair.source_id, pair.system)

    def wording(direction: str) -> int:
        return int(sha256(f"{pair.source_id}:{direction}")[:8], 16)

    for original in pair.source:
        prompt = translation_prompt(source, target, wording("from_source"))
        yield record("translation", prompt, original, translation, source, target)
        prompt = translation_prompt(target, source, wording("to_source"))
        yield record("translation", prompt, translation, original, target, source)
    if len(translation) >= MIN_COMPLETION_CHARACTERS:
        first, rest = _halves(translation)
        yield record("completion", completion_prompt(target, wording("")), first, rest, target, target)


def _halves(text: str) -> tuple[str, str]:
    words = text.split(" ")
    if len(words) == 1:
        return text[: len(text) // 2], text[len(text) // 2 :]
    middle = (len(words) + 1) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])
