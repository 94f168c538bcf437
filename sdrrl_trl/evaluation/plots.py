"""The plot of the report, PNG and SVG, in the colours of Okabe and Ito, which colour-blind readers can tell apart."""

import io
import itertools
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.compare import Row, language_name
from sdrrl_trl.utils import write_atomic


GREY = "#7F7F7F"
INK, PAPER = "#222222", "#fefefe"  # `page.py` replaces them by the page's own
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK]  # without yellow, pale on white
MARKERS = "oDs^v"  # one more for each time that the colours start anew
WIDTH = 8.3  # inches; 830 pixels at 100 dpi, the width of a README
MAX_PANELS = 40  # more than a picture can show, and than matplotlib lays out in a minute
_STYLE = {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "sdrrl",  # the same file every time
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def draw(rows: list[Row], folder: Path) -> dict[str, Path]:
    """
    Writes the plot of base against tuned, if there is anything to show.

    Returns:
        `dict[str, Path]`: the PNG file by its title; the SVG file lies beside it.
    """
    panels = dict(itertools.islice(_panels(rows).items(), MAX_PANELS))
    if not panels:
        return {}
    from matplotlib import pyplot

    figure, path = dumbbell(panels), folder / "report.png"
    for ending, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}, "transparent": True})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, **options)
        write_atomic(path.with_suffix(f".{ending}"), buffer.getvalue())
    pyplot.close(figure)
    return {"Base against tuned": path}


def _panels(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of the main metric of each benchmark, by title; those with most languages first."""
    rows = [row for row in rows if row.role in ("target", "source", "other", "safety")]
    main: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.metric not in ("chrf++", "unsafe_rate")):  # else the first one
        main.setdefault(row.benchmark, row.metric)
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if main[row.benchmark] == row.metric:
            name = row.benchmark.removeprefix("sdrrl_").replace("heldout_gen_*", "held-out questions")
            name = name.replace("heldout_bpb_*", "held-out answers").removesuffix("_*")
            panels.setdefault(f"{name}: {row.measure}", []).append(row)
    return dict(sorted(panels.items(), key=lambda item: -len(item[1])))


def dumbbell(panels: dict[str, list[Row]]) -> Any:
    """Figure with a line from base to tuned for every language; one panel a benchmark, better to the right."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    n_columns = 1 if len(panels) < 3 else 2
    models = list(dict.fromkeys(row.model for panel in panels.values() for row in panel))
    spread = 1 + 0.3 * (len(models) - 1)
    heights = [len({row.language for row in panel}) * spread + 1.8 for panel in list(panels.values())[::n_columns]]
    legend_columns = max(1, min(3, 100 // (max(map(len, models)) + 6)))
    size = (WIDTH, 0.26 * sum(heights) + 0.2 * (len(models) // legend_columns) + 0.8)
    looks = dict(zip(models, itertools.cycle(itertools.product(MARKERS, COLOURS)), strict=False))
    step = min(0.2, 0.8 / len(models))  # so that all models of a language stay beside its name
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            len(heights), n_columns, figsize=size, height_ratios=heights, layout="constrained", squeeze=False
        )
        for unused in axes.flat[len(panels) :]:
            unused.set_axis_off()
        for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
            languages = sorted({row.language for row in panel}, key=language_name, reverse=True)
            for row in panel:
                y = languages.index(row.language) + step * (models.index(row.model) - (len(models) - 1) / 2)
                _line(axis, row, y, *looks[row.model])
            axis.set_yticks(range(len(languages)), [language_name(tag) for tag in languages])
            axis.set_ylim(-0.6, len(languages) - 0.4)
            axis.grid(axis="x", color=GREY, alpha=0.25)
            axis.tick_params(length=0)
            lower = not panel[0].higher_is_better
            if lower:
                axis.invert_xaxis()
            axis.set_title(f"{title} {'↓' if lower else '↑'}", loc="left", fontsize=10)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=name)
            for name, (marker, colour) in {"base": ("o", GREY), **looks}.items()
        ]
        note = "Better is to the right. Hollow: no evidence of change."
        legend = {"alignment": "left", "loc": "outside lower left", "ncols": legend_columns, "frameon": False}
        figure.legend(handles=handles, title=note, **legend)
    return figure


def _line(axis: Any, row: Row, y: float, marker: str, colour: str) -> None:
    """From base to tuned; without evidence of a change, pale and hollow."""
    c, sure = row.comparison, row.verdict in ("better", "worse")
    axis.plot([c.base, c.tuned], [y, y], color=colour, linewidth=2.5, alpha=1 if sure else 0.35)
    axis.plot(c.base, y, "o", color=GREY, markersize=7)
    axis.plot(c.tuned, y, marker, color=colour, markerfacecolor=colour if sure else PAPER, markersize=8, zorder=3)
