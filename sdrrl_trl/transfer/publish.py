"""The transfer set is written to disk, its manifest last."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdrrl_trl import hub
from sdrrl_trl.render import render
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.rows import PROVENANCE
from sdrrl_trl.utils import (
    SDRRLError,
    first_damaged,
    on_hub,
    package_version,
    public_name,
    read_json,
    sha256_of,
    write_atomic,
    write_json,
)


DATA_FILES = ("train.parquet", "test.parquet", "rejected.parquet")
REJECTED = ("source_id", "stage", "reason", "language", "question", "answer")


def publish(config: TransferConfig, rows: Iterator[tuple[str, dict[str, Any]]], facts: dict[str, Any]) -> None:
    """
    Writes data and card, and last the manifest: where it stands, the set is complete.

    Args:
        config ([`TransferConfig`]):
            Options of the build.
        rows (`Iterator[tuple[str, dict[str, Any]]]`):
            Rows of `train`, `test` and `rejected`.
        facts (`dict[str, Any]`):
            More for the manifest: `inputs`, `engines`, `licences`, `counts`.
    """
    folder, counts, examples = Path(config.output_dir), {"train": Counter(), "test": Counter()}, {}
    with ExitStack() as stack:
        features = _features()
        writers = {name: stack.enter_context(parquet_writer(folder / name, features[name])) for name in DATA_FILES}
        for split, row in rows:
            writers[f"{split}.parquet"].write(row)
            if split != "rejected":
                counts[split][f"{row['kind']} {row['question_language']}-{row['answer_language']}"] += 1
                examples.setdefault(row["kind"], row)
    for split, cells in counts.items():
        if not cells:  # `load_dataset` cannot open a split without rows
            (folder / f"{split}.parquet").unlink()
    written = [path for name in DATA_FILES if (path := folder / name).exists()]
    counts = {split: dict(sorted(cells.items())) for split, cells in counts.items()}
    manifest = _without_folders({"options": asdict(config), **facts}) | {
        "counts": counts | facts["counts"],
        "sha256": {path.name: sha256_of(path) for path in written},
        "versions": {name: package_version(name) for name in ("sdrrl-trl", "transformers", "torch", "datasets")},
    }
    for name in ("output_dir", "overwrite_stage", "dry_run"):  # not of the data
        del manifest["options"][name]
    # No `configs:` in the card: with it, `load_dataset` caches a local folder by its name alone and returns the rows
    # of another transfer set of the same name (datasets 5.2). Without it, the splits follow from the file names.
    model = config.model_name_or_path
    card = render(
        "transfer_card.md.jinja",
        manifest=manifest,
        examples=examples,
        model=model,
        origin=None if on_hub(model) else hub.base_of(model),
        seeds=config.seeds["path"],
        licence=hub.licence_of(model),
    )
    write_atomic(folder / "README.md", card + "\n")
    write_json(folder / "manifest.json", manifest)


def _features() -> dict[str, Any]:
    """Columns of each file, for a file without rows has none of its own."""
    from datasets import Features, List, Value

    text = Value("string")
    message = List({"role": text, "content": text})
    records = {"prompt": message, "completion": message, **dict.fromkeys(PROVENANCE, text), "truncated": Value("bool")}
    columns = dict.fromkeys(DATA_FILES, records) | {"rejected.parquet": dict.fromkeys(REJECTED, text)}
    return {name: Features(features) for name, features in columns.items()}


@contextmanager
def parquet_writer(path: Path, features: Any = None) -> Iterator[Any]:
    """
    Writes rows to a Parquet file, a thousand at a time. The file is there when all is written.

    Args:
        path (`Path`): The file.
        features ([`~datasets.Features`], *optional*): Columns and their types. Default: those of the first rows.
    """
    from datasets.arrow_writer import ParquetWriter

    temporary = path.with_name(f".{path.name}.tmp")
    with ParquetWriter(features=features, path=str(temporary), writer_batch_size=1000) as writer:
        yield writer
        writer.finalize()
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _without_folders(value: Any) -> Any:
    """Files and models by name alone, so that the manifest is the same wherever they are."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    is_file = isinstance(value, str) and os.path.isabs(value) and os.path.exists(value)
    return os.path.basename(value) if is_file else value


def is_non_commercial(licence: str) -> bool:
    return re.search(r"\bNC\b|non-?commercial", licence, re.IGNORECASE) is not None


def non_commercial_parts(manifest: dict[str, Any]) -> list[str]:
    """What a transfer set is made of that must not be used commercially, each with its licence."""
    return [f"{name} ({licence})" for name, licence in manifest["licences"].items() if is_non_commercial(licence)]


def summary(manifest: dict[str, Any]) -> str:
    """What is in a transfer set, as a table and a few lines of text."""
    return render("transfer_summary.txt", manifest=manifest)


def load_manifest(folder: Path) -> dict[str, Any]:
    """
    Manifest of a finished transfer set.

    Raises:
        `SDRRLError`: if the folder holds none, or if a file is missing or was changed.
    """
    if not (folder / "manifest.json").exists():
        inside = next(folder.glob("*/manifest.json"), None)
        hint = f"Did you mean {inside.parent}?" if inside else "Build it first with `sdrrl build`."
        raise SDRRLError(f"There is no finished transfer set in {folder}. {hint}")
    manifest = read_json(folder / "manifest.json", expect=("options", "engines", "licences", "counts", "sha256"))
    if name := first_damaged(folder, manifest["sha256"]):
        raise SDRRLError(
            f"{folder / name} is missing or was changed since the set was built. Publish the set again with `sdrrl "
            "build --overwrite_stage mix`, which keeps answers and translations."
        )
    return manifest


def answered_by_another(manifest: dict[str, Any], model: str) -> str | None:
    """
    A warning if a transfer set surely holds answers of another model than the initial one.

    Args:
        manifest (`dict[str, Any]`): Of the transfer set.
        model (`str`): What [`~utils.fingerprint`] gives for the initial model.
    """
    known = manifest.get("inputs", {}).get("model")  # not of references, nor of a server's answers
    if known is None or known.rpartition("/")[2] == model.rpartition("/")[2]:
        return None
    # A folder may hold a model of the hub
    if len({re.fullmatch("[0-9a-f]{16}", one) is None for one in (known, model)}) == 2:
        return None
    name = public_name(manifest["options"]["model_name_or_path"])
    return (
        f"warning: the transfer set holds answers of another model, {name}: an anchor holds this one to texts that "
        "are not its own, and drift does not tell how far it moves"
    )


def has_kind(manifest: dict[str, Any], part: str, kind: str) -> bool:
    """Whether a transfer set has records of a kind in `train` or `test`."""
    return any(cell.startswith(f"{kind} ") for cell in manifest["counts"][part])
