"""The record: one row of the transfer set, in TRL's conversational prompt-completion format plus provenance."""

from dataclasses import dataclass
from typing import Any

from sdrrl_trl.transfer.prompts import answer_hint


KINDS = (
    "source",
    "target",
    "target_to_source",
    "source_to_target",
    "code_switch",
    "pivot",
    "translation",
    "completion",
)


@dataclass(frozen=True)
class Record:
    """
    One training row.

    Args:
        kind (`str`): One of `KINDS`.
        turns (`tuple[str, ...]`): The conversation up to the question: user, assistant, ..., user.
        answer (`str`): Last assistant turn.
        question_language (`str`): Tag of the question's language; of its main one, if it is code-switched.
        answer_language (`str`): Tag of the answer's language.
        source_id (`str`): Id of the seed question, or `parallel-<number>`.
        system (`str`, *optional*): System message.
    """

    kind: str
    turns: tuple[str, ...]
    answer: str
    question_language: str
    answer_language: str
    source_id: str
    system: str | None = None

    def to_row(self) -> dict[str, Any]:
        """Row as TRL reads it. Cross-lingual questions say in which language to answer."""
        turns = self.turns
        if self.question_language != self.answer_language and self.kind != "translation":
            turns = (*turns[:-1], f"{turns[-1]}\n\n{answer_hint(self.question_language, self.answer_language)}")
        return {
            "prompt": chat(turns, self.system),
            "completion": [{"role": "assistant", "content": self.answer}],
            "kind": self.kind,
            "question_language": self.question_language,
            "answer_language": self.answer_language,
            "source_id": self.source_id,
        }


def chat(turns: tuple[str, ...], system: str | None = None) -> list[dict[str, str]]:
    """Messages of a conversation of user and assistant in turn."""
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(turns)
    ]
    return [{"role": "system", "content": system}, *messages] if system else messages
