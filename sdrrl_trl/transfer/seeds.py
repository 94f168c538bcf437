"""Reading the questions, with errors that name file and line. They are kept on disk, not in memory."""

import csv
import hashlib
import json
import random
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, sha256


# Column of the data by what we call it, with the names that are tried if none is given
COLUMNS = {
    "id": ("id",),
    "question": ("instruction", "question", "prompt"),
    "input": ("input",),
    "messages": ("messages", "conversation"),
    "reference": ("output", "response", "answer", "completion"),
}


@dataclass(frozen=True)
class Seed:
    """
    A question in the source language.

    Args:
        id (`str`): Unique id.
        turns (`tuple[str, ...]`): The conversation so far: user, assistant, ..., user.
        reference (`str`, *optional*): Answer that came with the data.
        system (`str`, *optional*): System message that came with the data.
    """

    id: str
    turns: tuple[str, ...]
    reference: str | None = None
    system: str | None = None

    @property
    def key(self) -> str:
        """What makes the question this question, see [`key_of`]."""
        return key_of("\n".join((self.system or "", *self.turns)))


def key_of(text: str) -> str:
    """Hash of a text that is the same for texts that differ in case, spaces or sentence punctuation only."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(r"[\"'“”‘’«»,;:!?¿¡…()]|\.(?!\w)", " ", plain)
    return sha256(" ".join(plain.split()) or text)


class Seeds:
    """
    All questions, in a temporary SQLite database on disk: memory does not grow with their number.

    Args:
        path (`str`):
            JSON Lines, JSON, CSV, TSV or Parquet file, or a data set (local folder or hub id).
        split (`str`, *optional*, defaults to `"train"`):
            Split of the data set.
        columns (`dict[str, str]`, *optional*):
            Column of the data for each of `id`, `question`, `input` (appended to the question), `messages` and
            `reference`. Default: the usual names (`COLUMNS`).
        limit (`int`, *optional*):
            Use only so many.
        random_seed (`int`, *optional*):
            Take those at random. Default: the first ones.

    Raises:
        `SDRRLError`: for a broken line, a question without text, a repeated id, naming the line; for no question.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        columns: dict[str, str] | None = None,
        limit: int | None = None,
        random_seed: int | None = None,
    ):
        self._database = sqlite3.connect("")  # a file that goes with the process
        self._database.execute("CREATE TABLE seeds (n INTEGER PRIMARY KEY, id TEXT UNIQUE, row TEXT, length INT)")
        first = limit if random_seed is None else None
        for number, (where, row) in enumerate(read_rows(path, split)):
            if number == first:
                break
            if number == 0:
                columns = _find_columns(row, columns or {}, where)
            seed = _seed(row, columns, where, f"row-{number + 1}")
            try:
                self._database.execute(
                    "INSERT INTO seeds VALUES (?, ?, ?, ?)",
                    (
                        number,
                        seed.id,
                        json.dumps([seed.turns, seed.reference, seed.system]),
                        sum(map(len, seed.turns)),
                    ),
                )
            except sqlite3.IntegrityError as error:
                raise SDRRLError(f"{where}: the id {seed.id!r} stands there twice. Ids must be unique.") from error
        if random_seed is not None and limit is not None and limit < len(self):
            kept = random.Random(random_seed).sample(range(len(self)), limit)
            self._database.execute("CREATE TEMP TABLE kept (n INTEGER PRIMARY KEY)")
            self._database.executemany("INSERT INTO kept VALUES (?)", ((n,) for n in kept))
            self._database.execute("DELETE FROM seeds WHERE n NOT IN (SELECT n FROM kept)")
        if not len(self):
            raise SDRRLError(f"{path} is empty. Give a file with one question a line.")
        digest = hashlib.sha256()
        for id, row in self._database.execute("SELECT id, row FROM seeds ORDER BY n"):
            digest.update(json.dumps([id, row]).encode())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM seeds").fetchone()[0]

    def __iter__(self) -> Iterator[Seed]:
        """In the order of the file."""
        return map(_from_row, self._database.execute("SELECT id, row FROM seeds ORDER BY n"))

    def batches(self, size: int, max_characters: int) -> Iterator[list[Seed]]:
        """Batches of questions of like length, without those that are too long to be asked."""
        query = "SELECT id, row FROM seeds WHERE length <= ? ORDER BY length, id"
        rows = self._database.execute(query, (max_characters,))
        while batch := rows.fetchmany(size):
            yield [_from_row(row) for row in batch]

    def count(self, max_characters: int) -> int:
        """Number of questions that are not too long to be asked."""
        query = "SELECT count(*) FROM seeds WHERE length <= ?"
        return self._database.execute(query, (max_characters,)).fetchone()[0]

    def characters(self) -> int:
        """Length of all questions together."""
        return self._database.execute("SELECT sum(length) FROM seeds").fetchone()[0]

    def without_reference(self) -> str | None:
        """Id of a question that came without a reference answer."""
        query = "SELECT id FROM seeds WHERE json_extract(row, '$[1]') IS NULL ORDER BY n"
        found = self._database.execute(query).fetchone()
        return None if found is None else found[0]


def _from_row(row: tuple[str, str]) -> Seed:
    turns, reference, system = json.loads(row[1])
    return Seed(row[0], tuple(turns), reference, system)


