"""`sdrrl report`: base against tuned, as Markdown, JSON, HTML, SVG and a model card, from the files of lm-eval."""

import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from sdrrl_trl.evaluation import card
from sdrrl_trl.evaluation.compare import ALPHA, FEW, MIN_ITEMS, ROLES, SEED, Row, compare
from sdrrl_trl.evaluation.measures import answers, gaps, is_wrong_language, trade_off
from sdrrl_trl.evaluation.outputs import Output, load, without_nan
from sdrrl_trl.evaluation.plots import panels
from sdrrl_trl.evaluation.samples import differences, samples
from sdrrl_trl.evaluation.suite import HARMFUL
from sdrrl_trl.languages import get_language, language_name
from sdrrl_trl.render import render
from sdrrl_trl.stages import recorded_options
from sdrrl_trl.transfer.publish import answered_by_another, load_manifest
from sdrrl_trl.utils import (
    RUINED,
    SDRRLError,
    check_output_dir,
    fingerprint,
    package_version,
    read_json,
    write_atomic,
    write_json,
)


RISE = 0.05  # of the share of empty or repetitive answers, from where on it is said; the number is not from the paper


@dataclass
class ReportConfig:
    r"""
    Configuration class for [`report`].

    Parameters:
        models (`list[str]`):
            Results to compare as `name=folder`, the base model first: folders that `sdrrl evaluate` made for each
            model, or that `lm_eval run --log_samples --output_path` made.
        output_dir (`str`):
            Folder of the report.
        transfer_set (`str`, *optional*):
            Folder made by `sdrrl build`: its source language is the one that must not be lost (else English), and the
            model card says what the model was trained on, under which licences.
    """

    models: list[str] = field(
        metadata={
            "metavar": "NAME=FOLDER",
            "help": "Results of lm-eval, base first. `--models` may be left out.",
        }
    )
    output_dir: str = field(metadata={"help": "Folder of the report."})
    transfer_set: str | None = field(
        default=None, metadata={"help": "Made by `sdrrl build`: what the card tells of the training."}
    )

    def __post_init__(self):
        for model in self.models:
            if not re.fullmatch(r"\w[\w.-]*=.+", model):  # a name becomes part of a file's
                raise SDRRLError(f"`models`: {model!r} is not of the form `name=folder`, as `tuned=results/tuned`.")
        if len(self.folders) < max(2, len(self.models)):
            raise SDRRLError("`models` must name at least two, each by its own name: there is nothing to compare.")

    @property
    def folders(self) -> dict[str, Path]:
        pairs = (model.split("=", 1) for model in self.models)
        return {name: Path(folder) for name, folder in pairs}


def report(config: ReportConfig, seconds: dict[str, float] | None = None) -> Path:
    """
    Writes `report.md`, `report.json`, `report.html`, `report.svg` and a model card for each tuned model.

    Args:
        config ([`ReportConfig`]):
            What to compare.
        seconds (`dict[str, float]`, *optional*):
            Seconds of each stage, for a table.

    Returns:
        `Path`: the Markdown file.

    Raises:
        `SDRRLError`: if results are missing or damaged, or the models were not asked the same items in the same way.
    """
    folder = Path(config.output_dir)
    check_output_dir(folder, needed_bytes=100_000_000)
    data_set = load_manifest(Path(config.transfer_set)) if config.transfer_set else None
    source = get_language(data_set["options"]["source_language"] if data_set else "en").tag
    # Everything is read and checked before the first file is written
    outputs = {name: load(path) for name, path in config.folders.items()}
    base, *tuned = outputs
    if swapped := [name for name in tuned if outputs[name].model == outputs[base].adapted]:
        raise SDRRLError(
            f"`models`: {swapped[0]!r} is the model that {base!r} is an adapter of, so that gains would be shown as "
            f"losses. Name it first: base={config.folders[swapped[0]]} tuned={config.folders[base]}"
        )
    strange = _check_data_set(data_set, outputs) if data_set else set()
    cards = {name: card.load(output.model) for name, output in list(outputs.items())[1:]}
    rows, not_compared = compare(outputs, source)
    content = _content(outputs, rows, not_compared, source, seconds or {})

    write_json(folder / "report.json", without_nan(content))
    # No text of an item is in these: some are harmful. Only the page shows them, behind a warning
    shown = {"content": content, "rows": rows, "panels": panels(rows)}
    for ending in ("md", "svg"):
        write_atomic(folder / f"report.{ending}", render(f"report.{ending}.jinja", **shown))
    shown |= {"samples": samples(outputs, source), "harmful": HARMFUL, "date": date.today()}
    shown |= {"differences": differences, "is_wrong_language": is_wrong_language, "min_items": MIN_ITEMS}
    write_atomic(folder / "report.html", render("report.html.jinja", **shown))
    for name, model_card in cards.items():
        file = folder / ("README.md" if len(cards) == 1 else f"README_{name}.md")
        card.write(file, model_card, content, rows, name, None if name in strange else data_set)
    return folder / "report.md"


