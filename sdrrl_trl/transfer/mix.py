"""
Which records the rows give, which questions are held out, and which records are taken for training.

The rows stay on disk and are read several times: to choose the test questions, to see which records could be made, of
which 64 bits each are kept, and to make those that are taken.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sdrrl_trl.transfer.answer import read_answers
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.parallel import MIN_COMPLETION_CHARACTERS
from sdrrl_trl.transfer.prompts import completion_prompt, translation_prompt
from sdrrl_trl.transfer.rows import Answer, Pair, Record, hash64, key_of, rejected_row
from sdrrl_trl.transfer.shards import read_shards
from sdrrl_trl.utils import SDRRLError, sha256


MAX_TEST_SENTENCES = 200  # for each language


class Mix:
    """
    The rows of all stages, in the order of the questions, and the choice among their records.

    Args:
        config ([`TransferConfig`]):
            Options of the build.
        answers (`Path`):
            Folder of the answers.
        pairs (`list[Path]`):
            Folders of their translations, one for each target language.
        sentences (`Path`):
            Folder of the parallel sentences; there may be none.

    Attributes, after [`choose`]:
        available (`Counter[tuple[str, str]]`):
            Number of training records that can be made, by kind and language.
        rejected (`dict[str, int]`):
            Number of rejected rows by reason and language.
        n_truncated (`int`):
            Number of answers that were cut off. They are of use in records of the kind `source` alone.
    """

    def __init__(self, config: TransferConfig, answers: Path, pairs: list[Path], sentences: Path):
        self._config, self._answers, self._pairs, self._sentences = config, answers, pairs, sentences
        # The three kinds besides are those that the evaluation on held-out questions and sentences needs
        self._kinds = {*config.proportions, "source", "target", "translation"}
        # Numbers of 64 bits in an array: a list of Python integers would take five times the memory
        ranks = array("Q", (self._rank(answer) for answer in read_answers(answers) if answer.reason is None))
        n_test = max(1, round(len(ranks) * config.test_size)) if config.test_size and ranks else 0
        self._last_test_rank = _smallest(ranks, n_test)
        of_language: dict[str, array[int]] = defaultdict(lambda: array("Q"))
        for pair in read_shards(sentences, Pair):
            if pair.reason is None and pair.source:
                of_language[pair.language].append(self._rank(pair))
        # All, if they are not trained on
        share = (
            config.test_size if {"translation", "completion"} & config.proportions.keys() else bool(config.test_size)
        )
        self._last_test_sentence = {
            language: _smallest(found, min(round(len(found) * share), MAX_TEST_SENTENCES))
            for language, found in of_language.items()
        }
        self._test_questions = set(self._find_test_questions())

    def _rank(self, row: Answer | Pair) -> int:
        """
        Place of a question or parallel sentence in a random order. The first are held out. Each has its place by
        itself, so that those that come or go move few others; a sentence has the same one in all languages.
        """
        return hash64(f"{self._config.seed}:{row.key if isinstance(row, Answer) else row.source}")

    def _questions(self) -> Iterator[tuple[Answer, tuple[Pair, ...], bool]]:
        """Each question with its translations, and whether it is held out."""
        pairs = zip(*(read_shards(folder, Pair) for folder in self._pairs), strict=True)
        for answer in read_answers(self._answers):
            # Those that were cut off, too: without the long ones, drift would be measured on short answers alone
            is_test = answer.reason is None and self._rank(answer) <= self._last_test_rank
            if answer.truncated and not is_test and "source" not in self._config.proportions:
                answer = replace(answer, reason=answer.reason or "answer/truncated")  # there is no other use for it
            if answer.reason is not None or answer.truncated:
                yield answer, (), is_test
                continue
            translated = next(pairs, ())
            # An answer made anew after damage may differ, and be good or bad when it was not before
            if [pair.source_id for pair in translated] != [answer.source_id] * len(self._pairs):
                raise SDRRLError(
                    f"The translations in {self._pairs[0].parent} are not those of the answers in {self._answers}. "
                    "Do them again with `--overwrite_stage translate`."
                )
            yield answer, translated, is_test

    def _find_test_questions(self) -> Iterator[int]:
        for answer, pairs, is_test in self._questions():
            if is_test:
                yield from map(_question_key, answer.turns[::2])
                for pair in pairs:
                    yield from map(_question_key, [] if pair.reason else pair.target[:-1:2])
        for pair in read_shards(self._sentences, Pair):
            if self._is_test_sentence(pair):
                yield from map(_question_key, pair.source + pair.target)

    def _is_test_sentence(self, pair: Pair) -> bool:
        last = self._last_test_sentence.get(pair.language, -1)
        return pair.reason is None and bool(pair.source) and self._rank(pair) <= last

    def __iter__(self) -> Iterator[tuple[Answer | Pair, bool]]:
        """
        All rows, and whether each is held out. What is a test question or sentence, too, in some turn or some
        language, is rejected: these come into training neither by other conversations nor by other sentences.
        """
        for answer, pairs, is_test in self._questions():
            # Every second turn is a question
            if not is_test and self._asks_test_question(answer.turns[::2]):
                yield replace(answer, reason=answer.reason or "mix/held_out"), False
                continue
            yield answer, is_test
            for pair in pairs:
                leaks = not is_test and self._asks_test_question(pair.target[:-1:2])
                yield (replace(pair, reason=pair.reason or "mix/held_out") if leaks else pair), is_test
        seen: set[int] = set()
        for pair in read_shards(self._sentences, Pair):
            key, is_test = hash64(repr((pair.language, pair.source, pair.target))), self._is_test_sentence(pair)
            if pair.reason is None and key in seen:
                pair = replace(pair, reason="parallel/duplicate")
            elif pair.reason is None and not is_test and self._asks_test_question(pair.source + pair.target):
                pair = replace(pair, reason="parallel/held_out")
            seen.add(key)
            yield pair, is_test

    def _asks_test_question(self, texts: tuple[str, ...]) -> bool:
        return any(_question_key(text) in self._test_questions for text in texts)

    def choose(self) -> dict[tuple[str, str], int]:
        """
        Decides which training records are taken: at random, but the same each time. Returns how many of each kind and
        language.

        Raises:
            `SDRRLError`: if there would be none of a kind or language that was asked for.
        """
        rejected: Counter[str] = Counter()
        self.n_truncated = 0
        ranks: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("Q"))
        for row, is_test in self:
            if row.reason:
                language = rejected_row(row, self._config.source_language)["language"]
                rejected[f"{row.reason} {language}"] += 1
            elif not is_test:
                self.n_truncated += isinstance(row, Answer) and row.truncated
                for record in self.records(row):
                    ranks[record.kind, record.language].append(record.rank(self._config.seed))
        self.available = Counter({cell: len(found) for cell, found in ranks.items()})
        self.rejected = dict(sorted(rejected.items()))
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.rejected.items())
        chosen = quotas(self.available, self._config, f" Rejected: {reasons or 'nothing'}.")
        self._last_ranks = {cell: _smallest(ranks[cell], n) for cell, n in chosen.items()}
        return chosen

    def records(self, row: Answer | Pair) -> Iterator[Record]:
        """The records of a row that can be of use."""
        found = records_of(row, self._config.source_language)
        return (record for record in found if record.kind in self._kinds)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of the data set, each with the split that it belongs to, or `"rejected"`; after [`choose`]."""
        for row, is_test in self:
            if row.reason:
                yield "rejected", rejected_row(row, self._config.source_language)
                continue
            for record in self.records(row):
                last_rank = self._last_ranks.get((record.kind, record.language), -1)
                # All test records: the evaluation picks the kinds that it needs
                if is_test:
                    yield "test", record.to_row()
                elif record.rank(self._config.seed) <= last_rank:
                    yield "train", record.to_row()


