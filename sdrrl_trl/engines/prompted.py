"""Translation by a prompted language model: another one behind a server, or the model itself."""

import re
from typing import Any

from sdrrl_trl.engines import Generator
from sdrrl_trl.languages import LANGUAGES


# Ours. "Self-Translate-Train" (https://huggingface.co/papers/2407.00454) has the model translate its own data.
_PROMPT = (
    "Translate the following text from {source} into {target}. Reply with the translation only, without quotes or "
    "comments. Copy words such as ZX1Q unchanged.\n\n{text}"
)
_QUOTES = {('"', '"'), ("'", "'"), ("“", "”"), ("«", "»"), ("「", "」"), ("`", "`")}


class PromptedTranslator:
    """
    Translation through a [`Generator`].

    Args:
        generator ([`Generator`]):
            Engine of the model.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    def describe(self) -> dict[str, Any]:
        return {**self.generator.describe(), "prompt": _PROMPT, "licence": "that of the model's output"}

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """One translation for each text; `""` where the reply was cut off."""
        names = {"source": LANGUAGES[source].name, "target": LANGUAGES[target].name}
        prompts = [[{"role": "user", "content": _PROMPT.format(text=text, **names)}] for text in texts]
        return [
            _clean(text, reply.text) if reply.finish_reason == "stop" else ""
            for text, reply in zip(texts, self.generator.generate(prompts), strict=True)
        ]


def _clean(original: str, reply: str) -> str:
    """The reply without thoughts, and without quotes that the original has not."""
    reply = re.sub(r"^\s*<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL).strip()
    quoted = len(reply) > 2 and (reply[0], reply[-1]) in _QUOTES
    return reply[1:-1].strip() if quoted and original[0] != reply[0] else reply