def _check_data_set(data_set: dict[str, Any], outputs: dict[str, Output]) -> set[str]:
    """Tells if the answers of a transfer set are not the base's, and gives the models that were trained on another."""
    strange, base = set(), next(iter(outputs.values()))
    with suppress(SDRRLError):  # the model is gone
        if warning := answered_by_another(data_set, fingerprint(base.model)):
            print(f"report: {warning}", file=sys.stderr)
            for result in chain.from_iterable(output.tasks.values() for output in outputs.values()):
                result.signature.update({"answers": "of another model"} if "answers" in result.signature else {})
    for name, output in list(outputs.items())[1:]:
        with suppress(SDRRLError):  # it was trained by others
            options = recorded_options(Path(output.model), "train") or {}
            if options.get("transfer_set") not in (None, data_set["sha256"].get("train.parquet")):
                print(
                    f"report: warning: {output.model} was trained on another transfer set than the one that is given, "
                    "which is therefore not described in its card",
                    file=sys.stderr,
                )
                strange.add(name)
    return strange


def _content(
    outputs: dict[str, Output], rows: list[Row], not_compared: list, source: str, seconds: dict[str, float]
) -> dict[str, Any]:
    """All of the report as JSON."""
    base, *tuned = outputs
    derived = ("verdict", "title", "digits", "worst_loss")
    content = {
        "version": package_version("sdrrl-trl"),
        "base": base,
        "tuned": tuned,
        "models": {name: output.model for name, output in outputs.items()},
        "source_language": source,
        "rows": [asdict(row) | {name: getattr(row, name) for name in derived} for row in rows],
        "not_compared": not_compared,
        "gaps": gaps(rows, outputs),
        "trade_off": trade_off(rows, outputs),
        "answers": answers(outputs),
        "signatures": {
            task: "|".join(f"{name}:{value}" for name, value in (result.signature | {"seed": SEED}).items())
            for task, result in outputs[base].tasks.items()
        },
        "stages": [{"stage": name, "seconds": round(value)} for name, value in seconds.items()],
    }
    content["rises"] = {name: _rises(content, name) for name in tuned}
    return content | {"summary": {name: sentences(rows, content, name) for name in tuned}}


def _pairs(content: dict[str, Any], model: str) -> list[tuple[dict, dict]]:
    """Rates of the answers of the base model and of a tuned one, by language, if there are enough answers."""
    before, now = (
        {rate["language"]: rate for rate in content["answers"] if rate["model"] == name}
        for name in (content["base"], model)
    )
    return [(before[tag], now[tag]) for tag in now if now[tag]["n"] >= MIN_ITEMS]


def _rises(content: dict[str, Any], model: str) -> dict[str, list[dict[str, Any]]]:
    """Where more answers than before are empty or repetitive: language and both shares, by what they are."""
    return {
        kind: [
            {"language": new["language"], "before": old[kind], "now": new[kind]}
            for old, new in _pairs(content, model)
            if new[kind] - old[kind] > RISE
        ]
        for kind in ("empty", "repetitive")
    }


def in_short(path: Path) -> str:
    """What a terminal shows of a report: the summary, the ten most telling comparisons, and where all are."""
    content = read_json(path.with_suffix(".json"))
    rank = {"worse": 0, "drifted": 0, "better": 1}  # losses before gains
    rows = sorted(content["rows"], key=lambda r: (rank.get(r["verdict"], 2), r["p_holm"], r["comparison"]["p"]))
    return render("report.txt.jinja", content=content, rows=rows[:10], n_more=len(rows[10:]), path=path)


def sentences(rows: list[Row], content: dict[str, Any], model: str) -> list[str]:
    """Four to eight sentences about one tuned model: does it help, does it hurt, can I believe it?"""
    mine = [row for row in rows if row.model == model]
    by_role = {role: [row for row in mine if row.role == role] for role in ROLES}
    source = content["source_language"]
    closed = [gap["closed"] for gap in content["gaps"] if gap["model"] == model and gap["closed"] is not None]
    enough = _pairs(content, model)
    text = render(
        "sentences.jinja",
        source=language_name(source),
        ruined=RUINED,
        rows=by_role,
        worst=max(by_role["source"], key=lambda row: row.worst_loss or 0.0, default=None),
        n_rows=len(content["rows"]),
        closed=closed,
        closed_median=median(closed) if closed else None,
        # A model that answered nothing in a language has no rate there
        written=[p for p in enough if p[1]["language"] != source and None not in (r["wrong_language"] for r in p)],
        n_written=max(
            (r["n"] for r in content["answers"] if r["model"] == model and r["language"] != source), default=0
        ),
        rises=content["rises"][model],
        n_few=sum(row.verdict == FEW for row in mine),
        alpha=ALPHA,
        min_items=MIN_ITEMS,
    )
    return [line for line in text.splitlines() if line]
