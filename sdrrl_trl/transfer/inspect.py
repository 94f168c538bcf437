"""`sdrrl inspect`: what is in a transfer set, in the terminal."""

from pathlib import Path
from typing import Any

from sdrrl_trl.transfer.publish import load_manifest, summary


def inspect_transfer_set(folder: Path, n: int = 2, width: int = 600) -> str:
    """
    Summary of a transfer set, and samples of each kind and languages and of the rejected rows by reason.

    Args:
        folder (`Path`):
            Folder made by `sdrrl build`.
        n (`int`, *optional*, defaults to `2`):
            Samples of each.
        width (`int`, *optional*, defaults to `600`):
            Longer texts are cut after so many characters.

    Raises:
        `SDRRLError`: if the folder holds no finished transfer set.
    """
    import pyarrow.parquet

    manifest = load_manifest(folder)
    lines = [summary(manifest)]
    shown: dict[str, int] = {}
    for name in ("train", "rejected"):
        with pyarrow.parquet.ParquetFile(folder / f"{name}.parquet") as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    title = _title(row)
                    shown[title] = shown.get(title, 0) + 1
                    if shown[title] <= n:
                        lines += ["", f"== {title} | {row['source_id']}", *_texts(row, width)]
    return escape("\n".join(lines))


def escape(text: str) -> str:
    """Text that is safe on a terminal: what is not printable as its escape sequence."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def _title(row: dict[str, Any]) -> str:
    if "kind" in row:
        return f"{row['kind']} {row['question_language']}-{row['answer_language']}"
    return f"rejected: {row['stage']}/{row['reason']} {row['language']}"


def _texts(row: dict[str, Any], width: int) -> list[str]:
    if "kind" in row:
        texts = [(message["role"], message["content"]) for message in (*row["prompt"], *row["completion"])]
    else:
        texts = [("question", row["question"]), ("answer", row["answer"])]
    return [f"{role}: {text if len(text) <= width else text[:width] + ' [...]'}" for role, text in texts if text]
