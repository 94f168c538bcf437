"""
The working database of a build: the good questions with their translations, what was rejected, and which records could
be made. It is on disk, so that memory does not grow with the number of rows; it is made anew by every run.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrrl_trl.transfer.seeds import Seed, key_of
from sdrrl_trl.utils import sha256


REJECTED = ("source_id", "stage", "reason", "language", "question", "answer")
_SCHEMA = f"""
CREATE TABLE items (n INTEGER PRIMARY KEY, key TEXT UNIQUE, rank TEXT, item TEXT, test INT DEFAULT 0);
CREATE TABLE rejected ({", ".join(REJECTED)});
CREATE TABLE test_questions (key TEXT PRIMARY KEY);
CREATE TABLE candidates (kind TEXT, language TEXT, form TEXT, n INT, test INT, position TEXT, place TEXT);
"""


@dataclass
class Item:
    """
    A question with its answer, or a parallel sentence.

    Args:
        source_id (`str`): Id of the seed, or `parallel-<number>`.
        turns (`tuple[str, ...]`): Conversation in the source language, see [`Seed`]; empty for a parallel sentence.
        answer (`str`): Answer in the source language.
        system (`str`, *optional*): System message.
        texts (`dict[str, list[str]]`):
            By target language: the translated turns and, last, the translated answer. For a parallel sentence, the
            sentence in each language.
        switched (`dict[str, list[str]]`): By target language: code-switched question and answer.
    """

    source_id: str
    turns: tuple[str, ...] = ()
    answer: str = ""
    system: str | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)
    switched: dict[str, list[str]] = field(default_factory=dict)


class Items:
    """
    The working database.

    Args:
        path (`Path`): File, replaced if it exists.
        seed (`int`): Seed of the random choices.
    """

    def __init__(self, path: Path, seed: int):
        self.path, self.seed = path, seed
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        # Nothing here outlives the run: no journal, no waiting for the disk
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")

    def add(self, item: Item, key: str) -> bool:
        """Adds an item; `False` if the same question is there already."""
        try:
            rank = sha256(f"{self.seed}:{key}")
            self._db.execute("INSERT INTO items (key, rank, item) VALUES (?, ?, ?)", (key, rank, _dump(item)))
        except sqlite3.IntegrityError:
            return False
        return True

    def __len__(self) -> int:
        return self._db.execute("SELECT count(*) FROM items").fetchone()[0]

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        """Number and item, in the order in which they were added. Items may be replaced meanwhile."""
        n = 0
        while rows := self._db.execute("SELECT n, item FROM items WHERE n > ? ORDER BY n LIMIT 1000", (n,)).fetchall():
            for n, item in rows:  # noqa: B007
                yield n, _load(item)

    def replace(self, n: int, item: Item) -> None:
        self._db.execute("UPDATE items SET item = ? WHERE n = ?", (_dump(item), n))

    def remove(self, n: int) -> None:
        self._db.execute("DELETE FROM items WHERE n = ?", (n,))

    def reject(self, source_id: str, stage: str, reason: str, language: str, question: str, answer: str) -> None:
        row = (source_id, stage, reason, language, question, answer)
        self._db.execute("INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?)", row)

    def rejected(self) -> Iterator[dict[str, str]]:
        for row in self._db.execute("SELECT * FROM rejected ORDER BY rowid"):
            yield dict(zip(REJECTED, row, strict=True))

    def count_rejected(self) -> dict[str, int]:
        """Rejected rows by stage, reason and language."""
        query = "SELECT stage || '/' || reason || ' ' || language, count(*) FROM rejected GROUP BY 1 ORDER BY 1"
        return dict(self._db.execute(query))

    def hold_out(self, share: float) -> int:
        """
        Marks a share of the questions as test questions, at least one if it is above 0. Returns how many.

        They are the first in an order that each question has by itself, so that questions that come or go move few
        others.
        """
        n = max(1, round(len(self) * share)) if share > 0 else 0
        query = "UPDATE items SET test = 1 WHERE n IN (SELECT n FROM items ORDER BY rank LIMIT ?)"
        return self._db.execute(query, (n,)).rowcount

    def note_test_questions(self) -> None:
        """Collects the questions that are held out, in all languages, for [`is_test_question`]."""
        for (item,) in self._db.execute("SELECT item FROM items WHERE test").fetchall():
            item = _load(item)
            questions = [*item.turns[::2], *(turn for texts in item.texts.values() for turn in texts[:-1:2])]
            self._db.executemany(
                "INSERT OR IGNORE INTO test_questions VALUES (?)", [(key_of(question),) for question in questions]
            )

    def is_test_question(self, text: str) -> bool:
        """Whether a text is one of the held-out questions, in any language."""
        query = "SELECT 1 FROM test_questions WHERE key = ?"
        return self._db.execute(query, (key_of(text),)).fetchone() is not None

    def is_held_out(self, n: int) -> bool:
        return bool(self._db.execute("SELECT test FROM items WHERE n = ?", (n,)).fetchone()[0])

    def propose(self, n: int, item: Item, forms: list[tuple[str, str, str]]) -> None:
        """Notes the records that can be made of an item, as (kind, language, form)."""
        rows = []
        for kind, language, form in forms:
            digest = sha256(f"{self.seed}:{kind}:{language}:{form}:{item.source_id}")
            rows.append((kind, language, form, n, digest[:16], digest[16:32]))
        query = "INSERT INTO candidates SELECT ?1, ?2, ?3, ?4, test, ?5, ?6 FROM items WHERE n = ?4"
        self._db.executemany(query, rows)

    def available(self) -> Counter[tuple[str, str]]:
        """Number of training records that could be made, by kind and target language."""
        query = "SELECT kind, language, count(*) FROM candidates WHERE NOT test GROUP BY kind, language"
        return Counter({(kind, language): count for kind, language, count in self._db.execute(query)})

    def choose(self, quotas: dict[tuple[str, str], int]) -> None:
        """Takes so many training records of each kind and language, at random but the same each time."""
        self._db.execute("CREATE TABLE chosen (n INT, kind TEXT, language TEXT, form TEXT, place TEXT)")
        self._db.execute("CREATE INDEX by_cell ON candidates (kind, language, test, position)")
        query = """
            INSERT INTO chosen SELECT n, kind, language, form, place FROM candidates
            WHERE kind = ? AND language = ? AND NOT test ORDER BY position LIMIT ?"""
        self._db.executemany(query, [(*cell, quota) for cell, quota in quotas.items()])

    def chosen(self) -> Iterator[tuple[Item, str, str, str]]:
        """Item, kind, language and form of the training records, in random order."""
        query = "SELECT item, kind, language, form FROM chosen JOIN items USING (n) ORDER BY place"
        for item, *rest in self._db.execute(query):
            yield _load(item), *rest

    def held_out(self) -> Iterator[tuple[Item, str, str, str]]:
        """The same for all test records, in the order of the questions."""
        query = """
            SELECT item, kind, language, form FROM candidates JOIN items USING (n)
            WHERE candidates.test ORDER BY n, candidates.rowid"""
        for item, *rest in self._db.execute(query):
            yield _load(item), *rest

    def close(self) -> None:
        """Deletes the database."""
        self._db.close()
        self.path.unlink(missing_ok=True)


def item_of(seed: Seed, answer: str, system: str | None) -> Item:
    return Item(seed.id, seed.turns, answer, seed.system or system)


def _dump(item: Item) -> str:
    return json.dumps(vars(item), ensure_ascii=False)


def _load(text: str) -> Item:
    values: dict[str, Any] = json.loads(text)
    return Item(**values | {"turns": tuple(values["turns"])})
