"""Samples for the page of the report: what the models wrote, and which words of it differ."""

from dataclasses import replace
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

import regex

from sdrrl_trl.evaluation.compare import answer_language, benchmark_of
from sdrrl_trl.evaluation.outputs import Item, Output
from sdrrl_trl.evaluation.suite import language_of
from sdrrl_trl.languages import language_name


MAX_SAMPLES = 20  # of a task
MAX_CHARACTERS = 1500  # of a text
MAX_BYTES = 750_000  # of all texts: a page of 100 tasks must open on a phone
# A character is a word where words have no spaces between them
_WORDS = regex.compile(r"(?V1)[\w--[\p{Han}\p{Hira}\p{Kana}\p{Thai}\p{Khmr}\p{Laoo}\p{Mymr}]]+|\X")


def samples(outputs: dict[str, Output], source: str) -> dict[str | None, list[dict[str, Any]]]:
    """
    Some items of each task in which the models write, those whose answers differ first.

    Args:
        outputs (`dict[str, Output]`):
            Results of each model by its name, the base model first.
        source (`str`):
            Tag of the source language.

    Returns:
        `dict[str | None, list[dict]]`: by language, the source language first, for each task its name, benchmark, the
        language of its answers, and its items, each a list with that of every model.
    """
    results = next(iter(outputs.values())).tasks
    tasks = [(language_of(task), task) for task, result in results.items() if result.items[0].response is not None]
    found: dict[str | None, list[dict[str, Any]]] = {}
    for tag, task in sorted(tasks, key=lambda one: (one[0] != source, language_name(one[0]))):
        about = {"name": task, "benchmark": benchmark_of(task, tag), "answer_language": answer_language(task, tag)}
        items = zip(*(output.tasks[task].items for output in outputs.values()), strict=True)
        found.setdefault(tag, []).append(about | {"samples": _fitting(items, MAX_BYTES // len(tasks))})
    return found


def _fitting(items: Any, max_bytes: int) -> list[list[Item]]:
    """The first of the items, with their texts cut; at least one."""
    half = min(MAX_CHARACTERS, max_bytes // 20) // 2

    def cut(text: str) -> str:
        # The end of a prompt is the question
        return text if len(text) <= 2 * half else f"{text[:half]} […] {text[-half:]}"

    found: list[list[Item]] = []
    for item in sorted(items, key=lambda item: len({one.response for one in item}) == 1)[:MAX_SAMPLES]:
        prompt, target = cut(item[0].prompt), cut(item[0].target)
        item = [replace(one, prompt=prompt, target=target, response=cut(one.response)) for one in item]
        max_bytes -= len("".join([prompt, target, *(one.response for one in item)]).encode())
        if max_bytes < 0 and found:
            break
        found.append(item)
    return found


def differences(text: str, other: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is missing from the other text."""
    words, same = _WORDS.findall(text), set()
    matcher = SequenceMatcher(None, words, _WORDS.findall(other), autojunk=False)
    for start, _, n in matcher.get_matching_blocks():
        if n > 3 or start == 0 or start + n == len(words):  # elsewhere, a lone word that both have is chance
            same.update(range(start, start + n))
    pieces = groupby(range(len(words)), key=lambda i: i not in same)
    return [("".join(words[i] for i in piece), differs) for differs, piece in pieces]
