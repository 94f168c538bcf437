"""Engines without a model, and builds with them, for tests of what is around them and for benchmarks/builder.py."""

import random
import time
import zlib
from pathlib import Path

from sdrrl_trl import TransferConfig, build_transfer_set
from sdrrl_trl.engines import Generation


WORDS = "the sky water light people house small great river through between under over from with and a of in".split()


def sentence(key: str, n: int = 12) -> str:
    """English-looking words that follow from the key."""
    rng = random.Random(zlib.crc32(key.encode()))
    return " ".join(rng.choices(WORDS, k=n)).capitalize() + "."


class StubGenerator:
    """Answers with a few sentences that follow from the question. Notes what it was asked."""

    def __init__(self, log: Path | None = None, pause: float = 0.0):
        self.log, self.pause = log, pause

    def describe(self):
        return {"engine": "stub"}

    def generate(self, conversations):
        questions = [conversation[-1]["content"] for conversation in conversations]
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write("".join(f"{question!r}\n" for question in questions))
        time.sleep(self.pause)
        return [Generation(f"{sentence(q)} {sentence(q[::-1])}", "stop", 30) for q in questions]


class StubTranslator:
    """
    Replaces the words by Portuguese ones, so that the filters pass the result, and back. Notes what it was sent.
    """

    VOCABULARY = dict(
        zip(
            WORDS,
            "o céu água luz pessoas casa pequeno grande rio através entre debaixo sobre desde com e um de em".split(),
            strict=True,
        )
    )

    def __init__(self, log: Path | None = None, pause: float = 0.0):
        self.log, self.pause = log, pause

    def describe(self):
        return {"engine": "stub", "licence": "CC0"}

    def translate(self, texts, source, target):
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write("".join(f"{source}>{target} {text!r}\n" for text in texts))
        time.sleep(self.pause)
        if source != "en":
            back = {v: k for k, v in self.VOCABULARY.items()}
            return [self._words(text, back) for text in texts]
        return [self._words(text, self.VOCABULARY) for text in texts]

    @staticmethod
    def _words(text, vocabulary=VOCABULARY):
        words = [vocabulary.get(word.strip(".").lower(), word.strip(".")) for word in text.split()]
        return (" ".join(words)[:1].upper() + " ".join(words)[1:]) + ("." if text.endswith(".") else "")


def stub_config(seeds, folder, **options):
    base = {"seeds": seeds, "output_dir": str(folder), "model_name_or_path": "stub", "target_languages": ["pt"]}
    base |= {"shard_size": 3, "lexicon": {"pt": str(Path(folder).with_name("lexicon.tsv"))}}
    return TransferConfig(**base | options)


def build(seeds, folder, generator=None, translator=None, **options):
    """A set of questions, built with these engines or with the stubs."""
    engines = generator or StubGenerator(), translator or StubTranslator()
    return build_transfer_set(stub_config(seeds, folder, **options), *engines)


def content(folder: Path, missing: str = "") -> dict[str, bytes]:
    names = {"train.parquet", "test.parquet", "rejected.parquet", "manifest.json", "README.md"} - {missing}
    return {name: (folder / name).read_bytes() for name in names}


def rejected_of(folder):
    from datasets import Dataset

    return Dataset.from_parquet(str(folder / "rejected.parquet")).to_list()
