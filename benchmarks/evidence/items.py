"""
Chooses the items of the evidence by rule and writes `items.yaml`: which rows and lines of the data (counted from 1).

    python benchmarks/evidence/items.py

Needs the pools of greedy answers and of references (see `data.py`). Was run once, before the first training.
"""

import json
import random

import data
import yaml
from pairs import KINDS, minimal_pair
from transformers import AutoTokenizer

from sdrrl_trl.engines.fast_translate import smollm2
from sdrrl_trl.transfer.rows import key_of
from sdrrl_trl.utils import sha256, write_atomic


N_PAIRS = 150  # of each kind, half of them from FLORES, if there are so many
N_CHOICES = 300


def held_out_questions() -> list[str]:
    """As in the first round: complete in both pools, own answers of at most 192 tokens, in the order of their hash."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2()[0])
    complete = []
    for answers in ("greedy", "reference"):
        rows = data.read_pool("smollm2", answers, tokenizer)
        short = [row for row in rows if row["n_tokens"] <= data.CONFIG["training"]["max_tokens"]]
        for kind in ("source", "target"):
            complete.append({row["source_id"] for row in short if row["kind"] == kind})
        if answers == "greedy":
            complete.append(
                {row["source_id"] for row in rows if row["kind"] == "source" and row["n_supervised"] <= 194}
            )
    return sorted(set.intersection(*complete), key=sha256)


def human_questions() -> list[int]:
    """Rows of self_instruct whose instruction is none of those trained on."""

    def instructions(file: str) -> list[str]:
        lines = (data.DATA / "instructions" / file).read_text(encoding="utf-8").splitlines()
        return [key_of(json.loads(line)["instruction"]) for line in lines]

    trained = set(instructions("alpaca_1000.jsonl")[: data.N_QUESTIONS])
    return [n for n, key in enumerate(instructions("self_instruct_175.jsonl"), 1) if key not in trained]


def pair_lines() -> dict[str, dict[str, list[int]]]:
    """Of each kind of minimal pair, lines of FLORES and of Tatoeba; no line twice, none that was trained on."""
    flores, tatoeba = data.lines("flores", "pt"), data.lines("tatoeba", "pt")
    found: dict[str, dict[str, list[int]]] = {}
    used = set(tatoeba[: data.N_PARALLEL])
    for kind in sorted(KINDS, reverse=True):  # the scarce kinds have the first choice
        found[kind] = {}
        for name, lines, start in (("flores", flores, 280), ("tatoeba", tatoeba, data.N_PARALLEL)):
            wanted = N_PAIRS // 2 if name == "flores" else N_PAIRS - len(found[kind]["flores"])
            found[kind][name] = []
            for number, line in enumerate(lines[start:], start + 1):
                if len(found[kind][name]) < wanted and line not in used and minimal_pair(line, kind):
                    found[kind][name].append(number)
                    used.add(line)
    return found


def choices() -> list[list[int]]:
    """Questions of MKQA with one answer, each with three other questions whose answers are the wrong ones."""
    answers = {n: set(row["answers"]) for n, row in enumerate(data.json_lines("mkqa/pt.jsonl"), 1)}
    usable = {n: min(those) for n, those in answers.items() if len(those) == 1 and not those & {"yes", "no"}}
    asked, rng = list(usable)[:N_CHOICES], random.Random(0)
    rows = []
    for n in asked:
        others = {usable[other]: other for other in asked if usable[other] != usable[n]}  # no wrong answer twice
        rows.append([n, *rng.sample(sorted(others.values()), 3)])
    return rows


def main() -> None:
    ids = held_out_questions()
    items = {
        "dev_questions": ids[60:90],
        "open_questions": ids[:60],
        "dev_flores": list(range(101, 281, 3)),
        "dev_drift": list(range(801, 821)),
        "drift": list(range(701, 801)),
        "human": human_questions(),
        "flores": list(range(281, 1013, 3)),
        "translations": list(range(281, 1013, 6)),
        "pairs": pair_lines(),
        "choices": choices(),
        "stories": list(range(401, 1512)),
        "inferences": list(range(151, 1001)),
    }
    text = yaml.safe_dump(items, default_flow_style=None, sort_keys=False, allow_unicode=True, width=119)
    write_atomic(data.HERE / "items.yaml", text)
    print({name: len(those) for name, those in items.items()})


if __name__ == "__main__":
    main()
