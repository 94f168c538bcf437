"""The tables of the report, for Markdown and HTML."""

from dataclasses import dataclass
from typing import Any

from sdrrl_trl.evaluation.views import RATES, Row, language_name


Cell = str | tuple[str, float | None]  # text, and the number that it is sorted by


@dataclass
class Table:
    """
    A table.

    Args:
        title (`str`): Heading.
        header (`list[str]`): Names of the columns.
        rows (`list[list[Cell]]`): Cells: text, or a number as `(text, number)`.
        note (`str`): How to read it.
    """

    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def markdown(self) -> str:
        if not self.rows:
            return "Nothing could be compared."
        numeric = [isinstance(cell, tuple) for cell in self.rows[0]]
        lines = [self.header, ["---:" if is_number else "---" for is_number in numeric]]
        lines += [[cell[0] if isinstance(cell, tuple) else cell for cell in row] for row in self.rows]
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def number(value: float | None, digits: int = 3, sign: str = "") -> Cell:
    return ("–" if value is None else f"{value:{sign}.{digits}f}", value)


def percent(value: float | None) -> Cell:
    return ("–" if value is None else f"{value:.1%}", value)


def p_value(p: float) -> Cell:
    return ("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def _interval(low: float, high: float, digits: int) -> Cell:
    return (f"{low:+.{digits}f} to {high:+.{digits}f}", low)


def signature_text(signature: dict[str, Any]) -> str:
    """How a task was run, in lm-eval's form."""
    return "|".join(f"{key}:{value}" for key, value in signature.items() if value is not None)


def comparison_table(rows: list[Row]) -> Table:
    """The table of all comparisons."""
    several = len({row.model for row in rows}) > 1
    lines: list[list[Cell]] = []
    for row in rows:
        c, digits = row.comparison, row.digits
        lines.append(
            [
                *([row.model] if several else []),
                language_name(row.language),
                f"{row.title} {'↑' if row.higher_is_better else '↓'}",
                number(c.base, digits),
                number(c.tuned, digits),
                number(c.delta, digits, "+"),
                _interval(c.low, c.high, digits),
                (str(c.n), c.n),
                p_value(c.p),
                p_value(row.p_holm),
                row.verdict,
            ]
        )
    header = ["language", "measure", "base", "tuned", "change", "95 % interval", "n", "p", "p (Holm)", "verdict"]
    return Table(
        "All comparisons",
        ["model", *header] if several else header,
        lines,
        "↑ higher is better, ↓ lower is better. Intervals: paired bootstrap over the items. p: McNemar's exact test "
        "for scores that are 0 or 1, else the bootstrap; p (Holm): after Holm's correction for all comparisons, which "
        "decides the verdict (p < 0.05). So an interval that leaves out zero may still be no evidence. The held-out "
        "answers are the base model's own, translated for the target language: chrF++ in the source language compares "
        "the base model with itself and says how differently the tuned model words its answers, not whether they are "
        "worse.",
    )


def tables(content: dict[str, Any], rows: list[Row]) -> list[Table]:
    """All tables that have rows, in the order of the report."""
    found = [
        comparison_table(rows),
        _gaps(content),
        _source(content),
        _answers(content),
        _safety(content),
        _groups(content),
        _not_compared(content),
        _time(content),
    ]
    return [table for table in found if table.rows]


def _gaps(content: dict[str, Any]) -> Table:
    lines: list[list[Cell]] = [
        [
            gap["model"],
            language_name(gap["language"]),
            f"{gap['benchmark'].removeprefix('sdrrl_')}: {gap['metric']}",
            number(gap["base_source"]),
            number(gap["base_target"]),
            number(gap["tuned_target"]),
            (gap["note"], None) if gap["note"] else (f"{gap['closed']:.0%}", gap["closed"]),
            ("–", None) if gap["note"] else (f"{gap['low']:.0%} to {gap['high']:.0%}", gap["low"]),
        ]
        for gap in content["gaps"]
    ]
    return Table(
        "Gap closed",
        ["model", "language", "measure", "base, source", "base", "tuned", "gap closed", "95 % interval"],
        lines,
        "How much of the base model's distance between source and target language training removed: (tuned - base) / "
        "(base, source - base). 'No gap': the base model is not reliably better in the source language.",
    )


def _source(content: dict[str, Any]) -> Table:
    lines: list[list[Cell]] = [
        [
            kept["model"],
            kept["title"],
            number(kept["base"], kept["digits"]),
            number(kept["delta"], kept["digits"], "+"),
            number(kept["worst"], kept["digits"], "+"),
            percent(kept["worst_loss"]),
            (str(kept["n"]), kept["n"]),
            kept["verdict"],
        ]
        for kept in content["source"]
    ]
    return Table(
        f"Source language kept? ({language_name(content['source_language'])})",
        ["model", "measure", "base", "change", "at worst", "at worst lost", "n", "verdict"],
        lines,
        "At worst: the bad end of the 95 % interval; lost: as a share of the base model's score.",
    )


def _answers(content: dict[str, Any]) -> Table:
    lines: list[list[Cell]] = [
        [
            language_name(rate["language"]),
            rate["model"],
            percent(rate["wrong_language"]),
            percent(rate["empty"]),
            percent(rate["repetitive"]),
            (str(rate["n"]), rate["n"]),
        ]
        for rate in content["answers"]
    ]
    return Table(
        "Form of the answers",
        ["language", "model", "wrong language", "empty", "repetitive", "n"],
        lines,
        "All tasks in which the model writes. Wrong language: of the answers that are not empty, by the task's own "
        "rule if it has one. Repetitive: more than half of the 4-grams repeat earlier ones.",
    )


def _safety(content: dict[str, Any]) -> Table:
    lines: list[list[Cell]] = [
        [
            group["name"].removeprefix("sdrrl_"),
            group["model"],
            *(percent(group[rate]) for rate in RATES),
            (str(group["n"]), group["n"]),
        ]
        for group in content["safety"]
    ]
    return Table(
        "Safety",
        ["prompts", "model", "safe", "unsafe", "invalid", "judge failed", "n"],
        lines,
        "Safe, unsafe and invalid are shares of the n judged answers, judge failed is one of all; groups count each "
        "language alike. `id`: languages that MLC (arXiv 2602.16660) trains on, `ood`: others. Rates of different "
        "judges must not be compared.",
    )


def _groups(content: dict[str, Any]) -> Table:
    models = list(content["models"])
    lines: list[list[Cell]] = [
        [
            f"{mean['group'].removeprefix('sdrrl_')}: {mean['metric']}",
            (str(mean["tasks"]), mean["tasks"]),
            *(number(mean["values"][model]) for model in models),
        ]
        for mean in content["groups"]
    ]
    return Table("Means over languages", ["benchmark", "languages", *models], lines, "Each language counts alike.")


def _not_compared(content: dict[str, Any]) -> Table:
    lines: list[list[Cell]] = [
        [row["model"], f"{row['task']}: {row['metric']}", number(row["base"]), number(row["tuned"]), row["why"]]
        for row in content["not_compared"]
    ]
    return Table("Not compared", ["model", "measure", "base", "tuned", "because"], lines)


def _time(content: dict[str, Any]) -> Table:
    seconds = content["seconds"] | ({"all": sum(content["seconds"].values())} if content["seconds"] else {})
    return Table("Time per stage", ["stage", "seconds"], [[name, number(value, 0)] for name, value in seconds.items()])
