"""Finding the last checkpoint that is as it was written: a kill or a full disk can leave half a one behind."""

import logging
from pathlib import Path

from sdrrl_trl.utils import SDRRLError, first_damaged, read_json, sha256_of, write_json


logger = logging.getLogger(__name__)
_SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Notes the content of each file of a checkpoint beside it, once all are written."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    write_json(checkpoint / _SEAL, {str(path.relative_to(checkpoint)): sha256_of(path) for path in files})


def last_complete_checkpoint(folder: Path) -> str | None:
    """
    Newest complete checkpoint in the output folder of an [`SDRRLTrainer`], `None` if there is none.

    Newer ones that are not complete are named in a warning; transformers would try to resume from them and crash, or
    start the optimizer anew.
    """
    steps = [int(path.name[11:]) for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    for step in sorted(steps, reverse=True):
        path = folder / f"checkpoint-{step}"
        damage = _find_damage(path)
        if damage is None:
            return str(path)
        logger.warning(f"{path} is not complete ({damage}); it is skipped.")
    return None


def _find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, `None` if it is complete."""
    try:
        hashes = read_json(checkpoint / _SEAL)
    except SDRRLError:
        return "it was not written to its end, or not by SDRRLTrainer"
    name = first_damaged(checkpoint, hashes)
    return name and f"{name} is missing or damaged"
