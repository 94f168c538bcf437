"""The tables of the report, for Markdown and HTML."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sdrrl_trl.evaluation.compare import Row, language_name


COMPARISONS = (
    "↑ higher is better, ↓ lower is better. Intervals: paired bootstrap over the items. p: McNemar's exact test for "
    "scores that are 0 or 1, else the bootstrap; p (Holm): after Holm's correction for all comparisons, which decides "
    "the verdict (p < 0.05). So an interval that leaves out zero may still be no evidence. The held-out answers are "
    "the base model's own, translated for the target language: chrF++ in the source language compares the base model "
    "with itself and says how differently the tuned model words its answers, not whether they are worse. Refusals are "
    "counted by phrases; only a judge model says what is safe, and rates of different judges must not be compared."
)
GAPS = (
    "How much of the base model's distance between source and target language training removed: (tuned - base) / "
    "(base, source - base). 'No gap': the base model is not reliably better in the source language."
)
ANSWERS = (
    "All tasks in which the model writes. Wrong language: share of the answers that are not empty, by the task's own "
    "rule if it has one. Repetitive: more than half of the 4-grams repeat earlier ones."
)


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


def tables(content: dict[str, Any], rows: list[Row]) -> list[Table]:
    """All tables that have rows, in the order of the report. Most are parts of `report.json` as they are."""
    seconds = [{"stage": name, "seconds": round(value)} for name, value in content["seconds"].items()]
    # With values as they are, so that each number of the JSON is found here under its name
    others = [
        Table("Gap closed", _plain(content["gaps"]), GAPS),
        Table("Language and format of the answers", _plain(content["answers"]), ANSWERS),
        Table("Not compared", _plain(content["not_compared"])),
        Table("Time per stage", _plain(seconds)),
    ]
    return [comparison_table(rows), *(table for table in others if table.rows)]


def comparison_table(rows: list[Row]) -> Table:
    """The table of all comparisons."""
    return Table("All comparisons", [_compared(row) for row in rows], COMPARISONS)


def _compared(row: Row) -> dict[str, str | Number]:
    c, digits = row.comparison, row.digits
    return {
        "model": row.model,
        "language": language_name(row.language),
        "measure": f"{row.title} {'↑' if row.higher_is_better else '↓'}",
        "base": _number(c.base, digits),
        "tuned": _number(c.tuned, digits),
        "change": _number(c.delta, digits, "+"),
        "95 % interval": Number(f"{c.low:+.{digits}f} to {c.high:+.{digits}f}", c.low),
        "n": _number(c.n, 0),
        "p": _p_value(c.p),
        "p (Holm)": _p_value(row.p_holm),
        "verdict": row.verdict,
    }


def _p_value(p: float) -> Number:
    return Number("< 0.001", p) if p < 0.001 else _number(p)  # no p-value is 0


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, str | Number]]:
    """Cells of values as they are, under their names."""
    lines = []
    for row in rows:
        cells = {name: value if isinstance(value, str) else _number(value) for name, value in row.items()}
        if "language" in row:
            cells["language"] = language_name(row["language"])
        lines.append({name.replace("_", " "): cell for name, cell in cells.items()})
    return lines


def _number(value: float | None, digits: int = 3, sign: str = "") -> Number:
    if value is None:  # not measured
        return Number("–", None)
    return Number(str(value) if isinstance(value, int) else f"{value:{sign}.{digits}f}", value)
