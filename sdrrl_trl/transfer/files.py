"""
Rows of files and data sets, as they are written: no reader guesses types, and no cache comes between, so that what is
hashed is what is read.
"""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from sdrrl_trl import hub
from sdrrl_trl.utils import SDRRLError, is_first_process, on_hub


# Where each stands, and what is in it; of a bad one, what is wrong with it
Rows = Iterator[tuple[str, dict[str, Any] | ValueError]]


def read_rows(path: str, name: str | None = None, split: str = "train") -> Rows:
    """
    Rows of a file or data set, each with where it stands there. In the place of a bad one, such as a line that is no
    JSON, comes an error, for one bad row should not cost the others.

    Args:
        path (`str`): File, or local folder or hub id of a data set.
        name (`str`, *optional*): Configuration of the data set.
        split (`str`, *optional*, defaults to `"train"`): Split of it, such as `"train[:1000]"`.

    Raises:
        `SDRRLError`: if the data cannot be read.
    """
    with reading(path):
        if os.path.isdir(path):
            yield from _part(_splits_of_folder(path, name), split)
        elif os.path.exists(path) or _reader_of(path):
            if name is not None or not split.startswith("train"):
                raise SDRRLError(f"The file {path} has no `name` or `split`. Leave them out.")
            if not os.path.exists(path):
                raise SDRRLError(f"Cannot read {path}: No such file or folder.")
            yield from _part({"train": partial(_read_file, path)}, split)
        elif on_hub(path):
            from datasets import disable_progress_bars, load_dataset

            disable_progress_bars()
            hub.unreachable()  # before `datasets` asks, again and again
            with reading(f"{path} from the hub with `name` {name}, for there is no such file or folder"):
                yield from _numbered(load_dataset(path, name, split=split))
        else:
            raise SDRRLError(f"Cannot read {path}: No such file or folder.")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Makes an [`SDRRLError`] of whatever a reader raises, from those of compressed files to the hub's."""
    try:
        yield
    except SDRRLError:
        raise
    except Exception as error:
        why = hub.explain(error) or f"{error.__cause__ or error}."
        if isinstance(error, UnicodeError):
            why += " Text must be UTF-8: save it as such, or convert it with `iconv`."
        raise SDRRLError(f"Cannot read {what}: {why}") from error


@cache
def warn(message: str) -> None:
    """Prints a warning: once, though files are read several times, and from the first of several processes."""
    if is_first_process():
        print(f"warning: {message}", file=sys.stderr)


class BadRows:
    """Counts the bad rows of a file or data set. Some are left out with a warning, more than half are an error."""

    def __init__(self, path: str):
        self.path, self.n, self.first = path, 0, ""

    def add(self, problem: str) -> None:
        self.n += 1
        self.first = self.first or problem

    def check(self, n: int, way_out: str) -> None:
        """To be called behind the last of `n` rows; `way_out` says what to do about them."""
        if self.n and 2 * self.n > n:
            raise SDRRLError(f"{self.path}, {self.first}. Bad rows: {self.n} of {n}. {way_out}")
        if self.n:
            warn(f"{self.path}, {self.first}. Bad rows: {self.n} of {n}, which are left out.")


def open_text(path: str, newline: str | None = "\n") -> TextIO:
    """
    Opens a text file in UTF-8, which may be compressed. By default only `\\n` ends a line: other line breaks, such as
    U+2028, stand within texts.
    """
    compression = "detect" if Path(path).suffix.lower() in _COMPRESSED else None
    return io.TextIOWrapper(pyarrow.input_stream(path, compression), encoding="utf-8-sig", newline=newline)


