"""Reading parallel sentences for translation and completion records."""

from collections.abc import Iterator
from itertools import zip_longest

from sdrrl_trl.languages import in_language
from sdrrl_trl.transfer.items import Item
from sdrrl_trl.transfer.seeds import read_rows
from sdrrl_trl.utils import SDRRLError


MAX_CHARACTERS = 2_000


def read_parallel(corpora: list[str | dict[str, str]], languages: list[str]) -> Iterator[Item]:
    """
    Sentences in the languages asked for, as far as a corpus has them.

    Args:
        corpora (`list`):
            Each a file or data set with one column per language tag (or one column `translation` that holds them, as
            on the hub), or a mapping of tags to line-aligned text files.
        languages (`list[str]`):
            Tags of interest, the source language first.

    Raises:
        `SDRRLError`: for files of different lengths, for a column that is not text, and for a corpus without any of
            the languages, naming the line.
    """
    number = 0
    for corpus in corpora:
        rows = _read_aligned(corpus) if isinstance(corpus, dict) else read_rows(corpus)
        known, columns = False, "no row"
        for where, row in rows:
            row = row.get("translation", row)
            if not isinstance(row, dict) or any(not isinstance(row.get(tag), str | None) for tag in languages):
                raise SDRRLError(f"{where}: the sentences must be text. Correct or remove the line.")
            known = known or any(tag in row for tag in languages[1:])
            columns = ", ".join(map(str, row))
            number += 1
            yield Item(
                f"parallel-{number}", texts={t: [row[t].strip()] for t in languages if (row.get(t) or "").strip()}
            )
        if not known:
            raise SDRRLError(
                f"`parallel`: {corpus} has no column {' or '.join(languages[1:])}, but {columns}. Name its columns so."
            )


def _read_aligned(files: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        opened = {tag: open(path, encoding="utf-8-sig", newline="\n") for tag, path in files.items()}  # noqa: SIM115
        for number, lines in enumerate(zip_longest(*opened.values()), 1):
            where = f"{' and '.join(files.values())}, line {number}"
            if None in lines:
                raise SDRRLError(f"{where}: one file is shorter than the other, so their lines do not match.")
            yield where, dict(zip(files, lines, strict=True))
        for file in opened.values():
            file.close()
    except (OSError, UnicodeDecodeError) as error:
        raise SDRRLError(f"Cannot read {', '.join(files.values())}: {error}. Give UTF-8 text files.") from error


def bad_languages(item: Item, source: str) -> dict[str, str]:
    """Languages in which a parallel sentence is no good, with the reason. Thresholds are ours."""
    reasons = {}
    original = item.texts.get(source, [""])[0]
    for tag, (text,) in item.texts.items():
        longer, shorter = sorted((len(text), len(original)), reverse=True)
        if len(text) > MAX_CHARACTERS:
            reasons[tag] = "too_long"
        elif not in_language(text, tag):
            reasons[tag] = "wrong_language"
        elif tag != source and original and longer >= 40 and longer / shorter > 3:
            reasons[tag] = "length_ratio"
        elif tag != source and text == original and shorter >= 20:
            reasons[tag] = "untranslated"
    return reasons
