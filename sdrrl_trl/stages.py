"""The options that a folder was made with: results of different options never get mixed."""

import json
import shutil
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, read_json, write_json


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
    recorded = recorded_options(folder, stage)
    if recorded is None:
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


def write_options(folder: Path, options: dict[str, Any], stage: str) -> None:
    """Writes the options of a stage over those that it has recorded. Check them before ([`check_options`])."""
    write_json(folder / "options.json", {"stage": stage, "options": options})


def clear_stage(folder: Path, stage: str) -> None:
    """
    Deletes what a stage has left in a folder.

    Raises:
        `SDRRLError`: if the folder holds something else.
    """
    if recorded_options(folder, stage) is not None:
        old = folder.with_name(f".{folder.name}.old")  # at once, so that a kill does not leave half a stage
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)
    elif folder.exists() and any(folder.iterdir()):
        raise SDRRLError(
            f"{folder} holds files, but no options.json of the stage {stage!r}: it is not deleted. Choose another "
            "`output_dir`, or empty it yourself."
        )


def recorded_options(folder: Path, stage: str) -> dict[str, Any] | None:
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
