"""Finds the items of benchmarks among the questions: a model trained on them would be measured on what it has seen."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import datasets

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.tasks import data
from sdrrl_trl.tasks.flores import sentences
from sdrrl_trl.transfer.answer import MAX_CHARACTERS
from sdrrl_trl.transfer.seeds import Seeds


# What loads each benchmark of ours, and the columns with the texts that questions are compared with
BENCHMARKS = {
    "belebele": (data.load_belebele, ("flores_passage", "question")),
    "flores200": (lambda code, **_: {"devtest": [{"text": text} for text in sentences(code)]}, ("text",)),
    "mkqa": (data.load_mkqa, ("question",)),
    "mmmlu": (data.load_mmmlu, ("Question",)),
    "multijail": (data.load_multijail, ("prompt",)),
    "pku_saferlhf": (data.load_pku_prompts, ("prompt",)),
    "xlsum": (data.load_xlsum, ("text",)),
    "xnli": (data.load_xnli, ("premise",)),
    "xstorycloze": (data.load_xstorycloze, ("context",)),
}
# So many words in a row are not there by chance (as in GPT-3's test, https://huggingface.co/papers/2005.14165). Nor
# is all of a shorter text, if it has as many as the second; with fewer, it must be the whole question
N_WORDS, MIN_WORDS = 13, 8


def find_items(seeds: Seeds, language: str) -> dict[str, dict]:
    """
    Which questions share 13 words in a row with an item of a benchmark whose data are on this machine, in
    `SDRRL_DATA_DIR` or the cache of `datasets`, hold all of a shorter one, or are a short one. Nothing is downloaded.

    Args:
        seeds ([`Seeds`]): The questions.
        language (`str`): Tag of their language.

    Returns:
        `dict[str, dict]`: under `found`, the benchmark by the id of the question; under `checked`, the number of texts
        by benchmark.
    """
    known, checked, found = {}, {}, {}
    # In words, or in letters, two of which count as a word
    factor = 1 if LANGUAGES[language].spaces else 2
    shortest, longest = factor * MIN_WORDS, factor * N_WORDS
    for benchmark, texts in _texts(language):
        checked[benchmark] = len(texts)
        for words in (_words(text, language) for text in texts):
            # All that follow each other, but not all that there are: who quotes an article quotes more than that
            starts = range(0, max(len(words) - longest, 0) + 1, longest)
            known |= {hash(words[start : start + longest]): benchmark for start in starts if words}
    for seed in seeds if known else ():
        words = _words("\n".join(seed.turns)[:MAX_CHARACTERS], language)  # longer questions are rejected
        grams = (words[i : i + n] for n in range(shortest, longest + 1) for i in range(len(words) - n + 1))
        whole = (_words(turn, language) for turn in seed.turns)
        if benchmark := next(filter(None, map(known.get, map(hash, chain(whole, grams)))), None):
            found[seed.source_id] = benchmark
    return {"found": found, "checked": checked}


def _texts(tag: str) -> Iterator[tuple[str, list[str]]]:
    """The texts of each benchmark that can be loaded."""
    language = LANGUAGES[tag]
    codes = language.benchmarks | {"flores200": language.flores} | ({"pku_saferlhf": "en"} if tag == "en" else {})
    for benchmark, (load, columns) in BENCHMARKS.items():
        if benchmark in codes:
            try:
                with _offline():
                    rows = next(iter(load(code=codes[benchmark], language=tag, script=language.script).values()))
            except Exception:  # not on this machine, or not as the tasks need it, which they will say
                continue
            yield benchmark, sorted({row[column] for row in rows for column in columns})


@contextmanager
def _offline() -> Iterator[None]:
    """No request to the hub, and no word about it."""
    before, verbosity = datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(verbosity)


def _words(text: str, language: str) -> tuple[str, ...]:
    """Words without case and marks; letters, where words have no spaces between them."""
    words: Iterable[str] = re.findall(r"\w+", text.casefold())
    return tuple(words if LANGUAGES[language].spaces else "".join(words))
