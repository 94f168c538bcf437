"""`sdrrl export`: a transfer set as other trainers of TRL take it."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from sdrrl_trl.transfer.files import read_parquet
from sdrrl_trl.transfer.publish import load_manifest, parquet_writer
from sdrrl_trl.utils import SDRRLError


def export(folder: Path, output: Path, method: str) -> int:
    """
    Writes the questions of which a transfer set has the records of both kinds `source` and `target`.

    `"dpo"`, for [`~trl.DPOTrainer`]: the answer in the language of the question over the one in the other language,
    for the target question and for the source question (CLO, https://huggingface.co/papers/2505.14297). Columns
    `prompt`, `chosen` and `rejected`, as messages.

    `"sdft"`, for the experimental `SDFTTrainer` of TRL (https://huggingface.co/papers/2601.19897): the target question
    as `prompt`; the source question with its answer, as text, as `privileged_context`, which only the teacher sees.

    Args:
        folder (`Path`):
            Folder made by `sdrrl build`.
        output (`Path`):
            New folder for `train.parquet` and, if questions were held out, `test.parquet`.
        method (`str`):
            `"dpo"` or `"sdft"`.

    Returns:
        `int`: number of training rows.

    Raises:
        `SDRRLError`: if there is no finished transfer set, no such question in it, or `output` is there already.
    """
    load_manifest(folder)
    if output.exists():
        raise SDRRLError(f"{output} is there already. Choose another folder, or remove it.")
    make_rows = {"dpo": _preferences, "sdft": _privileged}[method]
    numbers: Counter[str] = Counter()
    for split in ("train", "test"):
        rows = chain.from_iterable(make_rows(*pair) for pair in _pairs(folder, split))
        first = next(rows, None)
        if first is None and split == "train":
            raise SDRRLError(
                f"{folder} has no question with both a `source` and a `target` record. Give both kinds a share: "
                "`proportions: {source: 1, target: 1}`."
            )
        if first is None:  # `load_dataset` cannot open a split without rows
            continue
        output.mkdir(parents=True, exist_ok=True)
        with parquet_writer(output / f"{split}.parquet") as writer:
            for row in chain([first], rows):
                writer.write(row)
                numbers[split] += 1
    return numbers["train"]


def _pairs(folder: Path, split: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The `source` record of each question with each of its `target` records."""
    file = folder / f"{split}.parquet"
    # The rows of a question stand together: the set is in the order of the questions
    for _, rows in groupby(read_parquet(file) if file.exists() else (), key=itemgetter("source_id")):
        of_kind = {"source": [], "target": []}
        for row in rows:
            of_kind.get(row["kind"], []).append(row)
        yield from ((source, target) for source in of_kind["source"] for target in of_kind["target"])


def _preferences(source: dict[str, Any], target: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for asked, other in ((target, source), (source, target)):
        row = {"prompt": asked["prompt"], "chosen": asked["completion"], "rejected": other["completion"]}
        yield row | {"language": asked["question_language"], "source_id": asked["source_id"]}


def _privileged(source: dict[str, Any], target: dict[str, Any]) -> Iterator[dict[str, Any]]:
    messages = [message for message in source["prompt"] + source["completion"] if message["role"] != "system"]
    context = "\n\n".join(message["content"] for message in messages)
    row = {"prompt": target["prompt"], "privileged_context": context}
    yield row | {"language": target["question_language"], "source_id": target["source_id"]}
