"""
Rows of files and data sets, as they are written: no reader guesses types, and no cache comes between, so that what is
hashed is what is read.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from sdrrl_trl.utils import SDRRLError


Rows = Iterator[tuple[str, dict[str, Any]]]


def read_rows(path: str, name: str | None = None, split: str = "train") -> Rows:
    """
    Rows of a file or data set, each with where it stands, for errors.

    Args:
        path (`str`): File, or local folder or hub id of a data set.
        name (`str`, *optional*): Configuration of the data set.
        split (`str`, *optional*, defaults to `"train"`): Split of it, such as `"train[:1000]"`.

    Raises:
        `SDRRLError`: if the data cannot be read.
    """
    with reading(path):
        if os.path.isdir(path):
            splits = _splits_of_folder(path, name)
        elif os.path.exists(path) or _reader(path):
            if name is not None or not split.startswith("train"):
                raise SDRRLError(f"The file {path} has no `name` or `split`. Leave them out.")
            splits = {"train": partial(_read_file, path)}
        elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            yield from _read_hub(path, name, split)
            return
        else:
            raise SDRRLError(f"There is no file or folder {path!r}.")
        yield from _part(splits, split)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Makes an [`SDRRLError`] of whatever a reader raises, from those of compressed files to the hub's."""
    try:
        yield
    except SDRRLError:
        raise
    except Exception as error:
        raise SDRRLError(f"Cannot read {what}: {error.__cause__ or error}. Text must be UTF-8.") from error


@cache
def warn(message: str) -> None:
    """Prints a warning: once, though files are read several times, and from the first of several processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {message}", file=sys.stderr)


def open_text(path: str, newline: str | None = "\n") -> TextIO:
    """
    Opens a text file in UTF-8, which may be compressed. By default only `\\n` ends a line: other line breaks, such as
    U+2028, stand within texts.
    """
    opener = _COMPRESSED.get(Path(path).suffix.lower(), open)
    return io.TextIOWrapper(opener(path, "rb"), encoding="utf-8-sig", newline=newline)


def read_parquet(path: str | Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, a thousand in memory at a time."""
    # Opened here, for pyarrow takes some paths as addresses
    with open(path, "rb") as file, pyarrow.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(1000):
            yield from batch.to_pylist()


# ---- One file


