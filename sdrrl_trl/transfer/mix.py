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
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sdrrl_trl.languages import count_words
from sdrrl_trl.transfer.answer import read_answers
from sdrrl_trl.transfer.code_switch import CodeSwitcher
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.lexicon import Lexicon
from sdrrl_trl.transfer.parallel import MIN_COMPLETION_CHARACTERS, read_sentences
from sdrrl_trl.transfer.prompts import completion_prompt, translation_prompt
from sdrrl_trl.transfer.rows import Answer, Pair, Record, hash64, key_of, rejected_row
from sdrrl_trl.transfer.shards import read_shards
from sdrrl_trl.utils import SDRRLError, sha256


MAX_TEST_SENTENCES = 200  # for each language
MIN_WORDS = 4  # of a turn that a conversation has in common with a held-out one and is left out for
_QUESTIONS = "questions"


class Mix:
    """
    The rows of all stages, in the order of the questions, and the choice among their records.

    Args:
        config ([`TransferConfig`]):
            Options of the build.
        stages (`Path`):
            Folder of the stages: answers, their translations, and the parallel sentences, if there are any.
        lexicons (`dict[str, Lexicon]`):
            Word lists by target language, for code-switching.

    Attributes, after [`choose`]:
        available (`Counter[tuple[str, str]]`):
            Number of training records that can be made, by kind and language.
        rejected (`dict[str, int]`):
            Number of rejected rows by reason and language.
        n_truncated (`int`):
            Number of answers that were cut off. They are of use in records of the kind `source` alone.
    """

    def __init__(self, config: TransferConfig, stages: Path, lexicons: dict[str, Lexicon]):
        self._config, self._stages = config, stages
        self._switchers = {
            target: CodeSwitcher(lexicon, config.source_language, target, config.code_switch_rate, config.seed)
            for target, lexicon in lexicons.items()
        }
        # The three kinds besides are those that the evaluation on held-out questions and sentences needs
        self._kinds = {*config.proportions, "source", "target", "translation"}
        # Numbers of 64 bits in an array: a list of integers would take five times the memory
        ranks: dict[str | None, array[int]] = defaultdict(lambda: array("Q"))
        for row in chain(read_answers(stages / "answer"), read_sentences(stages / "parallel")):
            if row.reason is None:
                ranks[_group(row)].append(self._rank(row))
        self._last_test_rank = {
            name: _smallest(found, self._n_test(name, len(found))) for name, found in ranks.items()
        }
        tested = (row for row, is_test in self._all_rows() if is_test and row.reason is None)
        self._test_questions = {_question_key(text) for row in tested for text in _questions(row)}

    def _n_test(self, group: str | None, n: int) -> int:
        """How many of the n rows of a group are held out."""
        share = self._config.test_size
        if group is None or not share:
            return 0
        if group == _QUESTIONS:
            return n_held_out(n, share)
        # All, if they are not trained on
        share = share if {"translation", "completion"} & self._config.proportions.keys() else 1
        return min(round(n * share), MAX_TEST_SENTENCES)

    def _rank(self, row: Answer | Pair) -> int:
        """
        Place of a question or parallel sentence in a random order. The first are held out. Each has its place by
        itself, so that those that come or go move few others; a sentence has the same one in all languages.
        """
        return hash64(f"{self._config.seed}:{row.key if isinstance(row, Answer) else row.source}")

    def _is_test(self, row: Answer | Pair) -> bool:
        return row.reason is None and self._rank(row) <= self._last_test_rank.get(_group(row), -1)

    def _all_rows(self) -> Iterator[tuple[Answer | Pair, bool]]:
        """Each question with its translations behind it, then the sentences; and whether they are held out."""
        folders = [self._stages / f"translate_{target}" for target in self._config.target_languages]
        pairs = zip(*(read_shards(folder, Pair) for folder in folders), strict=False)  # a lack is told below
        for answer in read_answers(self._stages / "answer"):
            # Those that were cut off, too: without the long ones, drift would be measured on short answers alone
            is_test = self._is_test(answer)
            if answer.truncated and not is_test and "source" not in self._config.proportions:
                answer = replace(answer, reason=answer.reason or "answer/truncated")  # there is no other use for it
            yield answer, is_test
            if answer.reason is not None or answer.truncated:
                continue
            translated = next(pairs, ())
            # An answer made anew after damage may differ, and be good or bad when it was not before
            if [pair.source_id for pair in translated] != [answer.source_id] * len(folders):
                raise SDRRLError(
                    f"The translations in {self._stages} are not those of the answers there. Do them again with "
                    "`--overwrite_stage translate`."
                )
            yield from ((pair, is_test) for pair in translated)
        yield from ((pair, self._is_test(pair)) for pair in read_sentences(self._stages / "parallel"))

    def __iter__(self) -> Iterator[tuple[Answer | Pair, bool]]:
        """
        All rows, and whether each is held out. What is a test question or sentence, too, in some language or some
        turn that is not short, is rejected: these come into training neither by other conversations nor by sentences.
        """
        for row, is_test in self._all_rows():
            if not is_test and any(_question_key(text) in self._test_questions for text in _questions(row)):
                row = replace(row, reason=row.reason or "mix/held_out")
            yield row, is_test

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
                continue
            self.n_truncated += isinstance(row, Answer) and row.truncated
            if not is_test:
                for record in self.records(row):
                    ranks[record.kind, record.language].append(record.rank(self._config.seed))
        self.available = Counter({cell: len(found) for cell, found in ranks.items()})
        self.rejected = dict(sorted(rejected.items()))
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.rejected.items())
        lost = f" Rejected: {reasons or 'nothing'}."
        if self.n_truncated:
            lost += f" Cut off at `max_new_tokens`, and so not translated: {self.n_truncated} answers."
        chosen = quotas(self.available, self._config, lost)
        self._last_ranks = {cell: _smallest(ranks[cell], n) for cell, n in chosen.items()}
        return chosen

    def records(self, row: Answer | Pair) -> Iterator[Record]:
        """The records of a row that can be of use."""
        switched = None
        if isinstance(row, Pair) and not row.is_sentence and row.language in self._switchers:
            switched = self._switchers[row.language].switch(row.source[-2], f"{row.source_id}:question")
        found = records_of(row, self._config.source_language, switched)
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


