"""The samples on `report.html`."""

from sacrebleu import sentence_chrf

from sdrrl_trl.evaluation.outputs import Item, Output


N_SAMPLES = 20  # of each task


def samples(outputs: dict[str, Output]) -> dict[str, list[dict[str, Item]]]:
    """By task in which the models write, `N_SAMPLES` items by model, those that changed most first."""
    found = {}
    for task in next(iter(outputs.values())).tasks:
        items = zip(*(output.tasks[task].items for output in outputs.values()), strict=True)
        written = [item for item in items if all(one.response is not None for one in item)]
        # What training did is seen where it did most
        most_changed = sorted(written, key=_change, reverse=True)[:N_SAMPLES]
        found[task] = [dict(zip(outputs, item, strict=True)) for item in most_changed]
    return found


def _change(item: tuple[Item, ...]) -> float:
    """How different the answers to an item are from the base model's."""
    base, *tuned = item
    return max(100 - sentence_chrf(other.response, [base.response]).score for other in tuned)
