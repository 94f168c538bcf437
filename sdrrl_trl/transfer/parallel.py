"""Parallel sentences, for translation and completion records."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from sdrrl_trl.languages import in_language
from sdrrl_trl.transfer.files import BadRows, open_text, read_rows, reading
from sdrrl_trl.transfer.filters import reject_translation
from sdrrl_trl.transfer.rows import Pair, hash64
from sdrrl_trl.transfer.segment import prose
from sdrrl_trl.transfer.shards import read_shards
from sdrrl_trl.utils import SDRRLError


MAX_CHARACTERS = 2_000
MIN_COMPLETION_CHARACTERS = 20


def read_parallel(corpora: list[str | dict[str, str]], source: str, targets: list[str]) -> Iterator[Pair]:
    """
    Sentences with their translations into the target languages, as far as a corpus has them.

    Args:
        corpora (`list`):
            Each a file or data set, as its path or the arguments of [`read_rows`], with one column per language tag
            (or one column `translation` that holds them, as on the hub), or a mapping of tags to line-aligned files.
        source (`str`):
            Tag of the source language.
        targets (`list[str]`):
            Tags of the target languages.

    Raises:
        `SDRRLError`: for files of different lengths, a corpus without any of the languages, and if most of its rows
            are bad: broken lines, columns that are not text. Fewer are left out, as sentences without a translation.
    """
    number = 0
    for corpus in corpora:
        data_set = {"path": corpus} if isinstance(corpus, str) else corpus
        bad = BadRows(data_set.get("path") or " and ".join(data_set.values()))
        rows = read_rows(**data_set) if "path" in data_set else _read_aligned(data_set)
        for row_number, (where, row) in enumerate(rows, 1):
            row = row.get("translation", row) if isinstance(row, dict) else row
            if isinstance(row, ValueError) or not all(
                isinstance(row.get(tag), str | None) for tag in (source, *targets)
            ):
                bad.add(f"{where}: {row if isinstance(row, ValueError) else 'the sentences must be text'}")
                row = {}
            elif row_number == 1 and not any(tag in row for tag in targets):
                raise SDRRLError(f"{bad.path}: no column {' or '.join(targets)}, but {', '.join(row)}. Name them so.")
            number += 1
            texts = {tag: (row[tag].strip(),) for tag in (source, *targets) if (row.get(tag) or "").strip()}
            for target in [tag for tag in targets if tag in texts] or [""]:  # without a translation, to be rejected
                original, translation = texts.get(source, ()), texts.get(target, ())
                yield Pair(f"parallel-{number}", target, original, translation, is_sentence=True)
        bad.check(row_number, "Correct or remove them.")


def _read_aligned(files: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    with reading(", ".join(files.values())), ExitStack() as stack:
        # Only \n ends a line: corpora are aligned by it
        opened = [stack.enter_context(open_text(path)) for path in files.values()]
        for number, lines in enumerate(zip_longest(*opened), 1):
            if None in lines:
                names = " and ".join(files.values())
                raise SDRRLError(f"{names}, line {number}: one file is shorter, so their lines do not match.")
            yield f"line {number}", dict(zip(files, lines, strict=True))


def check_sentences(pairs: list[Pair], source: str, system: str | None) -> list[Pair]:
    """The sentences of a shard with a system message, the bad ones with the reason why they are rejected."""
    reasons = [reject_sentence(pair, source) for pair in pairs]
    return [
        replace(pair, system=system, reason=reason and f"parallel/{reason}")
        for pair, reason in zip(pairs, reasons, strict=True)
    ]


def read_sentences(folder: Path) -> Iterator[Pair]:
    """The checked sentences of a build. Of equal ones, all but the first are bad."""
    seen: set[int] = set()
    for pair in read_shards(folder, Pair):
        key = hash64(repr((pair.language, pair.source, pair.target)))
        if pair.reason is None and key in seen:
            pair = replace(pair, reason="parallel/duplicate")
        seen.add(key)
        yield pair


def reject_sentence(pair: Pair, source: str) -> str | None:
    """Reason to reject a parallel sentence. The rules and thresholds are not from the paper."""
    original, translation = "".join(pair.source), "".join(pair.target)
    if not translation or not original and len(translation) < MIN_COMPLETION_CHARACTERS:
        return "no_pair"
    if max(len(original), len(translation)) > MAX_CHARACTERS:
        return "too_long"
    if (words := prose(original)) and not in_language(words, source):
        return "wrong_language"
    return reject_translation(original, translation, pair.language)
