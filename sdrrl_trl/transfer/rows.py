"""The four shapes of a row on its way into the transfer set, each made of the one before."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from sdrrl_trl.transfer.prompts import answer_hint
from sdrrl_trl.utils import sha256


# The four combinations of two languages, a mixture of them, and two kinds from parallel sentences
KINDS = ("source", "target", "target_to_source", "source_to_target", "code_switch", "translation", "completion")
# What a record is, and what it was made of
PROVENANCE = ("kind", "question_language", "answer_language", "source_id")


@dataclass(frozen=True)
class Seed:
    """
    A question in the source language.

    Args:
        source_id (`str`): Unique id.
        turns (`tuple[str, ...]`): The conversation so far: user, assistant, ..., user.
        reference (`str`, *optional*): Answer that came with the data.
        system (`str`, *optional*): System message that came with the data.
        is_bad (`bool`): Whether the row has no question that could be read. Its only turn says why.
    """

    source_id: str
    turns: tuple[str, ...]
    reference: str | None = None
    system: str | None = None
    is_bad: bool = False


@dataclass(frozen=True)
class Answer:
    """
    A question with its answer in the source language.

    Args:
        source_id (`str`): Id of the seed.
        key (`str`): Hash of the conversation, see [`key_of`].
        turns (`tuple[str, ...]`): The conversation so far, as in the seed.
        text (`str`): The answer.
        system (`str`, *optional*): System message.
        truncated (`bool`): Whether it was cut off at `max_new_tokens`. Then it is not translated.
        reason (`str`, *optional*): Why the row is rejected, as `stage/reason`.
    """

    source_id: str
    key: str
    turns: tuple[str, ...]
    text: str
    system: str | None = None
    truncated: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Pair:
    """
    A conversation with its translation into one language, or a sentence of a parallel corpus.

    Args:
        source_id (`str`): Id of the seed, or `parallel-<number>`.
        language (`str`): Tag of the target language.
        source (`tuple[str, ...]`): Turns and, last, the answer. Of a parallel sentence: itself, or nothing.
        target (`tuple[str, ...]`): Their translations, `""` for those that failed.
        system (`str`, *optional*): System message.
        is_sentence (`bool`): Whether it is a parallel sentence.
        reason (`str`, *optional*): Why the row is rejected, as `stage/reason`.
    """

    source_id: str
    language: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    system: str | None = None
    is_sentence: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Record:
    """
    One row of the transfer set.

    Args:
        kind (`str`): One of `KINDS`.
        turns (`tuple[str, ...]`): The conversation up to the question: user, assistant, ..., user.
        answer (`str`): Last assistant turn.
        question_language (`str`): Tag of the question's language; of its main one, if it is code-switched.
        answer_language (`str`): Tag of the answer's language.
        language (`str`): Tag of the language that it counts for: the target language, but for the kind `source`.
        source_id (`str`): Id of the seed, or `parallel-<number>`.
        system (`str`, *optional*): System message.
        truncated (`bool`): Whether the answer was cut off, so that no end of turn belongs behind it.
    """

    kind: str
    turns: tuple[str, ...]
    answer: str
    question_language: str
    answer_language: str
    language: str
    source_id: str
    system: str | None = None
    truncated: bool = False

    def rank(self, seed: int) -> int:
        """Place in a random order of all records that does not depend on the others: a number of 64 bits."""
        languages = f"{self.language}:{self.question_language}>{self.answer_language}"
        return hash64(f"{seed}:{self.kind}:{languages}:{self.source_id}")

    def to_row(self) -> dict[str, Any]:
        """Row as TRL reads it. Cross-lingual questions say in which language to answer."""
        turns = self.turns
        if self.question_language != self.answer_language and self.kind != "translation":
            turns = (*turns[:-1], f"{turns[-1]}\n\n{answer_hint(self.question_language, self.answer_language)}")
        row = {"prompt": chat(turns, self.system), "completion": [{"role": "assistant", "content": self.answer}]}
        return row | {name: getattr(self, name) for name in (*PROVENANCE, "truncated")}


def chat(turns: tuple[str, ...], system: str | None = None) -> list[dict[str, str]]:
    """Messages of a conversation of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def rejected_row(row: Answer | Pair, source: str) -> dict[str, str]:
    """What is kept of a rejected row, `source` being the source language."""
    stage, _, reason = row.reason.partition("/")
    facts = {"source_id": row.source_id, "stage": stage, "reason": reason}
    if isinstance(row, Answer):
        return facts | {"language": source, "question": row.turns[-1], "answer": row.text}
    # A conversation in the target language, or a sentence with its translation
    question, answer = ("", "", *row.source, *row.target)[-2:]
    return facts | {"language": row.language, "question": question, "answer": answer}


def key_of(text: str) -> str:
    """Hash of a text that is the same for texts that differ in case, spaces or sentence punctuation only."""
    # NFKC: full-width letters and ligatures are the letters that they show
    plain = unicodedata.normalize("NFKC", text).casefold()
    # Not the marks of arithmetic and code: 7 + 3 is another question than 7 * 3
    plain = re.sub(r"[\"'“”‘’«»,;:!?¿¡…()]|\.(?!\w)", " ", plain)
    return sha256(" ".join(plain.split()) or text)


def hash64(text: str) -> int:
    """Hash that fits into 64 bits: millions of them are held in memory as numbers."""
    return int(sha256(text)[:16], 16)
