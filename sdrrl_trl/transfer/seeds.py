"""Reading the questions and the parallel sentences, with errors that name file and line."""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from sdrrl_trl.utils import SDRRLError, sha256


@dataclass(frozen=True)
class Seed:
    """
    A question in the source language.

    Args:
        id (`str`): Unique id.
        question (`str`): Text.
    """

    id: str
    question: str

    @property
    def key(self) -> str:
        """Hash of letters and digits alone: the same for questions that differ in case, spaces or punctuation only."""
        letters = "".join(c for c in unicodedata.normalize("NFKC", self.question).casefold() if c.isalnum())
        return sha256(letters or self.question)


def read_seeds(path: str, limit: int | None = None) -> list[Seed]:
    """
    Reads questions from a JSON Lines file.

    Args:
        path (`str`):
            File with one object a line: `instruction` (or `question`), optionally `input`, which is appended in a
            paragraph of its own, and `id` (default: the line number).
        limit (`int`, *optional*):
            Read only the first so many.

    Returns:
        `list[Seed]`: questions in the order of the file, surrounding white space removed.

    Raises:
        `SDRRLError`: for a broken line, a question without text or a repeated id, naming the line; for an empty file.
    """
    seeds, ids = [], set()
    for line, row in _read_json_lines(path):
        question = row.get("instruction") or row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise SDRRLError(
                f"{path}, line {line}: no text in `instruction` (or `question`). The model would answer an empty "
                "question. Complete or remove the line."
            )
        extra = row.get("input")
        if extra is not None and not isinstance(extra, str):
            raise SDRRLError(f"{path}, line {line}: `input` must be text, got {extra!r}. Convert or remove it.")
        seed_id = str(row["id"]) if row.get("id") is not None else f"line-{line}"
        if seed_id in ids:
            raise SDRRLError(f"{path}, line {line}: the id {seed_id!r} stands there twice. Ids must be unique.")
        ids.add(seed_id)
        seeds.append(Seed(seed_id, f"{question.strip()}\n\n{extra or ''}".strip()))
        if len(seeds) == limit:
            break
    return seeds


def read_parallel(path: str, languages: list[str]) -> list[dict[str, str]]:
    """
    Reads parallel sentences: one JSON object a line, with the text of each language under its tag.

    Raises:
        `SDRRLError`: for a broken line or one without text in one of `languages`, naming the line.
    """
    sentences = []
    for line, row in _read_json_lines(path):
        for language in languages:
            if not isinstance(row.get(language), str) or not row[language].strip():
                raise SDRRLError(f"{path}, line {line}: no text under {language!r}. Complete or remove the line.")
        sentences.append({language: row[language].strip() for language in languages})
    return sentences


def _read_json_lines(path: str) -> list[tuple[int, dict]]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SDRRLError(f"Cannot read {path}: {error}. Give a UTF-8 file with one JSON object a line.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            json.dumps(row, ensure_ascii=False).encode()  # lone surrogates cannot be written again
        except ValueError as error:
            raise SDRRLError(f"{path}, line {number}: not a valid JSON object ({error}).") from error
        rows.append((number, row))
    if not rows:
        raise SDRRLError(f"{path} is empty. Give a file with one JSON object a line.")
    return rows