def read_parquet(path: str | Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, a thousand in memory at a time."""
    # Opened here, for pyarrow takes some paths as addresses
    with open(path, "rb") as file, pyarrow.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(1000):
            yield from batch.to_pylist()


# ---- One file


def _reader_of(path: str) -> Callable[[str], Rows] | None:
    """The reader of a kind of file, told by the ending of its name without that of its compression."""
    ending = Path(path).suffix.lower()
    return _READERS.get(Path(path).with_suffix("").suffix.lower() if ending in _COMPRESSED else ending)


def _read_file(path: str) -> Rows:
    if (reader := _reader_of(path)) is None:
        raise SDRRLError(
            f"Files such as {path} are not read. These are, told by the ending of the name: {', '.join(_READERS)}, "
            f"and all but Parquet compressed, with {', '.join(_COMPRESSED)} behind it."
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise SDRRLError(f"{path} can be read only once, but each stage reads it again. Write it to a file.")
    return reader(path)


def _first_line(file: TextIO) -> tuple[int, str]:
    """The first line that is not empty, with its number."""
    return next(((number, line) for number, line in enumerate(file, 1) if line.strip()), (0, ""))


def _read_json(path: str) -> Rows:
    """One object a line, or a list of objects. Numbers as they are written: 4.50 is not 4.5."""
    parse = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode
    with open_text(path) as file:
        start, first = _first_line(file)
        is_list = first.lstrip().startswith("[")
        lines = map(json.dumps, parse(first + file.read())) if is_list else chain([first], file)
        for number, line in enumerate(lines, 1 if is_list else start):
            if not line.strip():
                continue
            where = f"{'row' if is_list else 'line'} {number}"
            try:
                row = parse(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                json.dumps(row, ensure_ascii=False).encode()  # lone surrogates could not be written again
            except (ValueError, RecursionError) as error:
                row = ValueError(f"not a JSON object ({error}). Write one a line, or a list")
            yield where, row


def _read_csv(path: str) -> Rows:
    """Cells quoted as in RFC 4180, separated by what separates most of the header, or by what `sep=` names."""
    csv.field_size_limit(2**31 - 1)  # a long text is rejected by itself, not with the file
    with open_text(path, newline="") as file:
        start, header = _first_line(file)
        if named := re.fullmatch(r'"?sep=(.)"?\s*', header):  # written by and for Excel
            separator, start, header = named[1], start + 1, next(file, "")
        else:
            separator = max(",;\t|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), ())))
        # Strict, for else an open quotation mark swallows the lines that follow
        reader = csv.reader(chain([header], file), delimiter=separator, strict=True)
        yield from _as_rows(path, ((start - 1 + reader.line_num, cells) for cells in reader))


def _read_tsv(path: str) -> Rows:
    """Every line is a row and every tab separates: a quotation mark is a character like others."""
    with open_text(path) as file:
        yield from _as_rows(path, ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(file, 1)))


def _as_rows(path: str, lines: Iterator[tuple[int, list[str]]]) -> Rows:
    _, header = next(lines, (0, []))
    if len(names := [name for name in header if name]) > len(set(names)):
        raise SDRRLError(f"{path}: a column stands there twice: {', '.join(names)}. Rename one.")
    for number, cells in lines:
        if any(cells):
            is_whole = len(cells) == len(header)
            row = dict(zip(header, cells, strict=True)) if is_whole else ValueError("not as many cells as columns")
            yield f"line {number}", row


def _read_parquet(path: str) -> Rows:
    return _numbered(read_parquet(path))


def _numbered(rows: Iterable[dict[str, Any]]) -> Rows:
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


_COMPRESSED = (".gz", ".bz2", ".zst")
_READERS = dict.fromkeys((".jsonl", ".ndjson", ".json"), _read_json)
_READERS |= {".csv": _read_csv, ".tsv": _read_tsv, ".tab": _read_tsv, ".parquet": _read_parquet}


# ---- Folders and their splits


def _splits_of_folder(path: str, name: str | None) -> dict[str, Callable[[], Rows]]:
    """What reads each split of a folder: one written by `save_to_disk`, or one with files of data."""
    from datasets import Dataset, load_dataset_builder, load_from_disk

    if re.search(r"[*?\[\]]|::", os.path.realpath(path)):
        # `datasets` takes them for patterns and addresses, and may read another folder
        raise SDRRLError(f"The folder {path} has one of `*?[]` or `::` in its path. Rename it, or name its files.")
    if not {"state.json", "dataset_dict.json"}.isdisjoint(os.listdir(path)):
        saved = load_from_disk(path)
        saved = {"train": saved} if isinstance(saved, Dataset) else saved
        return {split: partial(_numbered, data) for split, data in saved.items()}
    with reading(f"{path} with `name` {name}"):
        files = load_dataset_builder(os.path.realpath(path), name).config.data_files  # which reads none of them
    return {str(split): partial(_read_files, paths) for split, paths in files.items()}


def _read_files(paths: list[str]) -> Rows:
    return ((f"{Path(path).name}, {where}", row) for path in paths for where, row in _read_file(path))


def _part(splits: dict[str, Callable[[], Rows]], split: str) -> Rows:
    """The rows of a split, or of a part of it, as `datasets` writes them: `train[:10%]`."""
    if split in splits:
        yield from splits[split]()
        return
    from datasets import ReadInstruction

    lengths = {name: sum(1 for _ in read()) for name, read in splits.items()}
    for part in ReadInstruction.from_spec(split).to_absolute(lengths):
        yield from islice(splits[part.splitname](), part.from_, part.to)
