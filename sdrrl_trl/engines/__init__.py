"""What the stages need of an engine. Engines know nothing of rows: they turn lists of texts into lists of texts."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Generation:
    """
    One generated answer.

    Args:
        text (`str`): The answer, surrounding white space removed.
        finish_reason (`str`): `"stop"`, or `"length"` if the answer was cut off at the token limit.
        n_tokens (`int`): Length in tokens, end of sequence not counted.
    """

    text: str
    finish_reason: str
    n_tokens: int


class Generator(Protocol):
    """Answers conversations."""

    def describe(self) -> dict[str, Any]:
        """What the answers depend on (JSON values): goes into the manifest and decides whether a resume is allowed."""

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        """One answer for each list of `{"role", "content"}` messages, in the same order."""


class Translator(Protocol):
    """Translates sentences."""

    def describe(self) -> dict[str, Any]:
        """What the translations depend on (JSON values), with the licence of the weights."""

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """One translation for each text, in the same order. `source` and `target` are language tags."""
