"""`sdrrl report`: base against tuned, as Markdown, JSON, HTML, plots and a model card."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdrrl_trl.evaluation import html, model_card, plots, tables, views
from sdrrl_trl.evaluation.evaluate import load_evaluation, load_results
from sdrrl_trl.evaluation.significance import compare_rows, holm, item_statistics
from sdrrl_trl.evaluation.summary import summary
from sdrrl_trl.evaluation.views import Row
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import SDRRLError, check_output_dir, package_version, read_json, write_atomic, write_json


SEED = 1234


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
        tuned (`list[str]`, *optional*):
            Names of the models to compare. Default: all others of the evaluation.
        timings (`list[str]`, *optional*):
            JSON files with the seconds of each stage, as the other commands write them; those that exist are read.
        trainer_state (`str`, *optional*):
            `training.json` of `sdrrl train` or a `trainer_state.json` with the log of the training, for its curves.
        transfer_set (`str`, *optional*):
            Folder made by `sdrrl build`, for the model card: what the model was trained on, under which licences.
        samples (`int`, *optional*, defaults to `20`):
            Most items of each task that `report.html` shows.
        push_to_hub (`str`, *optional*):
            Id of a model repository that the tuned model, its card and the report are uploaded to.
        dry_run (`bool`, *optional*, defaults to `False`):
            Only print what `push_to_hub` would upload.
    """

    evaluation: str = field(metadata={"help": "Folder made by `sdrrl evaluate`."})
    output_dir: str = field(metadata={"help": "Folder of the report."})
    base: str = field(default="base", metadata={"help": "Name of the model to compare with."})
    tuned: list[str] = field(default_factory=list, metadata={"help": "Models to compare (default: all others)."})
    timings: list[str] = field(default_factory=list, metadata={"help": "JSON files with the seconds of each stage."})
    trainer_state: str | None = field(
        default=None, metadata={"help": "`training.json` or `trainer_state.json`, for the curves of the training."}
    )
    transfer_set: str | None = field(
        default=None, metadata={"help": "Folder made by `sdrrl build`, for the model card."}
    )
    samples: int = field(default=20, metadata={"help": "Most items of each task that `report.html` shows."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Model repository to upload model and report to."})
    dry_run: bool = field(default=False, metadata={"help": "Only print what `push_to_hub` would upload."})

    def __post_init__(self):
        if isinstance(self.tuned, str):
            self.tuned = [self.tuned]
        if self.base in self.tuned:
            raise SDRRLError(f"`base` and `tuned` are both {self.base!r}: there is nothing to compare.")
        if self.samples < 0:
            raise SDRRLError(f"`samples` must be at least 0, got {self.samples}.")
        if self.dry_run and self.push_to_hub is None:
            raise SDRRLError("`dry_run` shows what `push_to_hub` would upload: give that, too.")


def report(config: ReportConfig) -> Path:
    """
    Writes `report.md`, `report.json`, `report.html`, the plots and the model card.

    Returns:
        `Path`: the Markdown file.

    Raises:
        `SDRRLError`: if the evaluation is incomplete, or the models were not asked the same items in the same way.
    """
    folder = Path(config.output_dir)
    check_output_dir(folder, needed_bytes=100_000_000)
    manifest = load_evaluation(Path(config.evaluation))
    _check_languages(manifest)
    results = load_results(Path(config.evaluation))
    tuned = config.tuned or [name for name in results if name != config.base]
    for name in (config.base, *tuned):
        if name not in results:
            raise SDRRLError(f"No results of the model {name!r} in {config.evaluation}, only of {', '.join(results)}.")
    if not tuned:
        raise SDRRLError(f"{config.evaluation} has results of {config.base} alone: there is nothing to compare.")
    if config.push_to_hub and len(tuned) > 1:
        raise SDRRLError(f"`push_to_hub` uploads one model. Name it in `tuned`: {', '.join(tuned)}.")
    results = {name: results[name] for name in (config.base, *tuned)}
    log = plots.read_log(config.trainer_state) if config.trainer_state else []
    data_set = load_manifest(Path(config.transfer_set)) if config.transfer_set else None
    names = ["README.md"] if len(tuned) == 1 else [f"README_{name}.md" for name in tuned]
    cards = [
        model_card.load(manifest["models"][model], folder / name) for model, name in zip(tuned, names, strict=True)
    ]
    rows, not_compared = compare_all(results, manifest, config.base, Path(config.evaluation))
    content = _content(config, manifest, results, rows, not_compared)

    write_json(folder / "report.json", content)
    figures = plots.draw(rows, log, folder)
    write_atomic(folder / "report.md", markdown(content, rows, figures))
    page = html.render(content, rows, results, manifest, figures, config.samples)
    write_atomic(folder / "report.html", page)
    for name, (path, card) in zip(tuned, cards, strict=True):
        model_card.write(path, card, content, rows, name, data_set)
    if config.push_to_hub:
        written = [folder / f"report.{ending}" for ending in ("md", "json", "html")]
        written += [figure.with_suffix(ending) for figure in figures.values() for ending in (".png", ".svg")]
        model_card.push(
            config.push_to_hub,
            manifest["models"][tuned[0]],
            cards[0][0],
            written,
            bool(manifest["harmful"]),
            config.dry_run,
        )
    return folder / "report.md"


def _check_languages(manifest: dict[str, Any]) -> None:
    """Raises [`SDRRLError`] for a manifest of another version and for languages that are not in the table."""
    missing = {"languages", "groups", "harmful"} - set(manifest)
    if missing:
        raise SDRRLError(
            f"The evaluation was made by an older version: its manifest lacks {', '.join(sorted(missing))}. Run "
            "`sdrrl evaluate` again into another folder."
        )
    known = {None, *LANGUAGES}
    for task in manifest["tasks"]:
        if task not in manifest["languages"] or manifest["languages"][task] not in known:
            raise SDRRLError(f"{task}: unknown language {manifest['languages'].get(task)!r}.")
    if manifest["source_language"] not in known:
        raise SDRRLError(f"Unknown source language {manifest['source_language']!r}.")


def compare_all(
    results: dict[str, Any], manifest: dict[str, Any], base: str, folder: Path
) -> tuple[list[Row], list[dict]]:
    """
    Compares every model with the base on every metric.

    Returns:
        `tuple[list[Row], list[dict]]`: the comparisons, and the metrics that cannot be compared by item, with why.
    """
    pairs = [(model, task) for model in results if model != base for task in results[base]]
    for model, task in pairs:
        _check_same(results[base][task], results[model][task], task, model)
    measures, statistics, not_compared = [], [], []

    def leave_out(model: str, task: str, metric: str, why: str) -> None:
        scores = {
            "base": results[base][task]["metrics"][metric],
            "tuned": results[model][task]["metrics"][metric],
        }
        scores = {name: None if math.isnan(score) else score for name, score in scores.items()}
        not_compared.append({"model": model, "task": task, "metric": metric, **scores, "why": why})

    for model, task in pairs:
        by_file = {folder / name / f"{task}.json": results[name][task] for name in (base, model)}
        for metric in results[base][task]["metrics"]:
            try:
                of_items = _statistics(by_file, task, metric, task in manifest["harmful"])
            except NotComparable as reason:
                leave_out(model, task, metric, str(reason))
            else:
                measures.append((model, task, metric))
                statistics.append((metric.partition(",")[0], *of_items))
    found = []
    for measure, comparison in zip(measures, compare_rows(statistics, SEED), strict=True):
        model, task, metric = measure
        reported = [results[name][task]["metrics"][metric] for name in (base, model)]
        by_item = (comparison.base, comparison.tuned)
        if comparison.n < len(results[base][task]["samples"]) or np.allclose(reported, by_item, rtol=1e-3, atol=1e-6):
            found.append((*measure, comparison))
        else:
            leave_out(*measure, "the task's score is not the mean of its items' scores")
    adjusted = holm([comparison.p for *_, comparison in found])
    source, rows = manifest["source_language"], []
    for (model, task, metric, comparison), p in zip(found, adjusted, strict=True):
        language = manifest["languages"][task]
        role = views.role_of(task, metric, language, source, manifest["harmful"])
        higher = results[base][task]["higher_is_better"][metric]
        rows.append(Row(model, task, metric, language, role, higher, comparison, p))
    order = ("target", "source", "other", "agreement", "form", "safety")
    rows.sort(key=lambda r: (list(results).index(r.model), order.index(r.role), str(r.language), r.task, r.metric))
    return rows, not_compared


def _check_same(base: dict[str, Any], tuned: dict[str, Any], task: str, model: str) -> None:
    """Raises [`SDRRLError`] unless both models were asked the same items in the same way."""
    fields = [
        key
        for key in {**base["signature"], **tuned["signature"]}
        if base["signature"].get(key) != tuned["signature"].get(key)
    ]
    fields += [key for key in ("metrics", "higher_is_better") if set(base[key]) != set(tuned[key])]
    if len(base["samples"]) != len(tuned["samples"]):
        fields.append(f"number of items ({len(base['samples'])} and {len(tuned['samples'])})")
    else:
        pairs = list(zip(base["samples"], tuned["samples"], strict=True))
        fields += [key for key in ("doc_hash", "prompt") if any(a.get(key) != b.get(key) for a, b in pairs)]
    if fields:
        # A model that brings its own template is asked in another way under the same options
        template = ", into another folder with `--apply_chat_template False`" * ("chat_template" in fields)
        raise SDRRLError(
            f"{task}: base and {model} were not asked the same items in the same way, so a difference would say "
            f"nothing. They differ in: {', '.join(fields)}. Leave {model} out by naming the others in `--tuned`, or "
            f"run `sdrrl evaluate` for both with the same options{template}."
        )
    if len(base["samples"]) < 2:
        raise SDRRLError(
            f"{task} has {len(base['samples'])} items: nothing can be said about a difference. Evaluate more of them "
            "(`limit`, `test_size`), or leave the task out."
        )


class NotComparable(Exception):
    """Why a metric cannot be compared by item."""


def _statistics(by_file: dict[Path, dict], task: str, metric: str, harmful: bool) -> list[np.ndarray]:
    """Statistics of the items of both models; without the items that the judge failed on for either."""
    for file, result in by_file.items():
        missing = sum(sample.get(metric) is None for sample in result["samples"])
        if missing:
            raise SDRRLError(f"{task}: {missing} items have no value of {metric}. {_again(file)}")
    if any(result["higher_is_better"][metric] is None for result in by_file.values()):
        raise NotComparable("the task does not say whether higher is better")
    try:
        found = [
            item_statistics(metric.partition(",")[0], [sample[metric] for sample in result["samples"]])
            for result in by_file.values()
        ]
    except ValueError as error:
        raise NotComparable(str(error)) from error
    unscored = [np.isnan(statistics).any(axis=1) for statistics in found]
    for file, nan in zip(by_file, unscored, strict=True):
        if nan.any() and not harmful:
            raise SDRRLError(f"{task}: {nan.sum()} items have NaN for {metric}. {_again(file)}")
    scored = ~(unscored[0] | unscored[1])
    if scored.sum() < 2:
        raise NotComparable(f"the judge failed on all but {scored.sum()} of {len(scored)} pairs")
    if np.isinf(found).any():
        raise NotComparable("some of its items are infinite, of which there is no mean")
    return [statistics[scored] for statistics in found]


def _again(file: Path) -> str:
    return f"Delete {file} and run the same `sdrrl evaluate` command, which then asks these items again."


def _content(
    config: ReportConfig, manifest: dict, results: dict, rows: list[Row], not_compared: list
) -> dict[str, Any]:
    """All of the report as JSON."""
    source = manifest["source_language"]
    files = [Path(file) for file in config.timings if Path(file).exists()]
    derived = ("verdict", "title")
    content = {
        "schema": 3,
        "version": package_version("sdrrl-trl"),
        "base": config.base,
        "tuned": [name for name in results if name != config.base],
        "models": {name: manifest["models"][name] for name in results},
        "source_language": source,
        "options": manifest.get("options", {}),
        "rows": [asdict(row) | {name: getattr(row, name) for name in derived} for row in rows],
        "not_compared": not_compared,
        "gaps": views.gaps(rows, results, config.base, source, SEED),
        "source": views.source_kept(rows),
        "answers": views.answers(results, manifest["languages"]),
        "safety": views.safety(results, manifest),
        "groups": views.group_means(results, manifest, config.base),
        "signatures": {task: {**result["signature"], "seed": SEED} for task, result in results[config.base].items()},
        "seconds": {stage: seconds for file in files for stage, seconds in read_json(file).items()},
    }
    return content | {"summary": {name: summary(rows, content, name) for name in content["tuned"]}}


def markdown(content: dict[str, Any], rows: list[Row], figures: dict[str, Path]) -> str:
    """The report as Markdown. It holds no text of an item: some are harmful."""
    parts = ["# Base against tuned", *summary_lists(content)]
    parts.append("\n".join(f"* {name}: `{path}`" for name, path in content["models"].items()))
    parts += [f"![{name}]({path.name})" for name, path in figures.items()]
    for table in tables.tables(content, rows):
        parts += [f"## {table.title}", table.markdown(), *([table.note] if table.note else [])]
    signatures = [
        f"* `{task}`: `{tables.signature_text(signature)}`" for task, signature in content["signatures"].items()
    ]
    return "\n\n".join([*parts, "## Signatures", "\n".join(signatures)]) + "\n"


def summary_lists(content: dict[str, Any]) -> list[str]:
    """The summary of each tuned model as a Markdown list."""
    lists = []
    for name, sentences in content["summary"].items():
        lists += [f"**{name}**"] if len(content["tuned"]) > 1 else []
        lists.append("\n".join(f"* {sentence}" for sentence in sentences))
    return lists
