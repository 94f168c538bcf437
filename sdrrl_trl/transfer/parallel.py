"""Reading parallel sentences for translation and completion records."""

from collections.abc import Iterator
from itertools import zip_longest

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
            Tags of interest.

    Raises:
        `SDRRLError`: for files of different lengths, for a column that is not text, and for a corpus without any of
            the languages, naming the line.
    """
    number = 0
    for corpus in corpora:
        rows = _read_aligned(corpus) if isinstance(corpus, dict) else read_rows(corpus)
        known = False
        for where, row in rows:
            row = row.get("translation", row)
            if not isinstance(row, dict) or any(not isinstance(row.get(tag), str | None) for tag in languages):
                raise SDRRLError(f"{where}: the sentences must be text. Correct or remove the line.")
            known = known or any(tag in row for tag in languages)
            number += 1
            yield Item(
                f"parallel-{number}", texts={t: [row[t].strip()] for t in languages if (row.get(t) or "").strip()}
            )
        if not known:
            raise SDRRLError(f"`parallel`: {corpus} has no column {' or '.join(languages)}. Name its columns so.")


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


def reject_sentence(item: Item, source: str) -> str | None:
    """Reason to reject a parallel sentence. Thresholds are ours."""
    if not item.texts:
        return "empty"
    lengths = {tag: len(texts[0]) for tag, texts in item.texts.items()}
    if max(lengths.values()) > MAX_CHARACTERS:
        return "too_long"
    original = item.texts.get(source)
    for tag, texts in item.texts.items():
        if tag == source or original is None:
            continue
        longer, shorter = max(lengths[tag], lengths[source]), min(lengths[tag], lengths[source])
        if longer >= 40 and longer / shorter > 3:
            return "length_ratio"
        if texts == original and shorter >= 20:
            return "untranslated"
    return None
