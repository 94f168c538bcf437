"""The tables of the report, for Markdown and HTML."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sdrrl_trl.evaluation.compare import Row, language_name


class Number(NamedTuple):
    """A cell: what it shows, and the number that it is sorted by."""

    text: str
    value: float | None


@dataclass
class Table:
    """
    A table.

    Args:
        title (`str`): Heading.
        rows (`list[dict[str, str | Number]]`): Cells by the name of their column.
        note (`str`): How to read it.
    """

    title: str
    rows: list[dict[str, str | Number]]
    note: str = ""

    def markdown(self) -> str:
        if not self.rows:
            return "Nothing could be compared."
        lines = [list(self.rows[0])]
        lines.append(["---:" if isinstance(cell, Number) else "---" for cell in self.rows[0].values()])
        lines += [[cell.text if isinstance(cell, Number) else cell for cell in row.values()] for row in self.rows]
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def number(value: float | None, digits: int = 3, sign: str = "") -> Number:
    return Number("–" if value is None else f"{value:{sign}.{digits}f}", value)


def percent(value: float | None) -> Number:
    return Number("–" if value is None else f"{value:.1%}", value)


def p_value(p: float) -> Number:
    return Number("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def comparison_table(rows: list[Row]) -> Table:
    """The table of all comparisons."""
    several = len({row.model for row in rows}) > 1
    lines = []
    for row in rows:
        c, digits = row.comparison, row.digits
        lines.append(
            ({"model": row.model} if several else {})
            | {
                "language": language_name(row.language),
                "measure": f"{row.title} {'↑' if row.higher_is_better else '↓'}",
                "base": number(c.base, digits),
                "tuned": number(c.tuned, digits),
                "change": number(c.delta, digits, "+"),
                "95 % interval": Number(f"{c.low:+.{digits}f} to {c.high:+.{digits}f}", c.low),
                "n": number(c.n, 0),
                "p": p_value(c.p),
                "p (Holm)": p_value(row.p_holm),
                "verdict": row.verdict,
            }
        )
    return Table(
        "All comparisons",
        lines,
        "↑ higher is better, ↓ lower is better. Intervals: paired bootstrap over the items. p: McNemar's exact test "
        "for scores that are 0 or 1, else the bootstrap; p (Holm): after Holm's correction for all comparisons, which "
        "decides the verdict (p < 0.05). So an interval that leaves out zero may still be no evidence. The held-out "
        "answers are the base model's own, translated for the target language: chrF++ in the source language compares "
        "the base model with itself and says how differently the tuned model words its answers, not whether they are "
        "worse. Refusals are counted by phrases; only a judge model says what is safe, and rates of different judges "
        "must not be compared.",
    )


def tables(content: dict[str, Any], rows: list[Row]) -> list[Table]:
    """All tables that have rows, in the order of the report."""
    others = [_gaps(content), _source(content, rows), _answers(content), _means(content), _not_compared(content)]
    seconds = content["seconds"] | ({"all": sum(content["seconds"].values())} if content["seconds"] else {})
    time = [{"stage": name, "seconds": number(value, 0)} for name, value in seconds.items()]
    return [comparison_table(rows), *(table for table in (*others, Table("Time per stage", time)) if table.rows)]


def _gaps(content: dict[str, Any]) -> Table:
    lines = [
        {
            "model": gap["model"],
            "language": language_name(gap["language"]),
            "measure": f"{gap['benchmark'].removeprefix('sdrrl_')}: {gap['metric']}",
            "base, source": number(gap["base_source"]),
            "base": number(gap["base_target"]),
            "tuned": number(gap["tuned_target"]),
            "gap closed": Number(gap["note"] or f"{gap['closed']:.0%}", gap["closed"]),
            "95 % interval": Number("–" if gap["note"] else f"{gap['low']:.0%} to {gap['high']:.0%}", gap["low"]),
        }
        for gap in content["gaps"]
    ]
    return Table(
        "Gap closed",
        lines,
        "How much of the base model's distance between source and target language training removed: (tuned - base) / "
        "(base, source - base). 'No gap': the base model is not reliably better in the source language.",
    )


def _source(content: dict[str, Any], rows: list[Row]) -> Table:
    lines = []
    for row in (row for row in rows if row.role == "source"):
        c = row.comparison
        worst = c.low if row.higher_is_better else c.high
        lines.append(
            {
                "model": row.model,
                "measure": row.title,
                "base": number(c.base, row.digits),
                "change": number(c.delta, row.digits, "+"),
                "at worst": number(worst, row.digits, "+"),
                "at worst lost": percent(row.worst_loss),
                "n": number(c.n, 0),
                "verdict": row.verdict,
            }
        )
    return Table(
        f"Source language kept? ({language_name(content['source_language'])})",
        lines,
        "At worst: the bad end of the 95 % interval; lost: as a share of the base model's score.",
    )


def _answers(content: dict[str, Any]) -> Table:
    lines = [
        {
            "language": language_name(rate["language"]),
            "model": rate["model"],
            "wrong language": percent(rate["wrong_language"]),
            "empty": percent(rate["empty"]),
            "repetitive": percent(rate["repetitive"]),
            "n": number(rate["n"], 0),
        }
        for rate in content["answers"]
    ]
    return Table(
        "Language and format of the answers",
        lines,
        "All tasks in which the model writes. Wrong language: of the answers that are not empty, by the task's own "
        "rule if it has one. Repetitive: more than half of the 4-grams repeat earlier ones.",
    )


def _means(content: dict[str, Any]) -> Table:
    lines = [
        {
            "benchmark": f"{mean['benchmark'].removeprefix('sdrrl_')}: {mean['metric']}",
            "languages": number(mean["languages"], 0),
            **{model: number(score) for model, score in mean["scores"].items()},
        }
        for mean in content["means"]
    ]
    return Table("Means over languages", lines, "Each language counts alike.")


def _not_compared(content: dict[str, Any]) -> Table:
    lines = [
        {
            "model": row["model"],
            "measure": f"{row['task']}: {row['metric']}",
            "base": number(row["base"]),
            "tuned": number(row["tuned"]),
            "because": row["why"],
        }
        for row in content["not_compared"]
    ]
    return Table("Not compared", lines)
