"""Stage 3: records of all kinds, mixed in declared proportions, with whole questions held out."""

import random
from collections import defaultdict
from dataclasses import dataclass

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.record import Record
from sdrrl_trl.utils import sha256


@dataclass(frozen=True)
class Item:
    """
    A question that the model answered, with its accepted translations.

    Args:
        source_id (`str`): Id of the seed.
        key (`str`): What makes the question this question, see [`Seed`].
        question (`str`): Question in the source language.
        answer (`str`): The model's own answer.
        translations (`dict[str, tuple[str, str]]`): Question and answer by target language.
    """

    source_id: str
    key: str
    question: str
    answer: str
    translations: dict[str, tuple[str, str]]


# The wording is ours, as are the two templates below
_COMPLETION_PROMPT = {"en": "Continue this text:", "pt": "Continue este texto:"}


def records_of(item: Item, source: str) -> list[Record]:
    """All question-answer records of an item: the four combinations of languages and the pivot, for each target."""
    records = [Record("source", item.question, item.answer, source, source, item.source_id)]
    for target, (question, answer) in item.translations.items():
        records += [
            Record("target", question, answer, target, target, item.source_id),
            Record("target_to_source", question, item.answer, target, source, item.source_id),
            Record("source_to_target", item.question, answer, source, target, item.source_id),
            Record("pivot", question, pivot_answer(item, source, target), target, target, item.source_id),
        ]
    return records


def pivot_answer(item: Item, source: str, target: str) -> str:
    """
    PLUG's format (https://huggingface.co/papers/2311.08711): the model first writes question and answer in the source
    language, then the answer in the target language. Off unless `proportions` names `pivot`; the labels are ours.
    """
    parts = [
        (f"{LANGUAGES[source].name} question", item.question),
        (f"{LANGUAGES[source].name} answer", item.answer),
        (f"{LANGUAGES[target].name} answer", item.translations[target][1]),
    ]
    return "\n\n".join(f"[{label}]\n{text}" for label, text in parts)


def parallel_records(sentences: list[dict[str, str]], source: str, targets: list[str], names: dict[str, str]):
    """Translation records in both directions, and completion records of the target sentences."""
    records = []
    for number, sentence in enumerate(sentences):
        source_id = f"parallel-{number}"
        for target in targets:
            for a, b in ((source, target), (target, source)):
                question = f"Translate this into {names[b]}:\n\n{sentence[a]}"
                records.append(Record("translation", question, sentence[b], a, b, source_id))
            first, rest = _halves(sentence[target])
            if rest:
                prompt = _COMPLETION_PROMPT.get(target, _COMPLETION_PROMPT["en"])
                records.append(Record("completion", f"{prompt}\n\n{first}", rest, target, target, source_id))
    return records


def _halves(text: str) -> tuple[str, str]:
    words = text.split(" ")
    middle = (len(words) + 1) // 2 if len(words) > 1 else len(text) // 2
    if len(words) > 1:
        return " ".join(words[:middle]), " ".join(words[middle:])
    return text[:middle], text[middle:]


def held_out(keys: list[str], test_size: float, seed: int) -> set[str]:
    """
    Keys of the questions held out for the test split, at least one if `test_size` is above 0.

    They are the first in an order that each key has by itself, so that questions that come or go move few others.
    """
    ranked = sorted(keys, key=lambda key: sha256(f"{seed}:{key}"))
    return set(ranked[: max(1, round(len(keys) * test_size))]) if test_size > 0 else set()


def mix(records: list[Record], proportions: dict[str, float], seed: int) -> list[Record]:
    """
    Samples records without repetition so that the kinds stand in the given proportions.

    The result is as large as the scarcest kind allows. The order is random.
    """
    by_kind = defaultdict(list)
    for record in records:
        by_kind[record.kind].append(record)
    unit = min(len(by_kind[kind]) / share for kind, share in proportions.items())
    rng = random.Random(seed)
    sizes = {kind: int(unit * proportions[kind] + 1e-9) for kind in sorted(proportions)}
    mixed = [record for kind, size in sizes.items() for record in rng.sample(by_kind[kind], size)]
    rng.shuffle(mixed)
    return mixed
