"""Samples for the page of the report: what the models wrote, in pieces that the others have, too, or have not."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

import regex

from sdrrl_trl.evaluation.compare import answer_language, benchmark_of
from sdrrl_trl.evaluation.measures import is_wrong_language
from sdrrl_trl.evaluation.outputs import Item, Output
from sdrrl_trl.evaluation.suite import language_of
from sdrrl_trl.languages import language_name


MAX_SAMPLES = 20  # of a task
MAX_BYTES = 900_000  # of the texts of all tasks: a page of 100 tasks must open on a phone
# A character is a word where words have no spaces between them
_WORDS = regex.compile(r"(?V1)[\w--[\p{Han}\p{Hira}\p{Kana}\p{Thai}\p{Khmr}\p{Laoo}\p{Mymr}]]+|\X")


@dataclass(frozen=True)
class TaskSamples:
    """
    Some items of a task in which the models write.

    Args:
        task (`str`): Name of the task.
        language (`str`, *optional*): Tag of the language that the task is about.
        answer_language (`str`, *optional*): Tag of the language that its answers should be in.
        items (`list[dict[str, Item]]`): The items, each as every model answered it, the base model first.
        max_characters (`int`): How much of a text is shown.
    """

    task: str
    language: str | None
    answer_language: str | None
    items: list[dict[str, Item]]
    max_characters: int

    @property
    def benchmark(self) -> str:
        return benchmark_of(self.task, self.language)

    def cut(self, text: str) -> str:
        """The text, or its beginning and its end, where a prompt has its question."""
        half = self.max_characters // 2
        return text if len(text) <= 2 * half else f"{text[:half]} […] {text[-half:]}"

    def wrong_language(self, answer: Item) -> bool:
        return bool(answer.response.strip() and self.answer_language and is_wrong_language(answer, self.answer_language))

    def changes(self, item: dict[str, Item], model: str) -> list[tuple[str, bool]]:
        """The answer of a model in pieces, each with whether it differs from the base model's (or from the tuned's)."""
        base, *tuned = item
        # Of several tuned models, each has left out other words of the base model's
        other = base if model != base else tuned[0] if len(tuned) == 1 else model
        return differences(self.cut(item[model].response), self.cut(item[other].response))


def differences(text: str, other: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is missing from the other text."""
    words, same = _WORDS.findall(text), set()
    matcher = SequenceMatcher(None, words, _WORDS.findall(other), autojunk=False)
    for block in matcher.get_matching_blocks():
        if block.size > 2 or len(words) < 3:  # a lone word that both have is chance
            same.update(range(block.a, block.a + block.size))
    pieces = groupby(range(len(words)), key=lambda i: i not in same)
    return [("".join(words[i] for i in places), differs) for differs, places in pieces]


def samples(outputs: dict[str, Output], source: str) -> dict[str | None, list[TaskSamples]]:
    """
    Some items of each task in which the models write, those whose answers differ first.

    Args:
        outputs (`dict[str, Output]`):
            Results of each model by its name, the base model first.
        source (`str`):
            Tag of the source language.

    Returns:
        `dict[str | None, list[TaskSamples]]`: the tasks by their language, the source language first.
    """
    base = next(iter(outputs.values()))
    tasks = [task for task, result in base.tasks.items() if result.items[0].response is not None]
    found: dict[str | None, list[TaskSamples]] = {}
    for task in sorted(tasks, key=lambda task: (language_of(task) != source, language_name(language_of(task)))):
        language = language_of(task)
        of_models = zip(*(output.tasks[task].items for output in outputs.values()), strict=True)
        items = [dict(zip(outputs, item, strict=True)) for item in of_models]
        items.sort(key=lambda item: len({one.response for one in item.values()}) == 1)
        share = MAX_BYTES // len(tasks)
        task_samples = TaskSamples(task, language, answer_language(task, language), [], min(1500, share // 20))
        for item in items[:MAX_SAMPLES]:
            first = item[next(iter(outputs))]
            texts = first.prompt, first.target, *(one.response for one in item.values())
            share -= sum(len(task_samples.cut(text).encode()) for text in texts)
            if share < 0 and task_samples.items:
                break
            task_samples.items.append(item)
        found.setdefault(language, []).append(task_samples)
    return found
