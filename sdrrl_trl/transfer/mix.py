"""Stage 3: which records an item gives, how they are worded, and how many of each kind and language are taken."""

import sys
from collections import Counter, defaultdict

from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.items import Item
from sdrrl_trl.transfer.prompts import completion_prompt, pivot_labels, translation_prompt
from sdrrl_trl.transfer.record import Record
from sdrrl_trl.utils import SDRRLError, sha256


MIN_COMPLETION_CHARACTERS = 20


def forms_of(item: Item, source: str, side: str) -> list[tuple[str, str, str]]:
    """
    (kind, language, form) of all records that can be made of an item, for [`make_record`].

    Args:
        item ([`Item`]):
            A question with its translations, or a parallel sentence.
        source (`str`):
            Source language.
        side (`str`):
            What is code-switched: `"question"`, `"answer"` or `"both"`.
    """
    if not item.turns:
        return _forms_of_sentence(item, source)
    forms = [("source", source, "")]
    for target in item.texts:
        forms += [(kind, target, "") for kind in ("target", "target_to_source", "source_to_target", "pivot")]
    for target in item.switched:
        forms += [("code_switch", target, form) for form in (["same", "other"] if side == "question" else ["same"])]
    return forms


def _forms_of_sentence(item: Item, source: str) -> list[tuple[str, str, str]]:
    forms = []
    for target in item.texts.keys() - {source}:
        if source in item.texts:
            forms += [("translation", target, "from_source"), ("translation", target, "to_source")]
        if len(item.texts[target][0]) >= MIN_COMPLETION_CHARACTERS:
            forms.append(("completion", target, ""))
    return sorted(forms)


def make_record(item: Item, kind: str, target: str, form: str, source: str, direction: str) -> Record:
    """
    Words one record.

    Args:
        item ([`Item`]):
            What it is made of.
        kind (`str`):
            One of `KINDS`.
        target (`str`):
            Target language; the source language for the kind `source`.
        form (`str`):
            Variant of the kind, from [`forms_of`].
        source (`str`):
            Source language.
        direction (`str`):
            Language that code-switched texts are mainly in: `"source"` or `"target"`.
    """
    if kind in ("translation", "completion"):
        return _sentence_record(item, kind, target, form, source)
    own = (item.turns, item.answer, source)
    if kind == "source":
        return _record(kind, own, own, item)
    *turns, answer = item.texts[target]
    translated = (tuple(turns), answer, target)
    if kind == "target":
        return _record(kind, translated, translated, item)
    if kind == "target_to_source":
        return _record(kind, translated, own, item)
    if kind == "source_to_target":
        return _record(kind, own, translated, item)
    if kind == "pivot":
        return _record(kind, translated, (None, _pivot_answer(item, source, target), target), item)
    main, other = (own, translated) if direction == "source" else (translated, own)
    question, switched_answer = item.switched[target]
    switched = ((*main[0][:-1], question), switched_answer, main[2])
    return _record(kind, switched, switched if form == "same" else other, item)


def _record(kind: str, question: tuple, answer: tuple, item: Item) -> Record:
    return Record(kind, question[0], answer[1], question[2], answer[2], item.source_id, item.system)


def _pivot_answer(item: Item, source: str, target: str) -> str:
    """
    PLUG's format (https://huggingface.co/papers/2311.08711): the model first writes question and answer in the source
    language, then the answer in the target language. Off unless `proportions` names `pivot`; the labels are ours.
    """
    texts = (item.turns[-1], item.answer, item.texts[target][-1])
    labels = pivot_labels(source, target)
    return "\n\n".join(f"[{label}]\n{text}" for label, text in zip(labels, texts, strict=True))


def _sentence_record(item: Item, kind: str, target: str, form: str, source: str) -> Record:
    number = int(sha256(f"{item.source_id}:{form}")[:8], 16)  # picks the wording
    if kind == "completion":
        first, rest = _halves(item.texts[target][0])
        question = f"{completion_prompt(target, number)}\n\n{first}"
        return Record(kind, (question,), rest, target, target, item.source_id, item.system)
    a, b = (source, target) if form == "from_source" else (target, source)
    question = f"{translation_prompt(a, b, number)}\n\n{item.texts[a][0]}"
    return Record(kind, (question,), item.texts[b][0], a, b, item.source_id, item.system)


def _halves(text: str) -> tuple[str, str]:
    words = text.split(" ")
    if len(words) == 1:
        return text[: len(text) // 2], text[len(text) // 2 :]
    middle = (len(words) + 1) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def quotas(
    available: Counter[tuple[str, str]], proportions: dict[str, float], temperature: float, size: int | None
) -> dict[tuple[str, str], int]:
    """
    How many records of each kind and language are taken.

    Within a kind, languages share by `available ** (1 / temperature)`: 1 takes them as they are, larger values give
    small languages more (as multilingual language models sample their data).

    Args:
        available (`Counter`):
            Number of records by (kind, target language).
        proportions (`dict[str, float]`):
            Share of each kind, relative to each other.
        temperature (`float`):
            At least 1.
        size (`int`, *optional*):
            Records in all; a kind or language that has fewer than its part gives all it has. Default: as many as the
            scarcest one allows without breaking the proportions.

    Raises:
        `SDRRLError`: if a kind has no record.
    """
    shares: dict[tuple[str, str], float] = {}
    by_kind = defaultdict(dict)
    for (kind, language), n in available.items():
        by_kind[kind][language] = n ** (1 / temperature)
    empty = [kind for kind in proportions if not by_kind[kind]]
    if empty:
        raise SDRRLError(f"The training set would have no record of the kinds {', '.join(empty)}.")
    for kind, proportion in proportions.items():
        total = sum(by_kind[kind].values())
        for language, weight in sorted(by_kind[kind].items()):
            shares[kind, language] = proportion / sum(proportions.values()) * weight / total
    if size is None:
        unit = min(available[cell] / share for cell, share in shares.items())
        return {cell: int(unit * share + 1e-9) for cell, share in shares.items()}
    # Largest remainders, so that they add up to the size
    chosen = {cell: int(size * share) for cell, share in shares.items()}
    rest = sorted(chosen, key=lambda cell: (chosen[cell] - size * shares[cell], cell))
    for cell in rest[: size - sum(chosen.values())]:
        chosen[cell] += 1
    return {cell: min(available[cell], n) for cell, n in chosen.items()}


def check_quotas(chosen: dict[tuple[str, str], int], config: TransferConfig) -> None:
    """
    Refuses a training set that lacks a kind or a language that was asked for.

    Raises:
        `SDRRLError`: naming what is missing.
    """
    empty = [f"{kind} {language}" for (kind, language), n in sorted(chosen.items()) if not n]
    for target in config.target_languages:
        kinds = [kind for kind in config.proportions if kind in ("target", "target_to_source", "source_to_target")]
        empty += [f"{kind} {target}" for kind in kinds if (kind, target) not in chosen]
    if empty:
        raise SDRRLError(f"The training set would have no record of: {', '.join(empty)}.")
    for target in config.target_languages:
        for kind in ("translation", "completion", "code_switch"):
            if kind in config.proportions and (kind, target) not in chosen:
                print(f"warning: no {kind!r} records for {target!r}", file=sys.stderr)


def cells(counts: dict[tuple[str, str], int]) -> str:
    """Counts by kind and language for messages."""
    return ", ".join(f"{kind} {language} {n}" for (kind, language), n in sorted(counts.items()))
