"""Parallel sentences, for translation and completion records."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sdrrl_trl import hub
from sdrrl_trl.languages import LANGUAGES, in_language
from sdrrl_trl.tasks import flores
from sdrrl_trl.transfer.config import FLORES, is_flores
from sdrrl_trl.transfer.files import BadRows, open_text, read_rows, reading
from sdrrl_trl.transfer.filters import reject_translation
from sdrrl_trl.transfer.rows import Pair, hash64
from sdrrl_trl.transfer.segment import prose
from sdrrl_trl.transfer.shards import first_of_equal, read_shards
from sdrrl_trl.utils import SDRRLError


MAX_CHARACTERS = 2_000
MIN_COMPLETION_CHARACTERS = 20


def read_parallel(corpora: list[str | dict[str, str]], source: str, targets: list[str]) -> Iterator[Pair]:
    """
    Sentences with their translations into the target languages, as far as a corpus has them.

    Args:
        corpora (`list`):
            Each a file or data set, as its path or the arguments of [`read_rows`], with one column per language tag
            (or one column `translation` that holds them, as on the hub), or a mapping of tags to line-aligned files,
            or `"facebook/flores"` for the 1,012 sentences of FLORES-200's `devtest`.
        source (`str`):
            Tag of the source language.
        targets (`list[str]`):
            Tags of the target languages.

    Raises:
        `SDRRLError`: for files of different lengths, a corpus that is empty or without any of the languages, and if
            most of its rows are bad: broken lines, columns that are not text. Fewer are left out, as sentences without
            a translation.
    """
    number = 0
    for corpus in corpora:
        data_set = {"path": corpus} if isinstance(corpus, str) else corpus
        if is_flores(corpus):
            rows = _read_flores((source, *targets))
        else:
            rows = read_rows(**data_set) if "path" in data_set else _read_aligned(data_set)
        bad = BadRows(data_set.get("path") or " and ".join(data_set.values()))
        n_rows = 0
        for n_rows, (where, row) in enumerate(rows, 1):
            try:
                row = _by_language(row, (source, *targets))
            except ValueError as error:
                bad.add(f"{where}: {error}")
                row = {}
            else:
                is_first = n_rows == bad.n + 1  # of the good ones
                if is_first and not any(tag in row for tag in targets):
                    names = f"no column {' or '.join(targets)}, but {', '.join(row)}"
                    raise SDRRLError(f"{bad.path}: {names}. Name them so.")
            number += 1
            texts = {tag: (row[tag].strip(),) for tag in (source, *targets) if (row.get(tag) or "").strip()}
            for target in [tag for tag in targets if tag in texts] or [""]:  # without a translation, to be rejected
                original, translation = texts.get(source, ()), texts.get(target, ())
                yield Pair(f"parallel-{number}", target, original, translation, is_sentence=True)
        if not n_rows:
            raise SDRRLError(f"{bad.path} is empty. Give a sentence and its translation a line, or leave it out.")
        bad.check(n_rows, "Correct or remove them.")


def _by_language(row: dict[str, Any] | ValueError, tags: tuple[str, ...]) -> dict[str, str | None]:
    """
    The sentences of a row by the tags of their languages.

    Raises:
        `ValueError`: saying what is wrong with it.
    """
    if isinstance(row, ValueError):
        raise row
    cells = row["translation"] if isinstance(row.get("translation"), dict) else row
    has_none = "translation" in cells and not any(tag in cells for tag in tags)  # a text or list, and no columns
    if has_none or not all(isinstance(cells.get(tag), str | None) for tag in tags):
        raise ValueError("the sentences must be text")
    return cells


def _read_flores(tags: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Its sentences, from `SDRRL_DATA_DIR` or downloaded, as its tasks have them."""
    hub.unreachable()  # before `datasets` asks, again and again
    try:
        texts = [flores.sentences(LANGUAGES[tag].flores) for tag in tags]
    except OSError as error:
        raise SDRRLError(f"Cannot read {FLORES}: {error} Or name other sentences as `parallel`.") from error
    sizes = [len(lines) for lines in texts]
    if len({*sizes}) > 1:
        raise SDRRLError(f"FLORES-200: {sizes} sentences in {tags}, which do not match. Take all from one release.")
    for number, sentences in enumerate(zip(*texts, strict=True), 1):
        yield f"sentence {number}", dict(zip(tags, sentences, strict=True))


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
    reasons = (reject_sentence(pair, source) for pair in pairs)
    found = zip(pairs, reasons, strict=True)
    return [replace(pair, system=system, reason=why and f"parallel/{why}") for pair, why in found]


def read_sentences(folder: Path) -> Iterator[Pair]:
    """The checked sentences of a build. Of equal ones, all but the first are bad."""

    def key(pair: Pair) -> int:
        return hash64(repr((pair.language, pair.source, pair.target)))

    return first_of_equal(read_shards(folder, Pair), key, "parallel/duplicate")


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
