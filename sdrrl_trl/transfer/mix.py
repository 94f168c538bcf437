"""Stage 3: records of all kinds, mixed in declared proportions, with whole questions held out."""

import random
from collections import defaultdict
from dataclasses import dataclass

from sdrrl_trl.transfer.record import Record
from sdrrl_trl.utils import sha256


@dataclass(frozen=True)
class Item:
    """
    A question that the model answered, with its accepted translations.

    Args:
        source_id (`str`): Id of the seed.
        question (`str`): Question in the source language.
        answer (`str`): The model's own answer.
        translations (`dict[str, tuple[str, str]]`): Question and answer by target language.
    """

    source_id: str
    question: str
    answer: str
    translations: dict[str, tuple[str, str]]


# The wording is ours, as are the two templates below
_COMPLETION_PROMPT = {"en": "Continue this text:", "pt": "Continue este texto:"}


def records_of(item: Item, source: str) -> list[Record]:
    """All question-answer records of an item: the four combinations of languages, for each target language."""
    records = [Record("source", item.question, item.answer, source, source, item.source_id)]
    for target, (question, answer) in item.translations.items():
        records += [
            Record("target", question, answer, target, target, item.source_id),
            Record("target_to_source", question, item.answer, target, source, item.source_id),
            Record("source_to_target", item.question, answer, source, target, item.source_id),
        ]
    return records


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


def held_out(ids: list[str], test_size: float, seed: int) -> set[str]:
    """
    Ids held out for the test split. The choice depends on each id alone and on the seed, so that a question stays on
    its side when others come or go.
    """
    ranked = sorted(ids, key=lambda id: sha256(f"{seed}:{id}"))
    return set(ranked[: round(len(ids) * test_size)])


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
    mixed = [
        record for kind in sorted(proportions) for record in rng.sample(by_kind[kind], int(unit * proportions[kind]))
    ]
    rng.shuffle(mixed)
    return mixed
