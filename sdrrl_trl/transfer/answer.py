"""The model answers the questions itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sdrrl_trl.engines import Generation, Generator
from sdrrl_trl.tasks.thoughts import without_thoughts
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.filters import reject_answer
from sdrrl_trl.transfer.prompts import rewrite_prompt
from sdrrl_trl.transfer.rows import Answer, Seed, chat, key_of
from sdrrl_trl.transfer.select_engines import ask
from sdrrl_trl.transfer.shards import first_of_equal, read_shards


# Longer questions are rejected: no model answers a book
MAX_CHARACTERS = 20_000


def answer_seeds(
    seeds: list[Seed], generator: Generator | None, config: TransferConfig, benchmarks: dict[str, str]
) -> list[Answer]:
    """
    Answers to the questions of a shard, the bad ones with the reason why they are rejected. `benchmarks` has, by their
    ids, those of which questions are items.

    The questions go to the engine at once, which batches them by length. In low precision an answer depends on its
    neighbours in the batch: so the same shards give the same answers, however many processes share them.
    """
    reasons = [_reject_seed(seed, benchmarks) for seed in seeds]
    asked = [seed for seed, reason in zip(seeds, reasons, strict=True) if reason is None]
    if generator is None:
        replies = [Generation(seed.reference or "", "stop") for seed in asked]
    else:
        replies = ask(generator.generate, [_conversation(seed, config) for seed in asked], Generation)
    next_reply = iter(replies)
    found = [next(next_reply) if reason is None else Generation("", reason) for reason in reasons]
    return [_answer(seed, reply, config) for seed, reply in zip(seeds, found, strict=True)]


def _reject_seed(seed: Seed, benchmarks: dict[str, str]) -> str | None:
    """Reason not to ask a question. What a bad row has for an id may be that of another row."""
    if seed.is_bad:
        return "bad_row"
    if sum(map(len, seed.turns)) > MAX_CHARACTERS:
        return "prompt_too_long"
    return f"in_{benchmarks[seed.source_id]}" if seed.source_id in benchmarks else None


def _conversation(seed: Seed, config: TransferConfig) -> list[dict[str, str]]:
    turns = seed.turns
    if config.answer_source == "rewrite":
        turns = (*turns[:-1], rewrite_prompt(turns[-1], seed.reference))
    return chat(turns, seed.system or config.system_prompt)


def _answer(seed: Seed, reply: Generation, config: TransferConfig) -> Answer:
    # Lone surrogates could not be written. The last character may have been cut in two
    text = without_thoughts(reply.text).encode("utf-8", "replace").decode().rstrip("\ufffd")
    # The system message that came with the data is part of the question, the one of the options is in all of them
    key = key_of("\n".join((seed.system or "", *seed.turns)))
    found = reject_answer(replace(reply, text=text), config.source_language, config.keep_refusals)
    system = seed.system or config.system_prompt
    truncated = reply.finish_reason == "length"
    return Answer(seed.source_id, key, seed.turns, text, system, truncated, found and f"answer/{found}")


def read_answers(folder: Path) -> Iterator[Answer]:
    """All answers in the order of the questions. Of good answers to the same question, all but the first are bad."""
    return first_of_equal(read_shards(folder, Answer), lambda answer: int(answer.key[:16], 16), "answer/duplicate")


def whole_answers(folder: Path) -> Iterator[Answer]:
    """The answers that can be translated: neither rejected nor cut off."""
    return (answer for answer in read_answers(folder) if answer.reason is None and not answer.truncated)