def _reader(path: str) -> Callable[[str], Rows] | None:
    """The reader of a kind of file, told by the ending of its name."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
        return _READERS.get(suffixes[-1]) if suffixes and suffixes[-1] != ".parquet" else None
    return _READERS.get(suffixes[-1]) if suffixes else None


def _read_file(path: str) -> Rows:
    reader = _reader(path)
    if reader is None:
        raise SDRRLError(
            f"Files such as {path} are not read. These are, told by the ending of the name: {', '.join(_READERS)}, "
            f"and all but Parquet compressed, with {', '.join(_COMPRESSED)} behind it."
        )
    # Each stage reads the file again
    if os.path.exists(path) and not os.path.isfile(path):
        raise SDRRLError(f"{path} can be read only once. Write it to a file.")
    return reader(path)


def _read_json_lines(path: str) -> Rows:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _checked(_parse(line, where), where)


def _read_json(path: str) -> Rows:
    """A list of objects, or one object a line, as many `.json` files are."""
    with open_text(path) as file:
        start = next((char for char in iter(partial(file.read, 1), "") if not char.isspace()), "")
        rows = _parse(start + file.read(), path) if start == "[" else None
    if rows is None:
        yield from _read_json_lines(path)
        return
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", _checked(row, f"{path}, row {number}")


def _parse(text: str, where: str) -> Any:
    try:
        # Numbers as they are written: 4.50 and 007 of an id are no 4.5 and 7
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise SDRRLError(f"{where}: not a valid JSON object ({error}).") from error


def _checked(row: Any, where: str) -> dict[str, Any]:
    try:
        if not isinstance(row, dict):
            raise ValueError("not an object")
        json.dumps(row, ensure_ascii=False).encode()  # lone surrogates could not be written again
    except (ValueError, RecursionError) as error:
        raise SDRRLError(f"{where}: not a valid JSON object ({error}).") from error
    return row


def _read_csv(path: str) -> Rows:
    """Cells quoted as in RFC 4180, separated by what separates most of the header, or by what `sep=` names."""
    csv.field_size_limit(2**31 - 1)  # a long text is rejected by itself, not with the file
    with open_text(path, newline="") as file:
        skipped, header = next(((n, line) for n, line in enumerate(file) if line.strip()), (0, ""))
        if named := re.fullmatch(r'"?sep=(.)"?\s*', header):  # written by and for Excel
            separator, skipped, header = named[1], skipped + 1, next(file, "")
        else:
            separator = max(",;\t|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), ())))
        # Strict, for else an open quotation mark swallows the lines that follow
        reader = csv.reader(chain([header], file), delimiter=separator, strict=True)
        yield from _as_rows(path, ((skipped + reader.line_num, cells) for cells in reader))


def _read_tsv(path: str) -> Rows:
    """Every line is a row and every tab separates: a quotation mark is a character like others."""
    with open_text(path) as file:
        for where, row in _as_rows(path, ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(file, 1))):
            if any(map(_is_quoted, row.values())):
                warn(f"{where} seems to be quoted as in CSV. Quotes stay in TSV: call the file .csv, if it is one.")
            yield where, row


def _is_quoted(text: str) -> bool:
    """Whether a cell is quoted as in CSV, which pandas does in TSV, too."""
    return text[:1] == text[-1:] == '"' and '""' in text[1:-1] and '"' not in text[1:-1].replace('""', "")


def _as_rows(path: str, lines: Iterator[tuple[int, list[str]]]) -> Rows:
    header = next((cells for _, cells in lines), [])
    if twice := [name for name, n in Counter(header).items() if n > 1 and name]:
        raise SDRRLError(f"{path}: the column {', '.join(twice)} stands there twice. Rename one.")
    for number, cells in lines:
        if not any(cells):  # an empty line
            continue
        where = f"{path}, line {number}"
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise SDRRLError(f"{where}: not as many cells as there are columns. Correct the line.")
        yield where, dict(zip(header, cells, strict=False))


def _read_parquet(path: str) -> Rows:
    return ((f"{path}, row {number}", row) for number, row in enumerate(read_parquet(path), 1))


_COMPRESSED = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path, mode: pyarrow.input_stream(open(path, mode), compression="zstd"),
}
_READERS = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".tab": _read_tsv,
    ".parquet": _read_parquet,
}


# ---- Data sets


def _splits_of_folder(path: str, name: str | None) -> dict[str, Callable[[], Rows]]:
    """What reads each split of a folder: one written by `save_to_disk`, or one with files of data."""
    from datasets import Dataset, load_dataset_builder, load_from_disk

    if re.search(r"[*?\[\]]|::", os.path.realpath(path)):
        # `datasets` takes them for patterns and addresses, and may read another folder
        raise SDRRLError(f"The folder {path} has one of `*?[]` or `::` in its path. Rename it, or name its files.")
    if any(os.path.exists(os.path.join(path, file)) for file in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(path)
        saved = {"train": saved} if isinstance(saved, Dataset) else saved
        return {split: partial(_numbered, path, data) for split, data in saved.items()}
    with _named_configurations(path):
        files = load_dataset_builder(path, name).config.data_files  # which reads none of them
    return {str(split): partial(_read_files, list(paths)) for split, paths in files.items()}


def _read_hub(path: str, name: str | None, split: str) -> Rows:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    with _named_configurations(path):
        data = load_dataset(path, name, split=split)
    yield from _numbered(path, data)


@contextmanager
def _named_configurations(path: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if found := re.search(r"available configs: (\[.*?\])", str(error)):
            raise SDRRLError(f"{path} has several configurations. Set `name` to one of {found[1]}.") from error
        raise


def _numbered(path: str, data: Any) -> Rows:
    return ((f"{path}, row {number}", row) for number, row in enumerate(data, 1))


def _read_files(paths: list[str]) -> Rows:
    return chain.from_iterable(map(_read_file, paths))


def _part(splits: dict[str, Callable[[], Rows]], split: str) -> Rows:
    """The rows of a split, or of a part of it, as `datasets` writes them: `train[:10%]`."""
    if split in splits:
        yield from splits[split]()
        return
    from datasets import ReadInstruction

    lengths = {name: sum(1 for _ in read()) for name, read in splits.items()}
    for part in ReadInstruction.from_spec(split).to_absolute(lengths):
        yield from islice(splits[part.splitname](), part.from_, part.to)
