"""The options that a folder was made with: results of different options never get mixed, and others' files stay."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, read_json, write_json


_FILE = "options.json"


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
        `SDRRLError`: naming the options that differ; for the folder of another stage, or one with others' files.
    """
    recorded = recorded_options(folder, stage)
    if recorded is None:
        # Not what is below: it may be the root of a disk
        others = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
        if others:
            raise SDRRLError(
                f"{folder} holds {_first(others)}, but no {_FILE} of the stage {stage!r}, which would mix its "
                "results with them. Choose another `output_dir`, or empty this one."
            )
        return
    options = json.loads(json.dumps(options))  # as they are read back: tuples become lists
    changed = [key for key in sorted({*options, *recorded}) if options.get(key) != recorded.get(key)]
    if changed:
        differences = "; ".join(f"{key}: was {recorded.get(key)!r}, is {options.get(key)!r}" for key in changed)
        raise SDRRLError(
            f"{folder} was made with other options ({differences}). Going on would mix both. Set them back, or choose "
            "another `output_dir`"
            + ("." if stage in ("train", "evaluate") else f", or redo the stage with `--overwrite_stage {stage}`.")
        )


def write_options(folder: Path, options: dict[str, Any], stage: str, files: Sequence[str]) -> None:
    """
    Writes the options of a stage over those that it has recorded. Check them before ([`check_options`]).

    Args:
        folder (`Path`): Folder of the stage.
        options (`dict[str, Any]`): Options (JSON values) that the results depend on.
        stage (`str`): Name of the stage.
        files (`Sequence[str]`): Patterns of what the stage writes into the folder, for [`clear_stage`].
    """
    write_json(folder / _FILE, {"stage": stage, "options": options, "files": [*files, _FILE]})


def clear_stage(folder: Path, stage: str) -> None:
    """
    Deletes what a stage has written into its folder. The folder itself stays: it may be a link or a mount point.

    Raises:
        `SDRRLError`: if the folder holds something else; nothing is deleted then.
    """
    recorded = recorded_options(folder, stage)
    patterns = [] if recorded is None else read_json(folder / _FILE, expect=("files",))["files"]
    files, own = files_in(folder), {path for pattern in patterns for path in folder.glob(pattern)}
    if others := [str(path.relative_to(folder)) for path in files if path not in own]:
        raise SDRRLError(
            f"{folder} holds {_first(others)}, which the stage {stage!r} has not written: nothing is deleted. "
            "Move that away, or choose another `output_dir`."
        )
    # The options last: as long as there are results, it is known what they are
    for path in sorted(files, key=lambda path: path == folder / _FILE):
        path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def recorded_options(folder: Path, stage: str) -> dict[str, Any] | None:
    """Options that a stage has recorded in its folder."""
    path = folder / _FILE
    if not path.exists():
        return None
    content = read_json(path, expect=("stage", "options"))
    if content["stage"] != stage:
        raise SDRRLError(
            f"{folder} holds the results of the stage {content['stage']!r}, not of {stage!r}. Choose another "
            "`output_dir`."
        )
    return content["options"]


def files_in(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones: the lock, and what a killed process was writing."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
