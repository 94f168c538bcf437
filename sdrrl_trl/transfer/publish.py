"""Stage 4: the transfer set is written to disk, its manifest last."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.record import Record
from sdrrl_trl.utils import SDRRLError, package_version, read_json, sha256, write_atomic, write_json


def publish(
    config: TransferConfig,
    train: list[Record],
    test: list[Record],
    rejected: list[dict[str, str]],
    facts: dict[str, Any],
    counts: dict[str, Any],
) -> None:
    """
    Writes data and card, and last the manifest: where it stands, the set is complete.

    Args:
        config ([`TransferConfig`]):
            Options of the build.
        train (`list[Record]`):
            Rows of the training split.
        test (`list[Record]`):
            Rows of the held-out split.
        rejected (`list[dict[str, str]]`):
            What was dropped, with stage and reason.
        facts (`dict[str, Any]`):
            More for the manifest: `inputs` and `engines`.
        counts (`dict[str, Any]`):
            More for the manifest's counts: `seeds` and `left_out`.
    """
    from datasets import Dataset, Features, List, Value, disable_progress_bars

    disable_progress_bars()
    folder = Path(config.output_dir)
    text = Value("string")
    message = List({"role": text, "content": text})
    provenance = dict.fromkeys(("kind", "question_language", "answer_language", "source_id"), text)
    rows = Features({"prompt": message, "completion": message, **provenance})
    dropped = Features(dict.fromkeys(("source_id", "stage", "reason", "language", "question", "answer"), text))
    tables = {
        "train": ([record.to_row(config.system_prompt) for record in train], rows),
        "test": ([record.to_row(config.system_prompt) for record in test], rows),
        "rejected": (rejected, dropped),
    }
    hashes = {}
    for name, (table, features) in tables.items():
        if name == "test" and not test:  # `load_dataset` cannot open a split without rows
            (folder / "test.parquet").unlink(missing_ok=True)
            continue
        temporary = folder / f".{name}.parquet.tmp"
        columns = {column: [row[column] for row in table] for column in features}
        Dataset.from_dict(columns, features=features).to_parquet(temporary)
        data = temporary.read_bytes()
        write_atomic(folder / f"{name}.parquet", data)
        hashes[f"{name}.parquet"] = sha256(data)
        temporary.unlink()
    options = asdict(config) | {"overwrite_stage": None, "seeds": Path(config.seeds).name}
    if config.parallel:
        options["parallel"] = Path(config.parallel).name
    options.pop("output_dir")
    manifest = {
        "options": options,
        **facts,
        "counts": {"train": _count(train), "test": _count(test), "rejected": count_reasons(rejected), **counts},
        "sha256": hashes,
        "versions": {name: package_version(name) for name in ("sdrrl-trl", "transformers", "torch", "datasets")},
    }
    write_atomic(folder / "README.md", _card(manifest))
    write_json(folder / "manifest.json", manifest)


def count_reasons(rejected: list[dict[str, str]]) -> dict[str, int]:
    """How many rows were rejected, by stage and reason."""
    return dict(sorted(Counter(f"{row['stage']}/{row['reason']}" for row in rejected).items()))


def _count(records: list[Record]) -> dict[str, int]:
    counts = Counter(f"{record.kind} {record.question_language}-{record.answer_language}" for record in records)
    return dict(sorted(counts.items()))


def summary(manifest: dict[str, Any]) -> str:
    """What is in a transfer set, as a few lines of text."""
    counts = manifest["counts"]
    lines = [f"{counts['seeds']} questions"]
    for name in ("train", "test", "rejected"):
        lines.append(f"{name}: {sum(counts[name].values())} rows")
        lines += [f"  {key}: {value}" for key, value in counts[name].items()]
    if counts["left_out"]:
        left_out = ", ".join(f"{kind} {n}" for kind, n in counts["left_out"].items())
        lines.append(f"not used, for the scarcest kind sets the size: {left_out}")
    return "\n".join(lines)


def load_manifest(folder: Path) -> dict[str, Any]:
    """
    Manifest of a finished transfer set.

    Raises:
        `SDRRLError`: if the folder holds none, or if a file is missing or was changed since.
    """
    if not (folder / "manifest.json").exists():
        raise SDRRLError(f"{folder} holds no finished transfer set. Build it first with `sdrrl build`.")
    manifest = read_json(folder / "manifest.json", expect=("options", "engines", "counts", "sha256"))
    for name, expected in manifest["sha256"].items():
        path = folder / name
        if not path.is_file() or sha256(path.read_bytes()) != expected:
            raise SDRRLError(
                f"{path} is missing or was changed since the set was built. Publish the set again with `sdrrl build "
                "--overwrite_stage mix`, which keeps answers and translations."
            )
    return manifest


def _card(manifest: dict[str, Any]) -> str:
    options, engines = manifest["options"], manifest["engines"]
    languages = [options["source_language"], *options["target_languages"]]
    # No `configs:` here: with it, `load_dataset` caches a local folder by its name alone and returns the rows of
    # another transfer set of the same name (datasets 5.2). Without it, the splits follow from the file names.
    return f"""---
language: [{", ".join(languages)}]
---
# Transfer set ({" ".join(languages)})

Self-distillation from a resource-rich language (SDRRL, arXiv 2402.12204): answers of
`{Path(options["model_name_or_path"]).name}` to questions in `{options["source_language"]}`, translated by
{engines["translator"]["engine"]} (licence: {engines["translator"].get("licence", "not stated")}).

`load_dataset("<this folder>")` gives the splits `train` and `test`; `rejected.parquet` holds what was dropped and why.

```
{summary(manifest)}
```
"""
