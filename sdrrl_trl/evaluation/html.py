"""`report.html`: one file that a browser shows without any request to anywhere. All text is escaped."""

from html import escape
from pathlib import Path
from string import Template
from typing import Any

from sacrebleu import sentence_chrf

from sdrrl_trl.evaluation.plots import INK, PAPER
from sdrrl_trl.evaluation.tables import Table, signature_text, tables
from sdrrl_trl.evaluation.views import Row


TEMPLATE = Path(__file__).parents[1] / "templates" / "report.html"
MAX_CHARACTERS = 1500


def render(
    content: dict[str, Any],
    rows: list[Row],
    results: dict[str, Any],
    manifest: dict[str, Any],
    figures: dict[str, Path],
    n_samples: int,
) -> str:
    """
    The page.

    Args:
        content (`dict[str, Any]`):
            What `report.json` holds.
        rows (`list[Row]`):
            The comparisons.
        results (`dict[str, Any]`):
            Results by model and task, with their samples.
        manifest (`dict[str, Any]`):
            Manifest of the evaluation.
        figures (`dict[str, Path]`):
            Plots by title, their SVG beside them.
        n_samples (`int`):
            Most items to show of a task.
    """
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        models="<br>".join(f"{escape(name)}: <code>{escape(path)}</code>" for name, path in content["models"].items()),
        summary="".join(_summary(content)),
        figures="".join(
            f"<figure aria-label='{escape(title)}'>{_inline(png)}</figure>" for title, png in figures.items()
        ),
        tables="".join(_table(table) for table in tables(content, rows)),
        n_samples=n_samples,
        samples="".join(_samples(task, results, manifest, n_samples) for task in manifest["tasks"]),
        signatures="".join(
            f"<p><b>{escape(task)}</b><br><code>{escape(signature_text(signature))}</code></p>"
            for task, signature in content["signatures"].items()
        ),
        version=escape(str(content["version"])),
    )


def _summary(content: dict[str, Any]) -> list[str]:
    parts = []
    for name, sentences in content["summary"].items():
        parts += [f"<b>{escape(name)}</b>"] if len(content["tuned"]) > 1 else []
        parts.append("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>")
    return parts


def _inline(png: Path) -> str:
    """An SVG without its prologue, its text in the colour of the page's."""
    svg = png.with_suffix(".svg").read_text(encoding="utf-8")
    return svg[svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--back)")


def _table(table: Table) -> str:
    head = "".join(
        f"<th{' class=number' if isinstance(cell, tuple) else ''}>{escape(name)}</th>"
        for name, cell in zip(table.header, table.rows[0], strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f"<p class=note>{escape(table.note)}</p>"
    return (
        f"<h2>{escape(table.title)}</h2><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _cell(cell: str | tuple[str, float | None]) -> str:
    if isinstance(cell, tuple):
        text, value = cell
        return f'<td class=number data-value="{"" if value is None else value}">{escape(text)}</td>'
    return f"<td{f' class={cell}' if cell in ('better', 'worse') else ''}>{escape(cell)}</td>"


def _samples(task: str, results: dict[str, Any], manifest: dict[str, Any], n_samples: int) -> str:
    """Items of a task in which the models write, behind a click; harmful ones with a warning."""
    columns = {model: tasks[task]["samples"] for model, tasks in results.items()}
    items = list(zip(*columns.values(), strict=True))
    if not all(isinstance(item["response"], str) for item in items[0]):
        return ""
    items = sorted(items, key=_change, reverse=True)[:n_samples]
    shown = "".join(_item(dict(zip(columns, item, strict=True))) for item in items)
    if task in manifest["harmful"]:
        return (
            f"<details class=warning><summary>{escape(task)}: <b>harmful content.</b> Prompts that ask for harm, and "
            f"answers to them. Click to show.</summary>{shown}</details>"
        )
    return f"<details><summary>{escape(task)}</summary>{shown}</details>"


def _change(item: tuple[dict[str, Any], ...]) -> tuple[float, float]:
    """How much an item changed: the largest change of its scores, then how different the answers are."""
    base, *tuned = item
    scores = [key for key, value in base.items() if isinstance(value, int | float) and key != "doc_id"]
    moved = [abs(other[key] - base[key]) for other in tuned for key in scores]
    different = max(100 - sentence_chrf(other["response"], [base["response"]]).score for other in tuned)
    return max((change for change in moved if change == change), default=0.0), different


def _item(by_model: dict[str, dict[str, Any]]) -> str:
    first = next(iter(by_model.values()))
    target = _pre("expected", str(first["target"]))
    answers = "".join(_pre(_scores(model, sample), sample["response"]) for model, sample in by_model.items())
    return f"<div class=item>{_pre('prompt', first['prompt'])}{target}<div class=texts>{answers}</div></div>"


def _scores(model: str, sample: dict[str, Any]) -> str:
    scores = [f"{k} {v:.3g}" for k, v in sample.items() if isinstance(v, int | float) and k != "doc_id"]
    return " · ".join([model, *scores])


def _pre(label: str, text: str) -> str:
    text = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"
    return f'<div><span class=soft>{escape(label)}</span><pre dir="auto">{escape(text) or "<i>empty</i>"}</pre></div>'
