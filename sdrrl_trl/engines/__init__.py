"""What the stages need of an engine. Engines know nothing of rows: they turn lists of texts into lists of texts."""

from dataclasses import dataclass
from typing import Any, Protocol

from sdrrl_trl.utils import sha256


@dataclass(frozen=True)
class Sampling:
    """
    How an engine answers: by default with samples of the model's own distribution, as it is.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `512`): Longest answer in tokens.
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of sampling; 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`): Nucleus of sampling.
        seed (`int`, *optional*, defaults to `42`): Seed of sampling.
        chat_template_kwargs (`dict[str, Any]`, *optional*): Arguments of the chat template.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 42
    chat_template_kwargs: dict[str, Any] | None = None

    def seed_of(self, conversation: list[dict[str, str]]) -> int:
        """A seed for each conversation, so that an answer does not depend on what is asked beside it."""
        return int(sha256(f"{self.seed}:{conversation}")[:8], 16) % 2**31


@dataclass(frozen=True)
class Generation:
    """
    One generated answer.

    Args:
        text (`str`): The answer, surrounding white space removed.
        finish_reason (`str`): `"stop"`, `"length"` if the answer was cut off at the limit, `"prompt_too_long"` if
            there is none, or a reason of the server's.
    """

    text: str
    finish_reason: str


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
