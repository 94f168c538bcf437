"""Reading the questions, with errors that name file and line. They stay on disk: each stage reads them again."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdrrl_trl.transfer.rows import Seed, hash64
from sdrrl_trl.utils import SDRRLError


# Column of the data by what it holds, with the names that are tried if none is given
COLUMNS = {
    "id": ("id",),
    "question": ("instruction", "question", "prompt"),
    "input": ("input",),
    "messages": ("messages", "conversation"),
    "reference": ("output", "response", "answer", "completion"),
}


class Seeds:
    """
    All questions of a file or data set. Read once at the start, to find what is wrong, and again by each loop.

    Args:
        source (`dict[str, Any]`):
            `path` (JSON Lines, JSON, CSV, TSV or Parquet file, or a data set: local folder or hub id) and, optionally,
            `name` and `split` of the data set, and `columns`: the column for each of `id`, `question`, `input`
            (appended to the question), `messages` and `reference`. Default: the usual names (`COLUMNS`).

    Attributes:
        sha256 (`str`): Hash of all questions.
        n_characters (`int`): Length of all questions together.
        without_reference (`str`, *optional*): Id of the first question that came without a reference answer.

    Raises:
        `SDRRLError`: for a broken line, a question without text, a repeated id, naming the line; for no question.
    """

    def __init__(self, source: dict[str, Any]):
        self._source = source
        self._n, self.n_characters, self.without_reference = 0, 0, None
        ids: set[int] = set()
        digest = hashlib.sha256()
        for where, seed in self._read():
            # 64 bits each, so that the ids of millions of questions fit into memory
            ids.add(hash64(seed.source_id))
            self._n += 1
            if len(ids) < self._n:
                raise SDRRLError(f"{where}: the id {seed.source_id!r} stands there twice. Ids must be unique.")
            self.n_characters += sum(map(len, seed.turns))
            if seed.reference is None and self.without_reference is None:
                self.without_reference = seed.source_id
            digest.update(json.dumps(vars(seed)).encode())
        if not self._n:
            raise SDRRLError(f"{source['path']} is empty. Give a file with one question a line.")
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Seed]:
        return (seed for _, seed in self._read())

    def _read(self) -> Iterator[tuple[str, Seed]]:
        given = self._source.get("columns", {})
        columns = COLUMNS | {name: (column,) for name, column in given.items()}
        options = {name: value for name, value in self._source.items() if name != "columns"}
        for number, (where, row) in enumerate(read_rows(**options), 1):
            missing = sorted(set(given.values()) - set(row)) if number == 1 else []
            if missing:
                raise SDRRLError(f"{where}: no column {', '.join(missing)}. There are: {', '.join(row)}.")
            yield where, _seed(row, columns, where, f"row-{number}")


def _seed(row: dict[str, Any], columns: dict[str, tuple[str, ...]], where: str, default_id: str) -> Seed:
    given = {name: next((row[c] for c in names if row.get(c) is not None), None) for name, names in columns.items()}
    source_id = default_id if given["id"] in (None, "") else str(given["id"])
    question, reference, messages = given["question"], given["reference"], given["messages"]
    if messages is None:
        if not isinstance(question, list) and not (isinstance(question, str) and question.strip()):
            raise SDRRLError(
                f"{where}: no text in {' or '.join(columns['question'])}, which the model is to answer; there are "
                f"{', '.join(row)}. Complete or remove the row, or name the right one in `columns` of `seeds`."
            )
        # Each may be text, or messages as in TRL
        if isinstance(question, str):
            question = [{"role": "user", "content": f"{question.strip()}\n\n{given['input'] or ''}"}]
        if isinstance(reference, str):
            reference = [{"role": "assistant", "content": reference}]
    try:
        messages = messages if messages is not None else [*question, *(reference or [])]
        roles = [message["role"] for message in messages]
        texts = [message["content"].strip() for message in messages]
    except (TypeError, KeyError, AttributeError) as error:
        raise SDRRLError(
            f"{where}: answers must be text, `messages` must list `role` and `content` (text)."
        ) from error
    system = reference = None
    if roles[:1] == ["system"]:
        roles, system = roles[1:], texts.pop(0)
    if roles[-1:] == ["assistant"]:
        roles, reference = roles[:-1], texts.pop() or None
    if len(roles) % 2 == 0 or roles != (["user", "assistant"] * len(roles))[: len(roles)] or not all(texts):
        raise SDRRLError(
            f"{where}: the roles of `messages` are {', '.join(map(str, roles)) or 'none'}; they must be user and "
            "assistant in turn, each with text. Correct or remove the row."
        )
    return Seed(source_id, tuple(texts), reference, system)


def read_rows(path: str, name: str | None = None, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Rows of a file or data set, each with where it stands, for errors.

    Args:
        path (`str`): File, or local folder or hub id of a data set.
        name (`str`, *optional*): Configuration of the data set.
        split (`str`, *optional*, defaults to `"train"`): Split of it, such as `"train[:1000]"`.

    Raises:
        `SDRRLError`: if the data cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".jsonl", ".csv", ".tsv") and (name is not None or split != "train"):
        raise SDRRLError(f"The file {path} has no `name` or `split`. Leave them out.")
    try:
        # JSON Lines and tables are not left to `datasets`: it makes dates of texts and 7 of the id 007
        if suffix == ".jsonl":
            yield from _read_json_lines(path)
        elif suffix in (".csv", ".tsv"):
            yield from _read_table(path, "\t" if suffix == ".tsv" else ",")
        else:
            yield from _read_data_set(path, name, split)
    except SDRRLError:
        raise
    except Exception as error:  # many kinds, from the readers of csv, pandas and pyarrow to the hub's
        raise SDRRLError(f"Cannot read {path}: {error.__cause__ or error}. Text must be UTF-8.") from error


def _read_json_lines(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                json.dumps(row, ensure_ascii=False).encode()  # lone surrogates could not be written again
            except (ValueError, RecursionError) as error:
                raise SDRRLError(f"{path}, line {number}: not a valid JSON object ({error}).") from error
            yield f"{path}, line {number}", row


def _read_table(path: str, separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in (reader := csv.DictReader(file, delimiter=separator)):
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise SDRRLError(f"{where}: not as many cells as there are columns. Correct the line.")
            yield where, row


def _read_data_set(path: str, name: str | None, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    file_format = {".json": "json", ".parquet": "parquet"}.get(Path(path).suffix.lower())
    if file_format:
        data = load_dataset(file_format, data_files=path, split=split)
    else:
        data = load_dataset(path, name, split=split)
    for number, row in enumerate(data, 1):
        yield f"{path}, row {number}", row
