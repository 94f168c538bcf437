"""Plots of the report as PNG and SVG, in the colours of Okabe and Ito, which colour-blind readers can tell apart."""

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.views import Row, language_name
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.utils import SDRRLError, read_json, write_atomic


GREY = "#7F7F7F"
INK, PAPER = "#222222", "#fefefe"  # `html.py` replaces them by the page's own
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK]  # without yellow, pale on white
MARKERS = "oDs^v"  # one more for each time that the colours start anew
WIDTH = 8.3  # inches; 830 pixels at 100 dpi, the width of a README
_STYLE = {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "sdrrl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def read_log(path: str) -> list[dict[str, Any]]:
    """
    Log of a training, from `training.json` or `trainer_state.json`.

    Raises:
        `SDRRLError`: if the file holds none.
    """
    content = read_json(Path(path))
    log = content.get("log", content.get("log_history"))
    if not isinstance(log, list):
        raise SDRRLError(f"`trainer_state`: {path} holds no log of a training (`log` or `log_history`).")
    return log


def draw(rows: list[Row], log: list[dict[str, Any]], folder: Path) -> dict[str, Path]:
    """
    Writes the plots that there are numbers for.

    Returns:
        `dict[str, Path]`: the PNG file of each by its title; the SVG file lies beside it.
    """
    plots: dict[str, tuple[str, Callable, Any]] = {
        "Base against tuned": ("report", _dumbbell, _panels(rows)),
        "Change by measure and language": ("heatmap", _heatmap, rows),
        "Training": ("training", _curves, _series(log)),
    }
    return {title: _save(draw_one(data), folder / name) for title, (name, draw_one, data) in plots.items() if data}


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    for ending, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}, "transparent": True})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, **options)
        write_atomic(path.with_suffix(f".{ending}"), buffer.getvalue())
    pyplot.close(figure)
    return path.with_suffix(".png")


