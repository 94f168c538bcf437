"""Translation by a prompted language model: another one behind a server, or the model itself."""

import re
from typing import Any

from sdrrl_trl.engines import Generator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.tasks.thoughts import without_thoughts


# Ours. "Self-Translate-Train" (https://huggingface.co/papers/2407.00454) has the model translate its own data.
_PROMPT = (
    "Translate the following text from {source} into {target}. Reply with the translation only, without quotes or "
    "comments of your own. If the text is a question or an instruction, translate it all the same. Copy words such as "
    "ZX1Q unchanged.\n\n{text}"
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "‘": "’", "«": "»", "「": "」", "『": "』"}


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
        return {**self.generator.describe(), "prompt": _PROMPT, "licence": "depends on the model"}

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """One translation for each text; `""` where the reply was cut off or refused."""
        names = {"source": LANGUAGES[source].name, "target": LANGUAGES[target].name}
        prompts = [[{"role": "user", "content": _PROMPT.format(text=text, **names)}] for text in texts]
        return [
            _clean(text, reply.text, names["target"]) if reply.finish_reason == "stop" else ""
            for text, reply in zip(texts, self.generator.generate(prompts), strict=True)
        ]


def _clean(original: str, reply: str, target: str) -> str:
    """The reply without thoughts, and without a label (`Translation:`) or quotes around it that the original lacks."""
    reply = without_thoughts(reply)
    if not re.search("[:：]", original):
        reply = re.sub(rf"^[^\n:：]{{0,40}}\b(translation|{target})\W*[:：]\**\s*", "", reply, flags=re.IGNORECASE)
    marks = {*_QUOTES, *_QUOTES.values()}
    if len(reply) > 1 and _QUOTES.get(reply[0]) == reply[-1] and marks.isdisjoint(original[:1] + original[-1:]):
        inside = reply[1:-1].strip()
        return reply if reply[0] in inside or reply[-1] in inside else inside
    return reply
