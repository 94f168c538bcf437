"""Finding the last checkpoint that was written to its end: a kill or a full disk can leave half a one behind."""

import json
import logging
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


logger = logging.getLogger(__name__)


def last_complete_checkpoint(folder: Path) -> str | None:
    """
    Newest complete checkpoint in the output folder of a [`~transformers.Trainer`], `None` if there is none.

    Newer ones that are not complete are named in a warning; transformers would try to resume from them and crash.
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
    # DeepSpeed and sharded FSDP keep weights and optimizer in folders of their own
    sharded = any(checkpoint.rglob("*_states.pt")) or any(checkpoint.rglob("*.distcp"))
    weights = [*checkpoint.glob("*model*.safetensors"), *checkpoint.glob("*model*.bin")]
    if not weights and not sharded:
        return "it has no weights"
    if not (checkpoint / "optimizer.pt").exists() and not (checkpoint / "optimizer.bin").exists() and not sharded:
        return "it has no optimizer"
    for index in checkpoint.rglob("*.index.json"):  # of a model in several files
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            return f"{index.name} is damaged"
        missing = sorted(name for name in shards if not (index.parent / name).exists())
        if missing:
            return f"{missing[0]} is missing"
    for file in checkpoint.rglob("*.safetensors"):
        try:
            safe_open(file, "pt")  # checks the file's length against its header
        except SafetensorError:
            return f"{file.name} is cut off"
    for file in [*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth")]:
        if not zipfile.is_zipfile(file):
            return f"{file.name} is cut off"
    return None
