"""`report.html`: one file that a browser shows without any request to anywhere. Jinja2 escapes all text."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sacrebleu import sentence_chrf

from sdrrl_trl.evaluation.compare import Row
from sdrrl_trl.evaluation.outputs import Item, Output
from sdrrl_trl.evaluation.plots import INK, PAPER
from sdrrl_trl.evaluation.suite import HARMFUL
from sdrrl_trl.evaluation.tables import tables


N_SAMPLES = 20  # of each task
MAX_CHARACTERS = 1500


def render(content: dict[str, Any], rows: list[Row], outputs: dict[str, Output], figures: dict[str, Path]) -> str:
    """
    The page.

    Args:
        content (`dict[str, Any]`):
            What `report.json` holds.
        rows (`list[Row]`):
            The comparisons.
        outputs (`dict[str, Output]`):
            Results by model, the base model first.
        figures (`dict[str, Path]`):
            Plots by title, their SVG beside them.
    """
    folder = Path(__file__).parents[1] / "templates"
    # Names and texts come from models and files of others: everything is escaped, and a wrong name is an error
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        content=content,
        figures={title: _inline(png) for title, png in figures.items()},
        tables=tables(content, rows),
        samples={task: found for task in content["signatures"] if (found := _samples(task, outputs))},
        harmful=HARMFUL,
        n_samples=N_SAMPLES,
        max_characters=MAX_CHARACTERS,
    )


def _inline(png: Path) -> Markup:
    """An SVG without its prologue, its text in the colour of the page's. matplotlib has escaped the names in it."""
    svg = png.with_suffix(".svg").read_text(encoding="utf-8")
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--back)"))


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
