"""Crash-safe store of one stage: what a stage has finished survives `kill -9`, what it has not is done again."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, read_json, sha256, write_json


class Store:
    """
    Finished units of one stage, as SQLite files in a folder: one file per process, written by that process only.

    A batch is committed in one transaction, so a kill at any moment loses at most the batch in flight. Every row
    carries a hash of its content, because SQLite does not notice a flipped byte. The options that decide the result
    are kept in `options.json`; opening the folder with other options is refused.

    Args:
        folder (`Path`):
            Folder of the stage, created if missing.
        options (`dict[str, Any]`):
            Options (JSON values) that the results depend on.
        rank (`int`, *optional*, defaults to `0`):
            Number of this process.

    Raises:
        `SDRRLError`: if the folder was made with other options, is damaged, or is in use by another process.
    """

    def __init__(self, folder: Path, options: dict[str, Any], rank: int = 0):
        self.folder = folder
        if any(folder.glob("rank_*.sqlite")) and not (folder / "options.json").exists():
            raise self._damaged(folder / "options.json", "it is missing, so that nobody knows what the rows are")
        record_options(folder, options, stage=folder.name)
        self._path = folder / f"rank_{rank}.sqlite"
        self._connection = sqlite3.connect(self._path, timeout=2.0)
        try:
            # Rollback journal and full sync: WAL does not work on network file systems. The lock is kept until
            # `close`, so that the same command started twice does not do everything twice.
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._connection.execute("BEGIN EXCLUSIVE")
            self._connection.execute("CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, payload TEXT, hash TEXT)")
            self._connection.commit()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise SDRRLError(f"Cannot write to {self._path}: {error}. Check its permissions.") from error
            raise SDRRLError(
                f"{folder} is in use ({error}). Is the same command running twice? Wait for it or stop it."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(self._path, error) from error

    def put(self, rows: dict[str, Any]) -> None:
        """Commits a batch of finished units, all or none of them. `rows` maps ids to JSON values."""
        payloads = {id: json.dumps(value, ensure_ascii=False) for id, value in rows.items()}
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?)",
                    [(id, payload, sha256(id + payload)) for id, payload in payloads.items()],
                )
        except sqlite3.OperationalError as error:
            raise SDRRLError(
                f"Cannot write to {self._path}: {error}. What was finished before is kept; make room and run the same "
                "command again."
            ) from error

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Goes through the finished units of all processes."""
        for path in sorted(self.folder.glob("rank_*.sqlite")):
            own = path == self._path
            # not read-only: a journal left behind by a killed process must roll back
            connection = self._connection if own else sqlite3.connect(path, timeout=2.0)
            try:
                for id, payload, digest in connection.execute("SELECT id, payload, hash FROM rows"):
                    if sha256(id + payload) != digest:
                        raise self._damaged(path, f"the content of row {id} does not fit its hash")
                    yield id, json.loads(payload)
            except (sqlite3.DatabaseError, TypeError) as error:
                raise self._damaged(path, error) from error
            finally:
                if not own:
                    connection.close()

    def close(self) -> None:
        """Releases the lock, so that another process can go on."""
        self._connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _damaged(self, path: Path, why: object) -> SDRRLError:
        return SDRRLError(
            f"{path} is damaged ({why}); going on would build on lost or wrong rows. "
            f"Redo the stage with `--overwrite_stage {self.folder.name}`."
        )


def check_options(folder: Path, options: dict[str, Any], stage: str) -> None:
    """
    Refuses options that differ from those that the results in a folder were made with. Writes nothing.

    Args:
        folder (`Path`):
            Folder of the stage.
        options (`dict[str, Any]`):
            Options (JSON values) that the results depend on.
        stage (`str`):
            Name of the stage, for `--overwrite_stage`.

    Raises:
        `SDRRLError`: naming the options that differ; for the folder of another stage.
    """
    recorded = _recorded(folder, stage)
    if recorded is None:
        return
    options = json.loads(json.dumps(options))  # as they are read back: tuples become lists
    changed = [key for key in sorted({*options, *recorded}) if options.get(key) != recorded.get(key)]
    if changed:
        differences = "; ".join(f"{key}: was {recorded.get(key)!r}, is {options.get(key)!r}" for key in changed)
        raise SDRRLError(
            f"{folder} was made with other options ({differences}). Going on would mix both. Set them back, choose "
            f"another `output_dir`, or redo the stage with `--overwrite_stage {stage}`."
        )


def record_options(folder: Path, options: dict[str, Any], stage: str) -> None:
    """Records the options of a stage when it starts for the first time; later, checks them ([`check_options`])."""
    check_options(folder, options, stage)
    if not (folder / "options.json").exists():
        write_json(folder / "options.json", {"stage": stage, "options": options})


def clear_stage(folder: Path, stage: str) -> None:
    """
    Deletes what a stage has left in a folder.

    Raises:
        `SDRRLError`: if the folder holds something else.
    """
    if _recorded(folder, stage) is not None:
        old = folder.with_name(f".{folder.name}.old")  # at once, so that a kill does not leave half a stage
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)
    elif folder.exists() and any(folder.iterdir()):
        raise SDRRLError(
            f"{folder} holds files, but no options.json of the stage {stage!r}: it is not deleted. Choose another "
            "`output_dir`, or empty it yourself."
        )


def _recorded(folder: Path, stage: str) -> dict[str, Any] | None:
    """Options that a stage has recorded in its folder."""
    path = folder / "options.json"
    if not path.exists():
        return None
    content = read_json(path, expect=("stage", "options"))
    if content["stage"] != stage:
        raise SDRRLError(
            f"{folder} holds the results of the stage {content['stage']!r}, not of {stage!r}. Choose another "
            "`output_dir`."
        )
    return content["options"]
