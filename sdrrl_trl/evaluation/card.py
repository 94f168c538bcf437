"""The results in a tuned model's card, with metadata for the hub, and the upload."""

import re
from pathlib import Path
from typing import Any

import yaml

from sdrrl_trl.evaluation.compare import Row
from sdrrl_trl.evaluation.outputs import Output
from sdrrl_trl.evaluation.suite import HARMFUL
from sdrrl_trl.render import render
from sdrrl_trl.transfer.publish import is_non_commercial
from sdrrl_trl.utils import SDRRLError, package_version, write_atomic


BEGIN, END = "<!-- sdrrl report: begin -->", "<!-- sdrrl report: end -->"
# Of a model's files, what only the training needs
IGNORED = ["*.lock", ".*", "options*.json", "trainer_state.json", "timings.json", "training_args.bin"]
IGNORED += ["optimizer.*", "scheduler.pt", "rng_state*"]


def load(model: str) -> Any:
    """
    The card of a model, or a new one if there is none here. The model's folder itself is never written to.

    Args:
        model (`str`):
            Folder or hub id of the model.

    Raises:
        `SDRRLError`: if the metadata of the card cannot be read.
    """
    from huggingface_hub import ModelCard

    path = Path(model) / "README.md"
    new = f"---\nlibrary_name: transformers\n---\n# {Path(model).name}\n"
    try:
        return ModelCard(path.read_text(encoding="utf-8") if path.is_file() else new, ignore_metadata_errors=True)
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        raise SDRRLError(
            f"The metadata at the top of {path} cannot be read, so the results cannot be added without losing it. "
            f"Correct the lines between the two `---`, or move the file away for a new card. The mistake: {error}"
        ) from error


def write(
    path: Path, card: Any, content: dict[str, Any], rows: list[Row], model: str, data_set: dict[str, Any] | None
) -> None:
    """
    Writes a card with the results, in the place of those of an earlier report.

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
    rows, data = [row for row in rows if row.model == model], card.data
    data.model_name = data.model_name or Path(content["models"][model]).name
    # Results of others in the card stay
    results = [*(data.eval_results or []), *_eval_results(rows)]
    data.eval_results = list({(r.dataset_name, r.metric_type, r.metric_name): r for r in results}.values()) or None
    # PEFT notes the folder that the base model was loaded from, which the hub rejects
    bases = [data.base_model] if isinstance(data.base_model, str) else data.base_model or []
    data.base_model = data.base_model if all(map(on_hub, bases)) else None
    tags = map(str, data.tags or [])
    data.tags = [tag for tag in tags if not tag.startswith("base_model:") or on_hub(tag.rpartition(":")[2])] or None
    if data_set:
        data.language = [data_set["options"]["source_language"], *data_set["options"]["target_languages"]]
        if data.license is None and any(map(is_non_commercial, data_set["licences"].values())):
            data.license, data.license_name = "other", "non-commercial-parts"
    licences = data_set["licences"] if data_set else {}
    section = render(
        "card.md.jinja",
        sentences=content["summary"][model],
        base=Path(content["models"][content["base"]]).name,
        tuned=Path(content["models"][model]).name,
        rows=rows,
        data_set=data_set,
        non_commercial=[f"{name} ({licence})" for name, licence in licences.items() if is_non_commercial(licence)],
        versions={name: package_version(name) for name in ("sdrrl-trl", "lm_eval", "transformers", "trl", "torch")},
        signatures=sorted(set(content["signatures"].values())),
    )
    before, _, rest = card.text.partition(BEGIN)
    after = rest.partition(END)[2].rstrip()
    write_atomic(path, f"---\n{data.to_yaml()}\n---\n{before.rstrip()}\n\n{BEGIN}\n{section}{END}{after}\n")


def on_hub(model: str) -> bool:
    """Whether a model is named by an id of the hub, not by a folder here."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) is not None and not Path(model).is_dir()


def _eval_results(rows: list[Row]) -> list[Any]:
    """The tuned model's scores as the hub's `model-index` has them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=row.benchmark.removesuffix("_*").replace("*", "xx"),
            dataset_name=row.task,
            dataset_config=row.language or "default",  # the hub tells results apart by it, not by the name
            metric_type=row.metric_name,
            metric_name=row.title,
            metric_value=round(row.comparison.tuned, 5),
        )
        for row in rows
        if row.role not in ("agreement", "drift")
    ]


def push(repo_id: str, tuned: Output, folder: Path, dry_run: bool) -> None:
    """
    Uploads model, card and report: the files at the top of the model's folder, as the folders in it may be checkpoints
    or an evaluation with its samples, and the report, without the page if that shows harmful samples.

    Args:
        repo_id (`str`):
            Model repository.
        tuned ([`Output`]):
            The tuned model; if it is on the hub already, only card and report are uploaded.
        folder (`Path`):
            Folder of the report.
        dry_run (`bool`):
            Only print what would be uploaded.

    Raises:
        `SDRRLError`: if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, metadata_load, metadata_update
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import filter_repo_objects, validate_repo_id

    harmful = any(task.startswith(HARMFUL) for task in tuned.tasks)
    report = [file for file in sorted(folder.glob("report.*")) if not (harmful and file.suffix == ".html")]
    uploads = {f"report/{file.name}": file for file in report}
    # A path in a results file may be any folder: only one that holds a model is uploaded
    model = Path(tuned.model)
    is_here = any((model / name).exists() for name in ("config.json", "adapter_config.json"))
    if is_here:
        files = {file.name: file for file in sorted(model.iterdir()) if file.is_file()}
        uploads |= {name: files[name] for name in filter_repo_objects(files, ignore_patterns=IGNORED)}
    uploads["README.md"] = folder / "README.md"
    api = HfApi()
    try:
        validate_repo_id(repo_id)
        if dry_run:
            lines = [f"  {name} ({file.stat().st_size:,} bytes)" for name, file in sorted(uploads.items())]
            lines += ["Not report.html: it shows harmful prompts and answers."] * harmful
            print("\n".join([f"Would upload to {repo_id}:", *lines]))
            return
        api.create_repo(repo_id, exist_ok=True)
        if not is_here and api.file_exists(repo_id, "README.md"):
            card = uploads.pop("README.md")  # that of the hub stays, and gets the scores
            if scores := metadata_load(card).get("model-index"):
                metadata_update(repo_id, {"model-index": scores}, overwrite=True)
        operations = [CommitOperationAdd(name, str(file)) for name, file in uploads.items()]
        api.create_commit(repo_id, operations, commit_message="Model and report")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise SDRRLError(f"`push_to_hub`: the upload to {repo_id} failed: {error}") from error