def n_held_out(n: int, share: float) -> int:
    """How many of n questions are held out."""
    return max(1, round(n * share)) if share else 0


def _group(row: Answer | Pair) -> str | None:
    """What a share is held out of: the questions, or the sentences of a language, but not those without a source."""
    if isinstance(row, Answer):
        return _QUESTIONS
    return row.language if row.source else None


def _questions(row: Answer | Pair) -> list[str]:
    """The texts of a row that must not be test questions or sentences, in both languages."""
    if isinstance(row, Answer):
        return _questions_in(row.turns)
    return [*row.source, *row.target] if row.is_sentence else _questions_in(row.source[:-1], row.target[:-1])


def _questions_in(*conversations: tuple[str, ...]) -> list[str]:
    found = ["\n".join(turns) for turns in conversations]  # alone, or with all that came before
    # Every second turn is a question, but "Hi" and "Go on, please" stand in many conversations
    turns = (turn for turns in conversations for turn in turns[::2])
    return found + [turn for turn in turns if count_words(turn) >= MIN_WORDS]


def _question_key(text: str) -> int:
    return int(key_of(text)[:16], 16)


def _smallest(ranks: "array[int]", n: int) -> int:
    """The n-th smallest: those up to it are taken."""
    # No rank is as small as -1
    return int(np.partition(np.frombuffer(ranks, np.uint64), n - 1)[n - 1]) if n else -1


def records_of(row: Answer | Pair, source: str, switched: str | None = None) -> Iterator[Record]:
    """
    All records that can be made of a good row: question and answer in all combinations of the two languages.

    Args:
        row ([`Answer`] or [`Pair`]): What they are made of.
        source (`str`): Tag of the source language.
        switched (`str`, *optional*): The question of a pair with some words of the target language in it.
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
    if switched:
        switched_question = (*question[:-1], switched)
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
            f"The training set would have no record of: {', '.join(missing)}. Available: {cells(available)}, which in "
            f"the proportions asked for makes a set of {size:.0f}.{rejected} Use more seeds, a larger "
            "`max_new_tokens`, or another `size`, `test_size` or `proportions`."
        )
    return chosen


def cells(counts: dict[tuple[str, str], int]) -> str:
    """Counts by kind and language for messages."""
    return ", ".join(f"{kind} {language} {n}" for (kind, language), n in sorted(counts.items())) or "nothing"
