"""Reading the questions, with errors that name file and line. They stay on disk: each stage reads them again."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from sdrrl_trl.tasks.thoughts import without_thoughts
from sdrrl_trl.transfer.files import BadRows, read_rows, warn
from sdrrl_trl.transfer.rows import Seed, hash64
from sdrrl_trl.utils import SDRRLError


# Column of the data by what it holds, with the names that are tried if none is given
COLUMNS = {
    "id": ("id",),
    "question": ("instruction", "question", "prompt"),
    "input": ("input",),
    "context": ("context",),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "messages": ("messages", "conversation", "conversations"),
    "reference": ("output", "response", "answer", "completion"),
}
# Those of ShareGPT and others, by OpenAI's names
_ROLES = {"human": "user", "developer": "system"}
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "ai", "bot", "model"), "assistant")
_NO_INPUT = re.compile(r"\s*<?no ?input>?\s*", re.IGNORECASE)  # as some rows of Alpaca have it
_SHAPE = "texts must be text, and `messages` must list `role` and `content` (text)"


class Seeds:
    """
    All questions of a file or data set. Read once at the start, to find what is wrong, and again by each loop.

    Args:
        source (`dict[str, Any]`):
            `path` (JSON Lines, JSON, CSV, TSV or Parquet file, or a data set: local folder or hub id) and, optionally,
            `name` and `split` of the data set, and `columns`: the column for each of `id`, `question`, `input` and
            `context` (appended to the question), `system`, `history` (earlier turns, as pairs or messages), `messages`
            (as OpenAI or ShareGPT have them) and `reference`. Default: the usual names (`COLUMNS`).

    Attributes:
        sha256 (`str`): Hash of all questions.
        n_characters (`int`): Length of all questions together.
        n_bad (`int`): Number of rows that are left out.
        without_reference (`str`, *optional*): Id of the first question that came without a reference answer.
        has_system (`bool`): Whether any question has a system message.

    Raises:
        `SDRRLError`: for no question, and if most rows are bad: broken lines, questions without text, ids that
            stand there twice. Fewer are left out: they are seeds that say so, in the place of a question.
    """

    def __init__(self, source: dict[str, Any]):
        self._source = source
        self._n, self.n_characters, self.without_reference, self.has_system = 0, 0, None, False
        bad, digest = BadRows(source["path"]), hashlib.sha256()
        unused: dict[str, None] = {}
        for seed, columns in self._read():
            self._n += 1
            self.n_characters += sum(map(len, seed.turns))
            if seed.is_bad:
                bad.add(seed.turns[0])
            elif seed.reference is None and self.without_reference is None:
                self.without_reference = seed.source_id
            self.has_system |= seed.system is not None
            unused |= dict.fromkeys(columns)
            digest.update(json.dumps(vars(seed)).encode())
        if not self._n:
            raise SDRRLError(f"{source['path']} is empty. Give a file with one question a line.")
        bad.check(self._n, "Correct or remove them, or name the right columns in `columns` of `seeds`.")
        self.sha256, self.n_bad = digest.hexdigest(), bad.n
        if unused:
            warn(f"{source['path']}: not used: {', '.join(unused)}. Name in `columns` what belongs to the questions.")

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Seed]:
        return (seed for seed, _ in self._read())

    def _read(self) -> Iterator[tuple[Seed, list[str]]]:
        """Each question, and the columns beside it that are not used."""
        given = self._source.get("columns", {})
        columns = COLUMNS | {name: (column,) for name, column in given.items()}
        options = {name: value for name, value in self._source.items() if name != "columns"}
        ids: set[int] = set()  # 64 bits each, so that the ids of millions of questions fit into memory
        for number, (where, row) in enumerate(read_rows(**options), 1):
            names = f". There are: {', '.join(row)}" if isinstance(row, dict) else ""
            if number == 1 and names and (missing := sorted(set(given.values()) - set(row))):
                raise SDRRLError(f"{options['path']}: no column {', '.join(missing)}{names}.")
            try:
                seed, unused = _seed(row, columns, f"row-{number}")
                if hash64(seed.source_id) in ids:
                    raise ValueError(f"the id {seed.source_id!r} stands there twice")
                ids.add(hash64(seed.source_id))
            except ValueError as error:
                seed, unused = Seed(f"row-{number}", (f"{where}: {error}{names}",), is_bad=True), []
            yield seed, unused


def _pick(filled: dict[str, Any], columns: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The column of a row by what it holds."""
    # The first name last, for it to stay
    used = {name: column for name, names in columns.items() for column in names[::-1] if column in filled}
    if "messages" in used:
        return {name: column for name, column in used.items() if name in ("id", "system", "messages")}
    if isinstance(filled.get(used.get("question")), list):  # messages as in TRL
        return {name: column for name, column in used.items() if name in ("id", "system", "question", "reference")}
    return used


