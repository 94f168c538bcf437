"""`sdrrl inspect`: what is in a transfer set, in the terminal."""

from pathlib import Path
from typing import Any

from sdrrl_trl.render import render
from sdrrl_trl.transfer.files import read_parquet
from sdrrl_trl.transfer.publish import load_manifest, summary


def inspect_transfer_set(folder: str | Path, n: int = 2, width: int = 600) -> str:
    """
    Summary of a transfer set, and samples of each kind and languages and of the rejected rows by reason.

    Args:
        folder (`str` or `Path`):
            Folder made by `sdrrl build`.
        n (`int`, *optional*, defaults to `2`):
            Samples of each.
        width (`int`, *optional*, defaults to `600`):
            Longer texts are cut after so many characters.

    Raises:
        `SDRRLError`: if the folder holds no finished transfer set.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    samples: dict[str, list[dict[str, Any]]] = {}
    for name in ("train", "rejected"):
        for row in read_parquet(folder / f"{name}.parquet"):
            found = samples.setdefault(_title(row), [])
            if len(found) < n:
                found.append(row)
    return escape(render("transfer_samples.txt", summary=summary(manifest), samples=samples, width=max(width, 10)))


def escape(text: str) -> str:
    """Text that is safe on a terminal: what is not printable as its escape sequence."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def _title(row: dict[str, Any]) -> str:
    if "kind" in row:
        return f"{row['kind']} {row['question_language']}-{row['answer_language']}"
    return f"rejected: {row['stage']}/{row['reason']} {row['language']}"
