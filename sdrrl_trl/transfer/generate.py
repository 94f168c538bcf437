"""Stage 1: the model answers the questions itself."""

import re

from accelerate import PartialState

from sdrrl_trl.engines import Generation, Generator
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.prompts import rewrite_prompt
from sdrrl_trl.transfer.record import chat
from sdrrl_trl.transfer.seeds import Seed, Seeds
from sdrrl_trl.transfer.store import Store
from sdrrl_trl.utils import SDRRLError, progress


# Longer questions are rejected: no model answers a book
MAX_CHARACTERS = 20_000


def generate_answers(seeds: Seeds, generator: Generator, store: Store, config: TransferConfig) -> None:
    """
    Answers the seeds that the store does not hold yet, this process its share of them.

    The batches are cut from the whole list, sorted by length, and are committed whole: a resumed run repeats the very
    batch that was interrupted, so that the answers do not depend on how often a run was interrupted nor on how many
    processes there are (in low precision a row's answer depends on its neighbours in the batch).
    """
    state = PartialState()
    batches = seeds.batches(config.generation_batch_size, MAX_CHARACTERS)
    own = (batch for i, batch in enumerate(batches) if i % state.num_processes == state.process_index)
    pending = ((len(batch), batch) for batch in own if batch[0].id not in store)
    done = len(store)
    total = done + (seeds.count(MAX_CHARACTERS) - done) // state.num_processes
    for batch in progress(pending, total, "generate", "answers", done=done):
        answers = list(generator.generate([_conversation(seed, config) for seed in batch]))
        if len(answers) != len(batch) or not all(isinstance(answer, Generation) for answer in answers):
            raise SDRRLError(
                f"The generator returned {len(answers)} results for {len(batch)} questions, or results that are not "
                "`Generation`s: they cannot be matched with their questions. Check the engine."
            )
        store.put({seed.id: vars(_finish(answer)) for seed, answer in zip(batch, answers, strict=True)})
    store.gather(state)


def _conversation(seed: Seed, config: TransferConfig) -> list[dict[str, str]]:
    turns = seed.turns
    if config.answer_source == "rewrite":
        turns = (*turns[:-1], rewrite_prompt(turns[-1], seed.reference))
    return chat(turns, seed.system or config.system_prompt)


def _finish(answer: Generation) -> Generation:
    """Without what a reasoning model thinks before it answers. Thoughts that do not end leave no answer."""
    # Some templates put the opening tag into the prompt
    text = re.sub(r"^.*?</think>|^\s*<think>.*", "", answer.text, count=1, flags=re.DOTALL)
    text = text.encode("utf-8", "replace").decode()  # lone surrogates could not be written
    return Generation(text.strip(), answer.finish_reason, answer.n_tokens)