def read_rows(path: str, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Rows of a file or data set, each with where it stands, for errors.

    Raises:
        `SDRRLError`: if the data cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        yield from _read_json_lines(path)
        return
    if suffix in (".csv", ".tsv"):
        yield from _read_csv(path, "\t" if suffix == ".tsv" else ",")
        return
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    file_formats = {".json": "json", ".parquet": "parquet"}
    try:
        if suffix in file_formats:
            data = load_dataset(file_formats[suffix], data_files=path, split="train")
        else:
            data = load_dataset(path, split=split)
    except Exception as error:  # many kinds, from the readers of pandas and pyarrow to the hub's
        raise SDRRLError(f"Cannot read {path} (split {split!r}): {error.__cause__ or error}") from error
    for number, row in enumerate(data, 1):
        yield f"{path}, row {number}", row


def _read_json_lines(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    if "\\ud" in line or "\\uD" in line:
                        json.dumps(row, ensure_ascii=False).encode()  # lone surrogates cannot be written again
                except (ValueError, RecursionError) as error:
                    raise SDRRLError(f"{where}: not a valid JSON object ({error}).") from error
                yield where, row
    except (OSError, UnicodeDecodeError) as error:
        raise SDRRLError(f"Cannot read {path}: {error}. Give a UTF-8 file with one JSON object a line.") from error


def _read_csv(path: str, separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table, all cells as text: a reader that guesses types changes ids such as 001."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for row in (reader := csv.DictReader(file, delimiter=separator)):
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise SDRRLError(f"{where}: not as many cells as there are columns. Correct the line.")
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SDRRLError(f"Cannot read {path}: {error}. Give a UTF-8 file with a line of column names.") from error


def _find_columns(row: dict[str, Any], given: dict[str, str], where: str) -> dict[str, str]:
    """Which column holds what."""
    if not isinstance(given, dict) or not all(isinstance(column, str) for column in given.values()):
        raise SDRRLError(f'`columns` must map names to columns, such as {{"question": "text"}}, got {given!r}.')
    unknown = sorted(set(given) - set(COLUMNS))
    if unknown:
        raise SDRRLError(f"`columns` names {', '.join(unknown)}. Known: {', '.join(COLUMNS)}.")
    missing = sorted(column for column in given.values() if column not in row)
    if missing:
        raise SDRRLError(f"{where}: no column {', '.join(missing)}. There are: {', '.join(row)}. Correct `columns`.")
    found = {name: next((c for c in usual if c in row), usual[0]) for name, usual in COLUMNS.items()} | given
    if found["question"] not in row and found["messages"] not in row:
        raise SDRRLError(
            f"{where}: no text in `instruction` (or `question`), and no `messages`. There are: {', '.join(row)}. Name "
            "the right one in `columns`."
        )
    return found


def _seed(row: dict[str, Any], columns: dict[str, str], where: str, default_id: str) -> Seed:
    given = {name: row.get(column) for name, column in columns.items()}
    seed_id = default_id if given["id"] in (None, "") else str(given["id"])
    if re.fullmatch(r"parallel-\d+", seed_id):
        raise SDRRLError(f"{where}: the id {seed_id!r} is kept for parallel sentences. Give it another prefix.")
    messages = given["messages"]
    if messages is None and isinstance(given["question"], list):  # prompt and completion as messages, as in TRL
        messages = given["question"]
        if isinstance(given["reference"], list):
            messages, given["reference"] = messages + given["reference"], None
    for name in ("input", "reference"):
        if given[name] is not None and not isinstance(given[name], str):
            raise SDRRLError(
                f"{where}: `{columns[name]}` must be text, got {given[name]!r:.100}. Convert or remove it."
            )
    reference = (given["reference"] or "").strip() or None
    if messages is not None:
        return _from_messages(seed_id, messages, reference, where)
    question = given["question"]
    if not isinstance(question, str) or not question.strip():
        raise SDRRLError(
            f"{where}: no text in `{columns['question']}`. The model would answer an empty question. Complete or "
            "remove the line."
        )
    return Seed(seed_id, (f"{question.strip()}\n\n{given['input'] or ''}".strip(),), reference)


def _from_messages(seed_id: str, messages: Any, reference: str | None, where: str) -> Seed:
    try:
        roles = [message["role"] for message in messages]
        texts = [message["content"].strip() for message in messages]
    except (TypeError, KeyError, AttributeError) as error:
        raise SDRRLError(f"{where}: `messages` must list objects with `role` and `content` (text).") from error
    system = texts[0] if roles[:1] == ["system"] else None
    roles, texts = (roles, texts) if system is None else (roles[1:], texts[1:])
    if roles[-1:] == ["assistant"]:
        roles, texts, reference = roles[:-1], texts[:-1], texts[-1] or None
    if len(roles) % 2 == 0 or roles != (["user", "assistant"] * len(roles))[: len(roles)] or not all(texts):
        raise SDRRLError(
            f"{where}: the roles of `messages` are {', '.join(map(str, roles)) or 'none'}; they must be user and "
            "assistant in turn, each with text. Correct or remove the row."
        )
    return Seed(seed_id, tuple(texts), reference, system)
