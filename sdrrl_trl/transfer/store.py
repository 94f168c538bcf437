"""Crash-safe store of one stage: what a stage has finished survives `kill -9`, what it has not is done again."""

import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrrl_trl.stages import check_options, record_options
from sdrrl_trl.utils import SDRRLError, sha256


if TYPE_CHECKING:
    from accelerate import PartialState


class Store:
    """
    Finished units of one stage, as SQLite files in a folder: one file per process, written by that process only.

    A batch is committed in one transaction, so a kill at any moment loses at most the batch in flight. Every row
    carries a hash of its content, because SQLite does not notice a flipped byte. The options that decide the result
    are kept in `options.json`; opening the folder with other options is refused. Process 0 takes the rows of the
    others into its own file ([`merge`]), when a stage starts and when it is finished.

    Args:
        folder (`Path`):
            Folder of the stage, created if missing.
        options (`dict[str, Any]`):
            Options (JSON values) that the results depend on.
        rank (`int`, *optional*, defaults to `0`):
            Number of this process.

    Raises:
        `SDRRLError`: if the folder was made with other options, or is damaged.
    """

    def __init__(self, folder: Path, options: dict[str, Any], rank: int = 0):
        self.folder = folder
        if any(folder.glob("rank_*.sqlite")) and not (folder / "options.json").exists():
            raise self._damaged(folder / "options.json", "it is missing, so that nobody knows what the rows are")
        if rank == 0:
            record_options(folder, options, stage=folder.name)
        else:
            check_options(folder, options, stage=folder.name)
        self._path = folder / f"rank_{rank}.sqlite"
        self._main = self._open(folder / "rank_0.sqlite")
        self._own = self._main if rank == 0 else self._open(self._path)

    def _open(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=60.0)
        try:
            # Rollback journal and full sync: WAL does not work on network file systems
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, payload TEXT, hash TEXT)")
            connection.commit()
        except sqlite3.OperationalError as error:
            raise SDRRLError(
                f"Cannot write to {path}: {error}. Check its permissions, and that no other process works on it."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(path, error) from error
        return connection

    def put(self, rows: dict[str, Any]) -> None:
        """Commits a batch of finished units, all or none of them. `rows` maps ids to JSON values."""
        payloads = {id: json.dumps(value, ensure_ascii=False) for id, value in rows.items()}
        try:
            with self._own:
                self._own.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?)",
                    [(id, payload, sha256(id + payload)) for id, payload in payloads.items()],
                )
        except sqlite3.OperationalError as error:
            raise SDRRLError(
                f"Cannot write to {self._path}: {error}. What was finished before is kept; make room and run the same "
                "command again."
            ) from error

    def __contains__(self, id: str) -> bool:
        """Whether this process, or an earlier run, has finished the unit."""
        return any(self._row(connection, id) is not None for connection in {self._own, self._main})

    def __getitem__(self, id: str) -> Any:
        """
        Result of a unit, once the stage is merged.

        Raises:
            `SDRRLError`: if its row was damaged.
        """
        row = self._row(self._main, id)
        if row is None:
            raise self._damaged(self.folder / "rank_0.sqlite", f"row {id} is missing")
        if sha256(id + str(row[0])) != row[1]:
            raise self._damaged(self.folder / "rank_0.sqlite", f"the content of row {id} does not fit its hash")
        return json.loads(row[0])

    def __len__(self) -> int:
        try:
            return self._main.execute("SELECT count(*) FROM rows").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise self._damaged(self.folder / "rank_0.sqlite", error) from error

    def _row(self, connection: sqlite3.Connection, id: str) -> tuple[str, str] | None:
        try:
            return connection.execute("SELECT payload, hash FROM rows WHERE id = ?", (id,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._damaged(self.folder, error) from error

    def gather(self, state: "PartialState") -> None:
        """When all processes have finished: what they have put is in the file of process 0. For all processes."""
        state.wait_for_everyone()
        if state.is_main_process:
            self.merge()
        state.wait_for_everyone()

    def merge(self) -> None:
        """Takes the rows of the other processes, which must have stopped writing. For process 0."""
        for path in sorted(self.folder.glob("rank_*.sqlite")):
            if path == self._path:
                continue
            self._open(path).close()  # a journal left behind by a killed process rolls back
            try:
                self._main.execute("ATTACH ? AS other", (str(path),))
                with self._main:
                    self._main.execute("INSERT OR IGNORE INTO rows SELECT * FROM other.rows")
                    self._main.execute("DELETE FROM other.rows")  # the same transaction, over both files
                self._main.execute("DETACH other")
            except sqlite3.OperationalError as error:
                raise SDRRLError(f"Cannot merge {path}: {error}. Make room and run the same command again.") from error
            except sqlite3.DatabaseError as error:
                raise self._damaged(path, error) from error

    def close(self) -> None:
        """Closes the files."""
        self._main.close()
        self._own.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _damaged(self, path: Path, why: object) -> SDRRLError:
        return SDRRLError(
            f"{path} is damaged ({why}); going on would build on lost or wrong rows. "
            f"Redo the stage with `--overwrite_stage {self.folder.name}`."
        )
