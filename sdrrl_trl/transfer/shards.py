"""
Where the rows of a stage are kept while a build runs: shards, JSON Lines files of some hundred rows.

Here a build knows of interrupted runs and shares its work among processes. A list of rows is cut once into numbered
shards; process r of N makes shards r, r + N, ...; a shard is written whole or not at all, and what is there is done.
So a kill costs each process the shard that it is at, the content depends neither on kills nor on the number of
processes, and memory holds a shard, not the set.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState

from sdrrl_trl.stages import check_options, write_options
from sdrrl_trl.utils import SDRRLError, progress, timed, write_atomic


Row = TypeVar("Row")


@dataclass(frozen=True)
class Stage:
    """
    A step of a build whose rows are kept.

    Args:
        name (`str`): Name for `--overwrite_stage`.
        folder (`Path`): Where its shards are.
        options (`dict[str, Any]`): Options (JSON values) that the rows depend on.
    """

    name: str
    folder: Path
    options: dict[str, Any]


def map_shards(
    rows: Iterable[Any], function: Callable[[list[Any]], list[Any]], stage: Stage, size: int, total: int
) -> None:
    """
    Makes the shards of a stage that are not there yet, this process its share of them, and waits for the others.

    Args:
        rows (`Iterable`):
            Rows of the stage before, in the same order each time. Not read if all is done.
        function (`Callable`):
            From the rows of a shard to its new rows (dataclasses of JSON values).
        stage ([`Stage`]):
            Where the shards go. Its options are recorded beside them.
        size (`int`):
            Rows of a shard, but for the last.
        total (`int`):
            Number of `rows`.

    Raises:
        `SDRRLError`: if the folder holds shards that were made with other options, or nobody knows with which.
    """
    state = PartialState()
    if state.is_main_process:
        check_options(stage.folder, stage.options, stage.name)
        write_options(stage.folder, stage.options, stage.name, ("*.jsonl", "lexicon.json"))
        for leftover in stage.folder.glob(".*.tmp"):  # of a killed process; none is at work before all have waited
            leftover.unlink()
    state.wait_for_everyone()
    timer = timed(stage.folder.parents[1] / "timings.json", stage.name) if state.is_main_process else nullcontext()
    with timer:
        # The number of shards, rounded up
        own = range(state.process_index, -(-total // size), state.num_processes)
        sizes = {number: min(size, total - number * size) for number in own}
        missing = {number for number in own if _read(_path(stage.folder, number)) is None}
        done = sum(sizes[number] for number in sizes.keys() - missing)
        pending = ((sizes[number], (number, shard)) for number, shard in _cut(rows, size, missing))
        for number, shard in progress(pending, sum(sizes.values()), stage.folder.name, "rows", done):
            _write(_path(stage.folder, number), function(shard))
        state.wait_for_everyone()


def is_complete(stage: Stage, size: int, total: int) -> bool:
    """Whether all shards of a stage of `total` rows are there. They are not read: a damaged one counts."""
    return all(_path(stage.folder, number).exists() for number in range(-(-total // size)))


def read_shards(folder: Path, shape: type[Row]) -> Iterator[Row]:
    """
    The rows of a finished stage, one shard after the other.

    Args:
        folder (`Path`): Folder of the stage.
        shape (`type`): Dataclass of the rows.

    Raises:
        `SDRRLError`: if a shard was damaged since it was written.
    """
    # By number: what else lies there, as a copy of a shard, is not of this stage
    for path in takewhile(Path.exists, (_path(folder, number) for number in count())):
        rows = _read(path)
        if rows is None:
            raise SDRRLError(f"{path} is damaged. Run the same command again: this file, no other, is made anew.")
        for row in rows:
            yield shape(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})


def first_of_equal(rows: Iterable[Row], key: Callable[[Row], int], reason: str) -> Iterator[Row]:
    """The rows; of good ones with the same key, a number of 64 bits, all but the first are rejected."""
    seen: set[int] = set()
    for row in rows:
        if row.reason is None:
            number = key(row)
            row = replace(row, reason=reason) if number in seen else row
            seen.add(number)
        yield row


def _cut(rows: Iterable[Any], size: int, wanted: set[int]) -> Iterator[tuple[int, list[Any]]]:
    """The wanted shards of a list of rows, with their numbers."""
    rows = iter(rows)
    for number in range(max(wanted, default=-1) + 1):
        shard = list(islice(rows, size))
        if number in wanted:
            yield number, shard


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.jsonl"


def _write(path: Path, rows: list[Any]) -> None:
    lines = [vars(row) for row in rows]
    lines.append({"rows": len(rows)})  # a file that lost its end is told by the lack of this line
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _read(path: Path) -> list[dict[str, Any]] | None:
    """Content of a shard, `None` if there is none or it is damaged."""
    try:
        # As text, U+2028 would end a line as well
        *rows, last = map(json.loads, path.read_bytes().splitlines())
    except (FileNotFoundError, ValueError):
        return None
    return rows if last == {"rows": len(rows)} else None
