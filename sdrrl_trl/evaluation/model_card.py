"""The results in a tuned model's card, with metadata for the hub, and the upload."""

from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.tables import comparison_table
from sdrrl_trl.evaluation.views import Row
from sdrrl_trl.transfer.publish import is_non_commercial, load_manifest, summary
from sdrrl_trl.utils import SDRRLError, package_version, write_atomic


BEGIN, END = "<!-- sdrrl report: begin -->", "<!-- sdrrl report: end -->"
# Of a model's folder, what only the training needs; of a report, what it is made of elsewhere
IGNORED = ["checkpoint-*", "*.lock", ".*", "options*.json", "runs/*"]


def write(
    content: dict[str, Any],
    rows: list[Row],
    manifest: dict[str, Any],
    model: str,
    transfer_set: str | None,
    folder: Path,
) -> Path:
    """
    Writes the results into the model's own card, replacing those of an earlier report, or, if the model has none here,
    into a card beside the report.

    Args:
        content (`dict[str, Any]`):
            What `report.json` holds.
        rows (`list[Row]`):
            The comparisons.
        manifest (`dict[str, Any]`):
            Manifest of the evaluation.
        model (`str`):
            Name of the tuned model.
        transfer_set (`str`, *optional*):
            What it was trained on.
        folder (`Path`):
            Folder of the report.

    Returns:
        `Path`: the card.
    """
    from huggingface_hub import ModelCard

    own = Path(manifest["models"][model]) / "README.md"
    path = own if own.is_file() else folder / ("README.md" if len(content["tuned"]) == 1 else f"README_{model}.md")
    text = path.read_text(encoding="utf-8") if path.is_file() else f"---\nlibrary_name: transformers\n---\n# {model}\n"
    card = ModelCard(text, ignore_metadata_errors=True)
    data_set = load_manifest(Path(transfer_set)) if transfer_set else None
    card.data.model_name = card.data.model_name or Path(manifest["models"][model]).name
    card.data.eval_results = eval_results([row for row in rows if row.model == model])
    if data_set:
        options, licences = data_set["options"], data_set["licences"]
        card.data.language = [options["source_language"], *options["target_languages"]]
        if card.data.license is None and any(map(is_non_commercial, licences.values())):
            card.data.license, card.data.license_name = "other", "non-commercial-parts"
    section = f"{BEGIN}\n{_section(content, rows, model, data_set)}\n{END}"
    body = card.text.rstrip()
    if BEGIN in body and END in body:
        before, rest = body.split(BEGIN, 1)
        body = f"{before}{section}{rest.split(END, 1)[1]}"
    else:
        body = f"{body}\n\n{section}"
    write_atomic(path, f"---\n{card.data.to_yaml()}\n---\n{body}\n")
    return path


def eval_results(rows: list[Row]) -> list[Any]:
    """The tuned model's scores as the hub's `model-index` has them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=row.benchmark.removesuffix("_*").replace("*", "xx"),
            dataset_name=row.task,
            dataset_config=row.language or "default",  # the hub tells results apart by it, not by the name
            metric_type=row.metric.partition(",")[0],
            metric_name=row.title,
            metric_value=round(row.comparison.tuned, 5),
        )
        for row in rows
        if row.role != "agreement"
    ]


def _section(content: dict[str, Any], rows: list[Row], model: str, data_set: dict[str, Any] | None) -> str:
    base, tuned = (content["models"][name] for name in (content["base"], model))
    parts = ["## Evaluation", "\n".join(f"* {sentence}" for sentence in content["summary"][model])]
    table = comparison_table([row for row in rows if row.model == model])
    parts += [f"`{Path(base).name}` (base) against `{Path(tuned).name}` (tuned):", table.markdown(), table.note]
    if data_set:
        parts += ["## Transfer set", f"```\n{summary(data_set)}\n```"]
        bound = [f"{name} ({licence})" for name, licence in data_set["licences"].items() if is_non_commercial(licence)]
        if bound:
            parts.append(f"**Licence: parts are non-commercial**: {', '.join(bound)}. The model may inherit that.")
    versions = {name: package_version(name) for name in ("sdrrl-trl", "lm_eval", "transformers", "trl", "torch")}
    facts = {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "evaluation": ", ".join(f"{name}: {value}" for name, value in content["options"].items() if name != "models"),
        "models (fingerprints)": content["options"].get("models", {}),
        "signatures": sorted({str(signature) for signature in content["signatures"].values()}),
    }
    facts |= {"transfer set (SHA-256)": data_set["sha256"], "build": data_set["options"]} if data_set else {}
    parts += ["## Reproducibility", "\n".join(f"* {name}: `{value}`" for name, value in facts.items())]
    return "\n\n".join(parts)


def push(repo_id: str, model_path: str, report: Path, harmful: bool, dry_run: bool) -> None:
    """
    Uploads model, card and report, the page with the samples only if none of them is harmful.

    Raises:
        `SDRRLError`: if the hub refuses.
    """
    from huggingface_hub import HfApi, metadata_load, metadata_update
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import filter_repo_objects, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SDRRLError(f"`push_to_hub`: {error}") from error
    model = Path(model_path)
    uploads = [(report, "report", [*IGNORED, "README*.md", *(["report.html"] if harmful else [])])]
    if model.is_dir():
        uploads.insert(0, (model, "", IGNORED))
    if dry_run:
        print(f"Would upload to {repo_id}:")
        for folder, where, ignored in uploads:
            files = (str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file())
            for file in filter_repo_objects(files, ignore_patterns=ignored):
                print(f"  {Path(where) / file} ({(folder / file).stat().st_size:,} bytes)")
        if harmful:
            print("Not report.html: it shows harmful prompts and answers.")
        return
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        for folder, where, ignored in uploads:
            api.upload_folder(repo_id=repo_id, folder_path=folder, path_in_repo=where, ignore_patterns=ignored)
        if not (model / "README.md").is_file():
            metadata_update(
                repo_id, {"model-index": metadata_load(report / "README.md")["model-index"]}, overwrite=True
            )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise SDRRLError(f"The upload to {repo_id} failed: {error}") from error
