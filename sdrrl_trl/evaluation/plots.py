"""The plot of the report: positions for the template that draws it as SVG."""

import math
from dataclasses import dataclass, replace
from itertools import groupby

from sdrrl_trl.evaluation.compare import Row
from sdrrl_trl.languages import language_name


@dataclass(frozen=True)
class Panel:
    """
    One benchmark: the change from base to tuned for every language and model, better to the right.

    Args:
        title (`str`): Benchmark, measure, and an arrow up or down to what is better.
        rows (`list[Row]`): The comparisons, those in the source language first.
    """

    title: str
    rows: list[Row]

    @property
    def groups(self) -> list[list[Row]]:
        """The rows of each language, one for each model."""
        return [list(rows) for _, rows in groupby(self.rows, key=lambda row: row.language)]

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest number shown: no change, and the changes with their intervals."""
        shown = [row.comparison for row in self.rows]
        # Not the scores: languages that start far apart would share one axis
        numbers = [0.0, *(x for c in shown for x in (c.delta, c.low, c.high))]
        low, high = min(numbers), max(numbers)
        return (low, high) if high > low else (low - 0.5, low + 0.5)  # equal models, without an interval

    @property
    def ticks(self) -> list[float]:
        """At most six round numbers in the range."""
        low, high = self.range
        ten = 10 ** math.floor(math.log10(high - low))
        step = next(step for step in (ten / 5, ten / 2, ten, 2 * ten) if (high - low) / step <= 5)
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def x(self, value: float) -> float:
        """Position from the left in per cent, beside the names of the languages."""
        low, high = self.range
        share = (value - low) / (high - low)
        return round(40 + 56 * (share if self.rows[0].higher_is_better else 1 - share), 2)


def panels(rows: list[Row]) -> list[Panel]:
    """The main metric of each benchmark; those with most languages first."""
    rows = [row for row in rows if row.role in ("source", "target", "drift", "other", "safety")]
    main: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.metric not in ("chrf++", "unsafe_rate")):  # else the first one
        main.setdefault(row.benchmark, row.metric)
    found: dict[str, list[Row]] = {}
    # The source language first: there a loss would be
    for row in sorted(rows, key=lambda row: (row.role != "source", language_name(row.language))):
        if main[row.benchmark] == row.metric:
            title = replace(row, task=row.benchmark).title.replace("_*:", ":")
            title += " ↑" if row.higher_is_better else " ↓"
            found.setdefault(title, []).append(row)
    return sorted((Panel(title, of) for title, of in found.items()), key=lambda panel: -len(panel.rows))
