"""Stage 1: the model answers the questions itself."""

from sdrrl_trl.engines import Generation, Generator
from sdrrl_trl.transfer.record import chat
from sdrrl_trl.transfer.seeds import Seed
from sdrrl_trl.transfer.store import Store
from sdrrl_trl.utils import progress


def generate_answers(
    seeds: list[Seed], generator: Generator, store: Store, system_prompt: str | None, batch_size: int
) -> dict[str, Generation]:
    """
    Answers the seeds that the store does not hold yet.

    The batches are cut from the whole list, sorted by length, and are committed whole: a resumed run repeats the very
    batch that was interrupted, so that the answers do not depend on how often a run was interrupted (in low precision
    a row's answer depends on its neighbours in the batch).

    Returns:
        `dict[str, Generation]`: the answers to all seeds by seed id.
    """
    answers = {id: Generation(**value) for id, value in store}
    by_length = sorted(seeds, key=lambda seed: (len(seed.question), seed.id))
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    pending = [(len(batch), batch) for batch in batches if batch[0].id not in answers]
    for batch in progress(pending, len(seeds), "generate", "answers", done=len(answers)):
        new = generator.generate([chat(seed.question, system_prompt) for seed in batch])
        store.put({seed.id: vars(answer) for seed, answer in zip(batch, new, strict=True)})
        answers |= {seed.id: answer for seed, answer in zip(batch, new, strict=True)}
    return answers