def _seed(
    row: dict[str, Any] | ValueError, columns: dict[str, tuple[str, ...]], default_id: str
) -> tuple[Seed, list[str]]:
    """
    The question in a row, and the names of what is in it besides.

    Raises:
        `ValueError`: saying what is wrong with it.
    """
    if isinstance(row, ValueError):
        raise row
    filled = {name: value for name, value in row.items() if value or value == 0}
    used = _pick(filled, columns)
    cells = {name: filled[column] for name, column in used.items()}
    messages = cells["messages"] if "messages" in cells else _messages(cells)
    if not isinstance(messages, list):
        raise ValueError(_SHAPE)
    turns = [_turn(message) for message in messages]
    systems = [_text(cells.get("system", "")).strip()]
    if turns and turns[0][0] == "system":
        systems.append(turns.pop(0)[1])
    reference = None
    if turns and turns[-1][0] == "assistant":
        reference = turns.pop()[1] or None
    roles, texts = [role for role, _ in turns], [text for _, text in turns]
    if len(roles) % 2 == 0 or roles != (["user", "assistant"] * len(roles))[: len(roles)] or not all(texts):
        raise ValueError(
            f"the roles of `messages` are {', '.join(roles) or 'none'}; they must be user and assistant in turn, each "
            "with text"
        )
    system = "\n\n".join(filter(None, systems)) or None
    seed = Seed(str(cells.get("id", default_id)), tuple(texts), reference, system)
    return seed, [name for name in filled if name not in used.values()]


def _messages(cells: dict[str, Any]) -> list[Any]:
    """Question and reference, each of which may be text, or messages as in TRL, with the turns before them."""
    question, reference, history = (cells.get(name, []) for name in ("question", "reference", "history"))
    if not question or isinstance(question, str) and not question.strip():
        raise ValueError("no text in the question, which the model is to answer")
    if not isinstance(question, list):
        more = [_text(cells[name], "\n\n") for name in ("input", "context") if name in cells]
        more = [text for text in more if not _NO_INPUT.fullmatch(text)]
        question = [{"role": "user", "content": "\n\n".join([_text(question).strip(), *more])}]
    if not isinstance(reference, list):
        reference = [{"role": "assistant", "content": reference}]
    earlier = []
    for item in history if isinstance(history, list) else [history]:
        if isinstance(item, list) and len(item) == 2:  # as LLaMA-Factory has them
            earlier += [{"role": "user", "content": item[0]}, {"role": "assistant", "content": item[1]}]
        else:
            earlier.append(item)
    return [*earlier, *question, *reference]


def _turn(message: Any) -> tuple[str, str]:
    """Role and text, without thoughts, of a message of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`)."""
    role = content = None
    if isinstance(message, dict):
        role, content = message.get("role") or message.get("from"), message.get("content", message.get("value"))
    if not isinstance(role, str) or content is None:
        raise ValueError(_SHAPE)
    role, text = _ROLES.get(role.lower(), role.lower()), _text(content).strip()
    # Chat templates leave out what was thought in earlier turns
    return role, without_thoughts(text) if role == "assistant" else text


def _text(value: Any, between: str = "") -> str:
    """The text of a cell or of a message's content, which may have parts, as it is written: `true`, not `True`."""
    if isinstance(value, list):
        return between.join(map(_text, value))
    if isinstance(value, dict) and value.get("type", "text") == "text":
        value = value.get("text")
    if value is None or isinstance(value, dict):
        raise ValueError(_SHAPE)
    return str(value).lower() if isinstance(value, bool) else str(value)
