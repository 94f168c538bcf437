"""The results in a tuned model's card, with metadata for the hub, and the upload."""

from pathlib import Path
from typing import Any

import yaml

from sdrrl_trl.evaluation.tables import comparison_table
from sdrrl_trl.evaluation.views import Row
from sdrrl_trl.transfer.publish import is_non_commercial, summary
from sdrrl_trl.utils import SDRRLError, package_version, write_atomic


BEGIN, END = "<!-- sdrrl report: begin -->", "<!-- sdrrl report: end -->"
# Of a model's files, what only the training needs, and a page with samples
IGNORED = ["*.lock", ".*", "options*.json", "report.html", "trainer_state.json"]
IGNORED += ["optimizer.*", "scheduler.pt", "rng_state*", "training_args.bin"]


def load(model_path: str, beside: Path) -> tuple[Path, Any]:
    """
    Where the card of a model is, or will be, and the card.

    Args:
        model_path (`str`):
            Folder or hub id of the model.
        beside (`Path`):
            Card beside the report, for a model that has none here.

    Raises:
        `SDRRLError`: if the metadata of the card cannot be read.
    """
    from huggingface_hub import ModelCard

    own = Path(model_path) / "README.md"
    path = own if own.is_file() else beside
    new = f"---\nlibrary_name: transformers\n---\n# {Path(model_path).name}\n"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else new
        return path, ModelCard(text, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise SDRRLError(
            f"The metadata at the top of {path} cannot be read, so the results cannot be added without losing it. "
            f"Correct the lines between the two `---`, or move the file away for a new card. The mistake: {error}"
        ) from error


def write(
    path: Path, card: Any, content: dict[str, Any], rows: list[Row], model: str, data_set: dict[str, Any] | None
) -> None:
    """
    Writes the results into a card, replacing those of an earlier report.

    Args:
        path (`Path`):
            Where to write.
        card (`ModelCard`):
            The card so far, from [`load`].
        content (`dict[str, Any]`):
            What `report.json` holds.
        rows (`list[Row]`):
            The comparisons.
        model (`str`):
            Name of the tuned model.
        data_set (`dict[str, Any]`, *optional*):
            Manifest of the transfer set that it was trained on.
    """
    card.data.model_name = card.data.model_name or Path(content["models"][model]).name
    card.data.eval_results = eval_results([row for row in rows if row.model == model])
    # PEFT notes the folder that the base model was loaded from, which the hub rejects
    bases = card.data.base_model or []
    if not all(map(_on_hub, [bases] if isinstance(bases, str) else bases)):
        card.data.base_model = None
    tags = map(str, card.data.tags or [])
    tags = [tag for tag in tags if not tag.startswith("base_model:") or _on_hub(tag.rpartition(":")[2])]
    card.data.tags = tags or None
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


def _on_hub(model: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not Path(model).is_dir()


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


def push(repo_id: str, model_path: str, card: Path, report_files: list[Path], harmful: bool, dry_run: bool) -> None:
    """
    Uploads model, card and report: the files at the top of the model's folder, as the folders in it may be checkpoints
    or an evaluation with its samples, and what the report wrote.

    Args:
        repo_id (`str`):
            Model repository.
        model_path (`str`):
            Folder or hub id of the tuned model; what is on the hub is not uploaded again.
        card (`Path`):
            Its card.
        report_files (`list[Path]`):
            What the report wrote.
        harmful (`bool`):
            Whether the page shows harmful samples, and is not uploaded.
        dry_run (`bool`):
            Only print what would be uploaded.

    Raises:
        `SDRRLError`: if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, metadata_load, metadata_update
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import filter_repo_objects, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SDRRLError(f"`push_to_hub`: {error}") from error
    model = Path(model_path)
    uploads = {f"report/{file.name}": file for file in report_files if not (harmful and file.name == "report.html")}
    if model.is_dir():
        files = {file.name: file for file in sorted(model.iterdir()) if file.is_file()}
        uploads |= {name: files[name] for name in filter_repo_objects(files, ignore_patterns=IGNORED)}
        uploads["README.md"] = card
    if dry_run:
        print(f"Would upload to {repo_id}:")
        for name, file in sorted(uploads.items()):
            print(f"  {name} ({file.stat().st_size:,} bytes)")
        if not model.is_dir():
            print("  README.md: the results in its metadata; all of it if the repository has none")
        if harmful:
            print("Not report.html: it shows harmful prompts and answers.")
        return
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        if not model.is_dir() and api.file_exists(repo_id, "README.md"):
            metadata_update(repo_id, {"model-index": metadata_load(card)["model-index"]}, overwrite=True)
        else:
            uploads["README.md"] = card
        operations = [CommitOperationAdd(name, str(file)) for name, file in uploads.items()]
        api.create_commit(repo_id, operations, commit_message="Model and report")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise SDRRLError(f"The upload to {repo_id} failed: {error}") from error
