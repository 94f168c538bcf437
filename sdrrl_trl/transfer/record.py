"""The record: one row of the transfer set, in TRL's conversational prompt-completion format plus provenance."""

from dataclasses import dataclass
from typing import Any

from sdrrl_trl.languages import answer_hint


KINDS = ("source", "target", "target_to_source", "source_to_target", "pivot", "translation", "completion")


@dataclass(frozen=True)
class Record:
    """
    One training row.

    Args:
        kind (`str`): One of `KINDS`.
        question (`str`): User turn.
        answer (`str`): Assistant turn.
        question_language (`str`): Tag of the question's language.
        answer_language (`str`): Tag of the answer's language.
        source_id (`str`): Id of the seed question, or `parallel-<line>`.
    """

    kind: str
    question: str
    answer: str
    question_language: str
    answer_language: str
    source_id: str

    def to_row(self, system_prompt: str | None) -> dict[str, Any]:
        """Row as TRL reads it. Cross-lingual questions say in which language to answer."""
        question = self.question
        if self.kind in ("target_to_source", "source_to_target"):
            question = f"{question}\n\n{answer_hint(self.question_language, self.answer_language)}"
        return {
            "prompt": chat(question, system_prompt),
            "completion": [{"role": "assistant", "content": self.answer}],
            "kind": self.kind,
            "question_language": self.question_language,
            "answer_language": self.answer_language,
            "source_id": self.source_id,
        }


def chat(question: str, system_prompt: str | None) -> list[dict[str, str]]:
    """Messages of a single-turn conversation."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]
