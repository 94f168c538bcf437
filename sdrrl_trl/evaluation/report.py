"""`sdrrl report`: base against tuned, as Markdown, JSON and a plot."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.evaluate import load_evaluation, load_results
from sdrrl_trl.evaluation.significance import Comparison, compare
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.utils import SDRRLError, check_output_dir, package_version, read_json, write_atomic, write_json


SEED = 1234
MIN_ITEMS = 20  # below, bootstrap intervals are too narrow to trust; ours
_MEASURES = {
    "bits_per_byte": "bits per byte",
    "chrf++": "chrF++",
    "in_language": "share in the language asked for",
}


@dataclass
class ReportConfig:
    r"""
    Configuration class for [`report`].

    Parameters:
        evaluation (`str`):
            Folder made by `sdrrl evaluate`.
        output_dir (`str`):
            Folder of the report.
        base (`str`, *optional*, defaults to `"base"`):
            Name of the model to compare with.
        tuned (`str`, *optional*, defaults to `"tuned"`):
            Name of the model to compare.
        timings (`list[str]`, *optional*):
            JSON files with the seconds of each stage, as the other commands write them; those that exist are read.
    """

    evaluation: str = field(metadata={"help": "Folder made by `sdrrl evaluate`."})
    output_dir: str = field(metadata={"help": "Folder of the report."})
    base: str = field(default="base", metadata={"help": "Name of the model to compare with."})
    tuned: str = field(default="tuned", metadata={"help": "Name of the model to compare."})
    timings: list[str] = field(default_factory=list, metadata={"help": "JSON files with the seconds of each stage."})


@dataclass(frozen=True)
class Row:
    """One line of the table: a metric of a task, compared."""

    task: str
    metric: str
    language: str
    higher_is_better: bool
    comparison: Comparison
    signature: str

    @property
    def verdict(self) -> str:
        c = self.comparison
        if c.n < MIN_ITEMS:
            return "too few items"
        if c.low <= 0 <= c.high:
            return "no evidence of change"
        return "better" if (c.delta > 0) == self.higher_is_better else "worse"

    @property
    def title(self) -> str:
        task = {"gen": "held-out questions", "bpb": "held-out answers"}.get(_held_out_part(self.task), self.task)
        return f"{task}: {_MEASURES.get(self.metric, self.metric)}"


def report(config: ReportConfig) -> Path:
    """
    Writes `report.md`, `report.json` and `report.png`.

    Returns:
        `Path`: the Markdown file.

    Raises:
        `SDRRLError`: if the evaluation is incomplete, or the two models were not asked the same items.
    """
    check_output_dir(Path(config.output_dir), needed_bytes=10_000_000)
    if config.base == config.tuned:
        raise SDRRLError(f"`base` and `tuned` are both {config.base!r}: there is nothing to compare.")
    manifest = load_evaluation(Path(config.evaluation))
    results = load_results(Path(config.evaluation))
    for name in (config.base, config.tuned):
        if name not in results:
            raise SDRRLError(f"No results of the model {name!r} in {config.evaluation}, only of {', '.join(results)}.")
    rows = [row for task in results[config.base] for row in _compare(results, task, config)]
    source = manifest["source_language"]
    rows.sort(key=lambda row: (row.language == source, row.language, row.task, row.metric))
    files = [Path(file) for file in config.timings if Path(file).exists()]
    timings = {stage: seconds for file in files for stage, seconds in read_json(file).items()}
    folder = Path(config.output_dir)
    write_json(
        folder / "report.json",
        {
            "schema": 1,
            "rows": [asdict(row) | {"verdict": row.verdict, "title": row.title} for row in rows],
            "models": manifest["models"],
            "seconds": timings,
            "version": package_version("sdrrl-trl"),
        },
    )
    plot(rows, folder / "report.png")
    path = folder / "report.md"
    models = {name: manifest["models"][name] for name in (config.base, config.tuned)}
    write_atomic(path, _markdown(rows, timings, models))
    return path


def _compare(results: dict[str, Any], task: str, config: ReportConfig) -> list[Row]:
    base, tuned = results[config.base][task], results[config.tuned][task]
    hashes = [[sample["doc_hash"] for sample in result["samples"]] for result in (base, tuned)]
    if hashes[0] != hashes[1] or base["signature"] != tuned["signature"]:
        raise SDRRLError(
            f"{task}: the two models were not asked the same items in the same way, so a difference would say "
            "nothing. Run `sdrrl evaluate` for both with the same options."
        )
    rows = []
    for metric in base["metrics"]:
        a, b = ([sample[metric] for sample in result["samples"]] for result in (base, tuned))
        try:
            comparison = compare(metric, a, b, seed=SEED)
        except ValueError as error:
            raise SDRRLError(f"{task}: {error}") from error
        signature = "|".join(f"{key}:{value}" for key, value in base["signature"].items() if value is not None)
        rows.append(
            Row(
                task,
                metric,
                language_of(task),
                base["higher_is_better"][metric],
                comparison,
                f"{signature}|bs:{SEED}",
            )
        )
    return rows


def _held_out_part(task: str) -> str | None:
    match = re.fullmatch(r"sdrrl_heldout_(gen|bpb)_(.+)", task)
    return match[1] if match else None


def language_of(task: str) -> str:
    """Language of the answers: the last part of a task name, as a tag or a FLORES code."""
    code = re.split(r"[-_](?=[a-z]{2,3}(?:_[A-Z][a-z]{3})?$)", task)[-1]
    by_flores = {language.flores: tag for tag, language in LANGUAGES.items()}
    return by_flores.get(code, code if code in LANGUAGES else "other")


def format_table(rows: list[Row]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| language | measure | base | tuned | change | 95 % interval | n | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        c = row.comparison
        digits = 1 if row.metric == "chrf++" else 3
        arrow = "↑" if row.higher_is_better else "↓"
        name = LANGUAGES[row.language].name if row.language in LANGUAGES else row.language
        lines.append(
            f"| {name} | {row.title} {arrow} | {c.base:.{digits}f} | {c.tuned:.{digits}f} | {c.delta:+.{digits}f} "
            f"| {c.low:+.{digits}f} to {c.high:+.{digits}f} | {c.n} | {row.verdict} |"
        )
    return "\n".join(lines)


def _markdown(rows: list[Row], timings: dict[str, float], models: dict[str, str]) -> str:
    parts = [
        "# Base against tuned",
        "\n".join(f"* {role}: `{path}`" for role, path in zip(("base", "tuned"), models.values(), strict=True)),
        format_table(rows),
        "↑ higher is better, ↓ lower is better. Intervals: paired bootstrap over the items, 1,000 resamples. The "
        "held-out answers are the initial model's own answers, translated for the target language. In the source "
        "language chrF++ therefore compares the base model with itself: it says how much the tuned model words its "
        "answers differently, not whether they are worse. The bits per byte say how likely it still finds the old.",
        "![Base against tuned](report.png)",
    ]
    if timings:
        lines = ["## Time per stage", "| stage | seconds |", "| --- | ---: |"]
        lines += [f"| {stage} | {seconds:.0f} |" for stage, seconds in timings.items()]
        parts += ["\n".join([lines[0], "", *lines[1:], f"| **all** | {sum(timings.values()):.0f} |"])]
    signatures = sorted({f"`{row.task}`: `{row.signature}`" for row in rows})
    parts += ["## Signatures\n\n" + "\n".join(f"* {signature}" for signature in signatures)]
    return "\n\n".join(parts) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Change of each measure with its interval, one panel a measure, better to the right."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    metrics = list(dict.fromkeys(row.metric for row in rows))
    panels = [[row for row in rows if row.metric == metric] for metric in metrics]
    heights = [len(panel) + 1.2 for panel in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 0.5 * sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    colours = {
        "better": "#0072B2",
        "worse": "#D55E00",
        "no evidence of change": "#7F7F7F",
        "too few items": "#BFBFBF",
    }  # Okabe-Ito
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for position, row in enumerate(reversed(panel)):
            c = row.comparison
            axis.plot([c.low, c.high], [position] * 2, color=colours[row.verdict], linewidth=2)
            axis.plot(c.delta, position, "o", color=colours[row.verdict], markersize=7)
        labels = [f"{row.title.partition(':')[0]} ({row.language})" for row in reversed(panel)]
        axis.set_yticks(range(len(panel)), labels)
        axis.set_ylim(-0.6, len(panel) - 0.4)
        axis.axvline(0, color="black", linewidth=0.8)
        if not panel[0].higher_is_better:
            axis.invert_xaxis()
        axis.set_title(
            f"{_MEASURES.get(panel[0].metric, panel[0].metric)}: change with 95 % interval", loc="left", fontsize=10
        )
        axis.spines[["top", "right"]].set_visible(False)
    handles = [pyplot.Line2D([], [], color=colour, marker="o", label=verdict) for verdict, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Tuned against base (right is better)", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
