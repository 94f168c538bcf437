"""Engines without a model, and builds with them, for tests of what is around them and for benchmarks/builder.py."""

import os
import random
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch.distributed as dist
from datasets import Dataset

from sdrrl_trl import TransferConfig, build_transfer_set
from sdrrl_trl.engines import Generation
from sdrrl_trl.transfer.answer import answer_seeds
from sdrrl_trl.transfer.seeds import Seeds
from sdrrl_trl.transfer.select_engines import make_generator
from sdrrl_trl.transfer.shards import Stage, map_shards


WORDS = "the sky water light people house small great river through between under over from with and a of in".split()


def sentence(key: str, n: int = 12) -> str:
    """English-looking words that follow from the key."""
    rng = random.Random(zlib.crc32(key.encode()))
    return " ".join(rng.choices(WORDS, k=n)).capitalize() + "."


def note(log: Path | None, lines) -> None:
    if log is not None:
        with open(log, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


@dataclass
class StubGenerator:
    """
    Answers with a few sentences that follow from the question. Notes what it was asked, and changes its answers, which
    it numbers in each shard, as it is told.
    """

    log: Path | None = None
    pause: float = 0.0
    change: Callable[[int, Generation], Generation] = lambda number, answer: answer
    engine: str = "stub"

    def describe(self):
        return {"engine": self.engine}

    def generate(self, conversations):
        questions = [conversation[-1]["content"] for conversation in conversations]
        note(self.log, map(repr, questions))
        time.sleep(self.pause)
        answers = [Generation(f"{sentence(q)} {sentence(q[::-1])}", "stop") for q in questions]
        return [self.change(number, answer) for number, answer in enumerate(answers)]


@dataclass
class StubTranslator:
    """
    Replaces English words by Portuguese ones, so that the filters pass the result. Notes what it was sent, and changes
    its translations as it is told.
    """

    log: Path | None = None
    pause: float = 0.0
    change: Callable[[str], str | None] = str
    licence: str = "CC0"

    VOCABULARY: ClassVar = dict(
        zip(
            WORDS,
            "o céu água luz pessoas casa pequeno grande rio através entre debaixo sobre desde com e um de em".split(),
            strict=True,
        )
    )

    def describe(self):
        return {"engine": "stub", "licence": self.licence}

    def translate(self, texts, source, target):
        note(self.log, (f"{source}>{target} {text!r}" for text in texts))
        time.sleep(self.pause)
        return [self.change(self.translate_words(text)) for text in texts]

    @classmethod
    def translate_words(cls, text):
        words = [cls.VOCABULARY.get(word.strip(".").lower(), word.strip(".")) for word in text.split()]
        return (" ".join(words)[:1].upper() + " ".join(words)[1:]) + ("." if text.endswith(".") else "")


def stub_config(seeds, folder, **options):
    base = {"seeds": seeds, "output_dir": str(folder), "model_name_or_path": "stub", "target_languages": ["pt"]}
    base |= {"shard_size": 3, "lexicon": {"pt": str(Path(folder).with_name("lexicon.tsv"))}}
    return TransferConfig(**base | options)


def build(seeds, folder, generator=None, translator=None, **options):
    """A set of questions, built with these engines or with the stubs."""
    engines = generator or StubGenerator(), translator or StubTranslator()
    return build_transfer_set(stub_config(seeds, folder, **options), *engines)


def content(folder: Path) -> dict[str, bytes]:
    names = {"train.parquet", "test.parquet", "rejected.parquet", "manifest.json", "README.md"}
    return {name: (folder / name).read_bytes() for name in names}


def rows_of(folder: Path, split: str = "train") -> list[dict]:
    return Dataset.from_parquet(str(folder / f"{split}.parquet")).to_list()


def answer_with_model(seeds, folder, model):
    """The shards of answers that a model samples, by their names."""
    config = stub_config(seeds, folder, model_name_or_path=str(model), max_new_tokens=12, dtype="float32")
    answer = partial(answer_seeds, generator=make_generator(config), config=config, benchmarks={})
    questions, stage = list(Seeds(config.seeds)), Stage("answer", folder / "stages" / "answer", {})
    map_shards(questions, answer, stage, config.shard_size, len(questions))
    return {path.name: path.read_bytes() for path in stage.folder.glob("*.jsonl")}


if __name__ == "__main__":  # run under torchrun by test_build_runs.py: one build shared by processes
    seeds, folder, logs, model = sys.argv[1:]
    asked, sent = (Path(logs) / f"{name}-{os.environ['RANK']}" for name in ("asked", "sent"))
    build(seeds, folder, StubGenerator(asked), StubTranslator(sent))
    answer_with_model(seeds, Path(logs) / "two_sampled", model)
    dist.destroy_process_group()
