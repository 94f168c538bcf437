"""
Wording of the questions that the builder makes itself, in the language of the question: `prompts.yaml`.

It has the 16 languages of the paper, the 10 of MultiJail, English and a few more; names of languages are those of the
Unicode CLDR. Elsewhere the English wording is used.
"""

from functools import cache
from pathlib import Path

import yaml
from babel import Locale

from sdrrl_trl.languages import LANGUAGES


_WORDINGS = yaml.safe_load(Path(__file__).with_name("prompts.yaml").read_text(encoding="utf-8"))


@cache
def name_in(tag: str, in_language: str) -> str:
    """Name of a language in another one (or in itself), from the CLDR; `no` stands for Norwegian in general."""
    # Few languages have names for the rarest ones: then the English name
    return Locale.parse(in_language).languages.get("no" if tag == "nb" else tag, LANGUAGES[tag].name)


def answer_hint(question_language: str, answer_language: str) -> str:
    """Sentence that asks for an answer in `answer_language`, in the language of the question where there is one."""
    wording = question_language if question_language in _WORDINGS["answer"] else "en"
    return _WORDINGS["answer"][wording].format(name_in(answer_language, wording))


def translation_prompt(source: str, target: str, number: int) -> str:
    """Request to translate, in the language of the text; `number` picks one of several wordings."""
    wording = source if source in _WORDINGS["translate"] else "en"
    templates = _WORDINGS["translate"][wording]
    return templates[number % len(templates)].format(name_in(target, wording))


def completion_prompt(language: str, number: int) -> str:
    """Request to continue a text, in its language; `number` picks one of several wordings."""
    templates = _WORDINGS["continue"].get(language, _WORDINGS["continue"]["en"])
    return templates[number % len(templates)]


def rewrite_prompt(question: str, reference: str) -> str:
    """Request to answer in one's own words along a reference (SDFT, https://huggingface.co/papers/2402.13669)."""
    return _WORDINGS["rewrite"].format(question=question, reference=reference)
