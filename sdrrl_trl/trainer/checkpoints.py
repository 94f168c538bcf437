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
    weights = [*checkpoint.rglob("*.safetensors"), *checkpoint.rglob("*.bin"), *checkpoint.rglob("*.distcp")]
    if not weights and not any(checkpoint.rglob("*_states.pt")):  # of DeepSpeed
        return "it has no weights"
    for index in checkpoint.rglob("*.index.json"):  # of a model in several files
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            return f"{index.name} is damaged"
        missing = sorted(name for name in shards if not (index.parent / name).exists())
        if missing:
            return f"{missing[0]} is missing"
    for file in checkpoint.rglob("*.safetensors"):
        if not _is_whole_safetensors(file):
            return f"{file.name} is cut off"
    for file in [*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth")]:
        if not zipfile.is_zipfile(file):
            return f"{file.name} is cut off"
    return None


def _is_whole_safetensors(file: Path) -> bool:
    """Whether the file is as long as its header says (8 bytes of the header's size, the header, the tensors)."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if 8 + size > file.stat().st_size:
            return False
        try:
            tensors = json.loads(stream.read(size))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    return file.stat().st_size == 8 + size + max(ends, default=0)
