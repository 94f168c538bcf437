"""`report.html`: one file that a browser shows without any request to anywhere. Jinja2 escapes all text."""

from typing import Any

from sacrebleu import sentence_chrf

from sdrrl_trl.evaluation.outputs import Item, Output
from sdrrl_trl.evaluation.render import render
from sdrrl_trl.evaluation.suite import HARMFUL


N_SAMPLES = 20  # of each task
MAX_CHARACTERS = 1500


def page(outputs: dict[str, Output], **shown: Any) -> str:
    """
    The page.

    Args:
        outputs (`dict[str, Output]`):
            Results by model, the base model first.
        shown (`Any`):
            What the other templates get, too.
    """
    tasks = next(iter(outputs.values())).tasks
    return render(
        "report.html.jinja",
        samples={task: found for task in tasks if (found := _samples(task, outputs))},
        harmful=HARMFUL,
        n_samples=N_SAMPLES,
        max_characters=MAX_CHARACTERS,
        **shown,
    )


def _samples(task: str, outputs: dict[str, Output]) -> list[dict[str, Item]]:
    """Items of a task in which the models write, by model, those that changed most first."""
    items = zip(*(output.tasks[task].items for output in outputs.values()), strict=True)
    written = [item for item in items if all(one.response is not None for one in item)]
    # What training did is seen where it did most
    most_changed = sorted(written, key=_change, reverse=True)[:N_SAMPLES]
    return [dict(zip(outputs, item, strict=True)) for item in most_changed]


def _change(item: tuple[Item, ...]) -> tuple[float, float]:
    """How much an item changed: the largest change of its scores, then how different the answers are."""
    base, *tuned = item
    scores = [key for key, value in base.scores.items() if isinstance(value, int | float)]
    moved = [abs(other.scores[key] - base.scores[key]) for other in tuned for key in scores if other.scores[key]]
    different = max(100 - sentence_chrf(other.response, [base.response]).score for other in tuned)
    return max((change for change in moved if change == change), default=0.0), different