def _question_key(text: str) -> int:
    return int(key_of(text)[:16], 16)


def _smallest(ranks: "array[int]", n: int) -> int:
    """The n-th smallest: those up to it are taken."""
    # No rank is as small as -1
    return int(np.partition(np.frombuffer(ranks, np.uint64), n - 1)[n - 1]) if n else -1


def records_of(row: Answer | Pair, source: str) -> Iterator[Record]:
    """
    All records that can be made of a good row: question and answer in all combinations of the two languages.

    Args:
        row ([`Answer`] or [`Pair`]): What they are made of.
        source (`str`): Tag of the source language.
    """
    if isinstance(row, Answer):
        yield Record("source", row.turns, row.text, source, source, source, row.source_id, row.system, row.truncated)
        return
    if row.is_sentence:
        yield from _records_of_sentence(row, source)
        return
    target = row.language
    *question, answer = row.source
    *translated_question, translated_answer = row.target
    record = partial(Record, language=target, source_id=row.source_id, system=row.system)
    yield record("target", (*translated_question,), translated_answer, target, target)
    yield record("target_to_source", (*translated_question,), answer, target, source)
    yield record("source_to_target", (*question,), translated_answer, source, target)
    if row.switched:
        switched_question = (*question[:-1], row.switched)
        yield record("code_switch", switched_question, answer, source, source)
        yield record("code_switch", switched_question, translated_answer, source, target)


