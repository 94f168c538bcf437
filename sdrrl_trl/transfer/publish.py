"""Stage 4: the transfer set is written to disk, its manifest last."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.items import REJECTED
from sdrrl_trl.utils import SDRRLError, package_version, read_json, write_atomic, write_json


SAMPLE = 100  # rows of each kind and language whose tokens are counted; the rest is estimated by their length
PROVENANCE = ("kind", "question_language", "answer_language", "source_id")


def publish(
    config: TransferConfig,
    splits: dict[str, Iterable[dict[str, Any]]],
    rejected: Iterable[dict[str, str]],
    facts: dict[str, Any],
    counts: dict[str, Any],
    count_tokens: Callable[[list[str]], int] | None,
) -> None:
    """
    Writes data and card, and last the manifest: where it stands, the set is complete.

    Args:
        config ([`TransferConfig`]):
            Options of the build.
        splits (`dict[str, Iterable]`):
            Rows of `train` and `test`.
        rejected (`Iterable`):
            What was dropped, with stage and reason.
        facts (`dict[str, Any]`):
            More for the manifest: `inputs`, `engines`, `licences`.
        counts (`dict[str, Any]`):
            More for the manifest's counts.
        count_tokens (`Callable`, *optional*):
            Number of tokens of some texts.
    """
    from datasets import Features, List, Value

    folder, text = Path(config.output_dir), Value("string")
    message = List({"role": text, "content": text})
    schema = Features({"prompt": message, "completion": message, **dict.fromkeys(PROVENANCE, text)}).arrow_schema
    hashes, tokens = {}, 0
    (folder / "manifest.json").unlink(missing_ok=True)
    for name, rows in splits.items():
        tally = _Tally(count_tokens)
        if _write(folder / f"{name}.parquet", tally.watch(rows), schema):
            hashes[f"{name}.parquet"] = _sha256_of(folder / f"{name}.parquet")
        else:  # `load_dataset` cannot open a split without rows
            (folder / f"{name}.parquet").unlink()
        counts[name] = dict(sorted(tally.rows.items()))
        if name == "train":
            tokens = tally.tokens()
            counts["non_commercial"] = _non_commercial(tally.rows, facts["licences"])
    _write(folder / "rejected.parquet", rejected, Features(dict.fromkeys(REJECTED, text)).arrow_schema)
    hashes["rejected.parquet"] = _sha256_of(folder / "rejected.parquet")
    options = _without_folders(asdict(config))
    facts["inputs"] = _without_folders(facts["inputs"])
    for name in ("output_dir", "overwrite_stage", "dry_run", "tokens_per_second", "price_per_million_tokens"):
        options.pop(name)
    manifest = {
        "options": options,
        **facts,
        "counts": counts | {"training_tokens": tokens},
        "sha256": hashes,
        "versions": {name: package_version(name) for name in ("sdrrl-trl", "transformers", "torch", "datasets")},
    }
    write_atomic(folder / "README.md", _card(manifest))
    write_json(folder / "manifest.json", manifest)


class _Tally:
    """Counts rows by kind and languages as they pass, and estimates their tokens."""

    def __init__(self, count_tokens: Callable[[list[str]], int] | None):
        self.count_tokens = count_tokens
        self.rows: Counter[str] = Counter()
        self._characters: Counter[str] = Counter()
        self._sample: dict[str, list[str]] = defaultdict(list)

    def watch(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            cell = f"{row['kind']} {row['question_language']}-{row['answer_language']}"
            text = "\n".join(message["content"] for message in (*row["prompt"], *row["completion"]))
            self.rows[cell] += 1
            self._characters[cell] += len(text)
            if len(self._sample[cell]) < SAMPLE:
                self._sample[cell].append(text)
            yield row

    def tokens(self) -> int | None:
        if self.count_tokens is None:
            return None
        total = 0.0
        for cell, texts in self._sample.items():
            total += self._characters[cell] * self.count_tokens(texts) / max(sum(map(len, texts)), 1)
        return round(total)


def _write(path: Path, rows: Iterable[dict[str, Any]], schema: Any) -> int:
    """Writes a Parquet file, a thousand rows at a time, or nothing. Returns the number of rows."""
    import pyarrow
    import pyarrow.parquet

    temporary, n, chunk = path.with_name(f".{path.name}.tmp"), 0, []
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for row in rows:
                chunk.append(row)
                n += 1
                if len(chunk) == 1000:
                    writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
                    chunk = []
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return n


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_folders(options: dict[str, Any]) -> dict[str, Any]:
    """Files and models by name alone, so that the manifest is the same wherever they are."""

    def name_of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: name_of(v) for key, v in value.items()}
        if isinstance(value, list):
            return [name_of(v) for v in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    paths = ("seeds", "parallel", "lexicon", "model_name_or_path", "translator_model")
    return {name: name_of(value) if name in paths else value for name, value in options.items()}


def is_non_commercial(licence: str) -> bool:
    return re.search(r"\bNC\b|non-?commercial", licence, re.IGNORECASE) is not None


def _non_commercial(rows: Counter[str], licences: dict[str, str]) -> float:
    """Share of the rows that carry something under a non-commercial licence."""
    bound = {name for name, licence in licences.items() if is_non_commercial(licence)}
    parts = {"source": {"seeds", "model"}, "translation": {"parallel"}, "completion": {"parallel"}}
    parts["code_switch"] = {"seeds", "model", "translator", "lexicon"}
    default = {"seeds", "model", "translator"}
    affected = sum(n for cell, n in rows.items() if parts.get(cell.split(" ")[0], default) & bound)
    return round(affected / max(sum(rows.values()), 1), 4)


def summary(manifest: dict[str, Any]) -> str:
    """What is in a transfer set, as a table and a few lines of text."""
    counts = manifest["counts"]
    train, test = counts["train"], counts["test"]
    lines = [f"{'kind and languages':<32}{'train':>10}{'test':>10}"]
    lines += [f"{cell:<32}{train.get(cell, 0):>10,}{test.get(cell, 0):>10,}" for cell in sorted({*train, *test})]
    lines.append(f"{'all':<32}{sum(train.values()):>10,}{sum(test.values()):>10,}")
    if counts["left_out"]:
        lines.append("not used: " + ", ".join(f"{cell} {n:,}" for cell, n in counts["left_out"].items()))
    lines.append(f"{counts['seeds']:,} questions; rejected: {sum(counts['rejected'].values()):,}")
    lines += [f"  {reason}: {n:,}" for reason, n in counts["rejected"].items()]
    for target, masks in counts["masks"].items():
        again = f", {masks['rescued']:,} of them rescued by translating around the masks" if masks["lost"] else ""
        lines.append(
            f"masks, {target}: in {masks['with_masks']:,} of {masks['texts']:,} texts; lost by the translator in "
            f"{masks['lost']:,}{again}"
        )
    for target, switched in counts["code_switch"].items():
        share = switched["switched"] / max(switched["words"], 1)
        lines.append(f"code-switched, {target}: {switched['switched']:,} of {switched['words']:,} words ({share:.1%})")
    tokens = counts["training_tokens"]
    lines.append(f"training tokens: {'not known' if tokens is None else f'about {tokens:,}'}")
    lines.append(f"rows under a non-commercial licence: {counts['non_commercial']:.1%}")
    lines += [f"licence of {name}: {licence}" for name, licence in manifest["licences"].items()]
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
        if not path.is_file() or _sha256_of(path) != expected:
            raise SDRRLError(
                f"{path} is missing or was changed since the set was built. Publish the set again with `sdrrl build "
                "--overwrite_stage mix`, which keeps answers and translations."
            )
    return manifest


def _card(manifest: dict[str, Any]) -> str:
    options = manifest["options"]
    languages = [options["source_language"], *options["target_languages"]]
    # No `configs:` here: with it, `load_dataset` caches a local folder by its name alone and returns the rows of
    # another transfer set of the same name (datasets 5.2). Without it, the splits follow from the file names.
    return f"""---
language: [{", ".join(languages)}]
---
# Transfer set ({" ".join(languages)})

Self-distillation from a resource-rich language (SDRRL, arXiv 2402.12204): answers of
`{Path(options["model_name_or_path"]).name}` to questions in `{options["source_language"]}`, translated by
{manifest["engines"]["translator"]["engine"]}.

`load_dataset("<this folder>")` gives the splits `train` and `test`; `rejected.parquet` holds what was dropped and why.

```
{summary(manifest)}
```
"""
