"""Finding the last checkpoint that was written to its end: a kill or a full disk can leave half a one behind."""

import json
import logging
import zipfile
from pathlib import Path


logger = logging.getLogger(__name__)


def last_complete_checkpoint(folder: Path) -> str | None:
    """
    Newest complete checkpoint in the output folder of a [`~transformers.Trainer`], `None` if there is none.

    Newer ones that are not complete are named in a warning; transformers 5.23 would try to resume from them and crash.
    """
    numbered = [
        (int(path.name.split("-")[1]), path) for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()
    ]
    for _, path in sorted(numbered, reverse=True):
        damage = find_damage(path)
        if damage is None:
            return str(path)
        logger.warning(f"{path} is not complete ({damage}); it is skipped.")
    return None


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, `None` if it is complete."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # the last file to be written
    except (OSError, ValueError):
        return "trainer_state.json is missing or damaged"
    for file in checkpoint.glob("*.safetensors"):
        with open(file, "rb") as stream:
            header = stream.read(8)
            size = int.from_bytes(header, "little")
            try:
                tensors = json.loads(stream.read(size)) if len(header) == 8 and size < file.stat().st_size else None
            except ValueError:
                tensors = None
        if tensors is None:
            return f"{file.name} is cut off"
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        if file.stat().st_size != 8 + size + max(ends, default=0):
            return f"{file.name} is cut off"
    for file in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        if not zipfile.is_zipfile(file):
            return f"{file.name} is cut off"
    return None