def _records_of_sentence(pair: Pair, source: str) -> Iterator[Record]:
    """Translations in both directions, and the sentence of the target language in two halves."""
    target, (translation,) = pair.language, pair.target
    record = partial(Record, language=target, source_id=pair.source_id, system=pair.system)

    def wording(direction: str) -> int:
        return int(sha256(f"{pair.source_id}:{direction}")[:8], 16)

    for original in pair.source:
        prompt = translation_prompt(source, target, wording("from_source"))
        yield record("translation", (f"{prompt}\n\n{original}",), translation, source, target)
        prompt = translation_prompt(target, source, wording("to_source"))
        yield record("translation", (f"{prompt}\n\n{translation}",), original, target, source)
    if len(translation) >= MIN_COMPLETION_CHARACTERS:
        first, rest = _halves(translation)
        prompt = completion_prompt(target, wording(""))
        yield record("completion", (f"{prompt}\n\n{first}",), rest, target, target)


def _halves(text: str) -> tuple[str, str]:
    words = text.split(" ")
    if len(words) == 1:
        return text[: len(text) // 2], text[len(text) // 2 :]
    middle = (len(words) + 1) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def quotas(
    available: Counter[tuple[str, str]], config: TransferConfig, rejected: str = ""
) -> dict[tuple[str, str], int]:
    """
    How many records of each kind and language are taken: kinds in the proportions asked for, and within a kind,
    languages as they are available. If `size` is not set, as many as the scarcest kind allows.

    Args:
        available (`Counter`): Number of records by kind and language.
        config ([`TransferConfig`]): Options of the build.
        rejected (`str`, *optional*, defaults to `""`): What was rejected, for the error.

    Raises:
        `SDRRLError`: if there would be none of a kind or language that was asked for.
    """
    of_kind: Counter[str] = Counter()
    for (kind, _), n in available.items():
        of_kind[kind] += n
    shares = {
        (kind, language): config.proportions[kind] / sum(config.proportions.values()) * n / of_kind[kind]
        for (kind, language), n in sorted(available.items())
        if kind in config.proportions and n
    }
    size = config.size or min((available[cell] / share for cell, share in shares.items()), default=0)
    # 1e-9 against products such as 9.999999, where 10 records are asked for
    chosen = {cell: min(available[cell], int(size * share + 1e-9)) for cell, share in shares.items()}
    missing = []
    for kind in config.proportions:
        for language in [config.source_language] if kind == "source" else config.target_languages:
            # A lexicon or corpus need not have all languages
            is_needed = kind not in ("code_switch", "translation", "completion") or not of_kind[kind]
            if not chosen.get((kind, language), int(not is_needed)):
                missing.append(f"{kind} {language}")
    if missing:
        raise SDRRLError(
            f"The training set would have no record of: {', '.join(missing)}. Available: {cells(available)}.{rejected}"
            " Use more seeds, a larger `max_new_tokens`, or another `size`, `test_size` or `proportions`."
        )
    return chosen


def cells(counts: dict[tuple[str, str], int]) -> str:
    """Counts by kind and language for messages."""
    return ", ".join(f"{kind} {language} {n}" for (kind, language), n in sorted(counts.items())) or "nothing"