def _subplots(*args: int, **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(_STYLE)
    return pyplot.subplots(*args, layout="constrained", squeeze=False, **options)


def _panels(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of the main metric of each benchmark, by title."""
    rows = [row for row in rows if row.role in ("target", "source", "other", "safety")]
    main: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.metric not in ("chrf++", "unsafe_rate")):  # else the first one
        main.setdefault(row.benchmark, row.metric)
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if main[row.benchmark] == row.metric:
            panels.setdefault(_without_language(row), []).append(row)
    return panels


def _without_language(row: Row) -> str:
    name = row.benchmark.removeprefix("sdrrl_").replace("heldout_gen_*", "held-out questions")
    name = name.replace("heldout_bpb_*", "held-out answers").removesuffix("_*")
    return f"{name}: {row.measure}"


def _dumbbell(panels: dict[str, list[Row]]) -> Any:
    """From base to tuned for every language; one panel a benchmark, better to the right."""
    panels = dict(sorted(panels.items(), key=lambda item: -len(item[1])))  # neighbours of about the same height
    n_columns = 1 if len(panels) < 3 else 2
    models = list(dict.fromkeys(row.model for panel in panels.values() for row in panel))
    spread = 1 + 0.3 * (len(models) - 1)
    heights = [len({row.language for row in panel}) * spread + 1.8 for panel in list(panels.values())[::n_columns]]
    longest = max(len(name) for name in ("base", *models))
    legend_columns = max(1, min(3, 100 // (longest + 6)))
    size = (WIDTH, 0.26 * sum(heights) + 0.2 * (len(models) // legend_columns) + 0.8)
    figure, axes = _subplots(len(heights), n_columns, figsize=size, height_ratios=heights)
    for unused in axes.flat[len(panels) :]:
        unused.set_axis_off()
    looks = dict(zip(models, itertools.cycle(itertools.product(MARKERS, COLOURS)), strict=False))
    step = min(0.2, 0.8 / len(models))  # so that all models of a language stay beside its name
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        languages = sorted({row.language for row in panel}, key=language_name, reverse=True)
        for row in panel:
            c = row.comparison
            y = languages.index(row.language) + step * (models.index(row.model) - (len(models) - 1) / 2)
            sure = row.verdict in ("better", "worse")
            marker, colour = looks[row.model]
            axis.plot([c.base, c.tuned], [y, y], color=colour, linewidth=2.5, alpha=1 if sure else 0.35)
            axis.plot(c.base, y, "o", color=GREY, markersize=7)
            face = colour if sure else PAPER
            axis.plot(c.tuned, y, marker, color=colour, markerfacecolor=face, markersize=8, zorder=3)
        axis.set_yticks(range(len(languages)), [language_name(tag) for tag in languages])
        axis.set_ylim(-0.6, len(languages) - 0.4)
        axis.grid(axis="x", color=GREY, alpha=0.25)
        axis.tick_params(length=0)
        axis.spines["left"].set_visible(False)
        lower = not panel[0].higher_is_better
        if lower:
            axis.invert_xaxis()
        axis.set_title(f"{title} {'↓' if lower else '↑'}", loc="left", fontsize=10)
    from matplotlib.lines import Line2D

    figure.legend(
        handles=[
            Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=name)
            for name, (marker, colour) in {"base": ("o", GREY), **looks}.items()
        ],
        title="Better is to the right. Hollow: no evidence of change.",
        alignment="left",
        loc="outside lower left",
        ncols=legend_columns,
        frameon=False,
    )
    return figure


def _heatmap(rows: list[Row]) -> Any:
    """Change of every measure in every language; blue is better, orange worse, bold what there is evidence for."""
    from matplotlib.colors import LinearSegmentedColormap

    shown = [row for row in rows if row.role != "agreement"]
    several = len({row.model for row in shown}) > 1
    names = {row: (f"{row.model}, " if several else "") + _without_language(row) for row in shown}
    labels = list(dict.fromkeys(names.values()))
    languages = sorted({row.language for row in shown}, key=language_name)
    figure, ((axis,),) = _subplots(1, 1, figsize=(WIDTH, 0.34 * len(labels) + 1.1))
    largest: dict[str, float] = {}
    for row in shown:
        largest[names[row]] = max(largest.get(names[row], 1e-12), abs(row.comparison.delta))
    grid = [[float("nan")] * len(languages) for _ in labels]
    size = 9 if len(languages) <= 8 else 7
    for row in shown:
        y, x, delta = labels.index(names[row]), languages.index(row.language), row.comparison.delta
        grid[y][x] = delta / largest[names[row]] * (1 if row.higher_is_better else -1)
        sure = row.verdict in ("better", "worse")
        text = f"{delta:+.{min(row.digits, 2)}f}"
        axis.text(
            *(x, y, text.replace("0.", ".") if abs(delta) < 1 else text),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if abs(grid[y][x]) > 0.65 else "black",
            fontweight="bold" if sure else "normal",
        )
    colours = LinearSegmentedColormap.from_list("okabe_ito", ["#B34700", "#F7F2EE", "#005F99"])
    edges = [[i - 0.5 for i in range(len(names) + 1)] for names in (languages, labels)]  # `imshow` would embed a PNG
    axis.pcolormesh(*edges, grid, cmap=colours, vmin=-1, vmax=1, edgecolor="face", linewidth=0.3)
    axis.invert_yaxis()
    many = len(languages) > 8
    axis.set_xticks(range(len(languages)), [tag or "–" if many else language_name(tag) for tag in languages])
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.spines[:].set_visible(False)
    figure.supxlabel(
        "Blue: better, orange: worse; depth: share of the line's largest change; bold: evidence of change", fontsize=9
    )
    return figure


def _series(log: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Bits per byte over the steps, by language."""
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in log:
        for key, value in entry.items():
            found = re.fullmatch(r"bpb/(.+)", key)
            if found and found[1] in LANGUAGES:
                series.setdefault(found[1], []).append((entry["step"], value))
    return series


def _curves(series: dict[str, list[tuple[int, float]]]) -> Any:
    """Loss per language over the training, each curve labelled at its end."""
    figure, ((axis,),) = _subplots(1, 1, figsize=(WIDTH, 3.2))
    for i, (tag, points) in enumerate(sorted(series.items())):
        steps, values = zip(*points, strict=True)
        style = "-" if i < len(COLOURS) else "--"
        axis.plot(steps, values, style, marker=".", color=COLOURS[i % len(COLOURS)], label=language_name(tag))
    axis.set_xlabel("step")
    axis.set_ylabel("bits per byte")
    axis.set_title("Training loss by language of the answer", loc="left", fontsize=10)
    axis.grid(color=GREY, alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    return figure
