"""`sdrrl push_to_hub`: uploads a transfer set, or a report with its model and card."""

import re
from pathlib import Path

from sdrrl_trl import hub
from sdrrl_trl.evaluation.suite import HARMFUL
from sdrrl_trl.evaluation.weights import base_path, is_adapter, split_strength
from sdrrl_trl.render import inline
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import MODEL_FILES, SDRRLError, in_a_line, on_hub, read_json


# Of its files, what only the training needs
_IGNORED = ["*.lock", ".*", "options*.json", "training.json", "timings.json", "trainer_state.json"]
_IGNORED += ["training_args.bin", "optimizer.*", "scheduler.pt", "rng_state*"]


def push_to_hub(folder: str | Path, repo_id: str, dry_run: bool = False) -> None:
    """
    Uploads what `sdrrl build` or `sdrrl report` has made, in one commit.

    Of a transfer set, the data with manifest and card. Of a report, that and the tuned model with its card: the files
    at the top of the model's folder, as the folders in it may be checkpoints; not the page, if it shows harmful texts.

    Args:
        folder (`str` or `Path`):
            Folder of a transfer set or of a report.
        repo_id (`str`):
            Repository, which is made if there is none; the card gets its name. If it has a card and the model is not
            in a folder here, that card stays and gets the scores.
        dry_run (`bool`, *optional*, defaults to `False`):
            Only print what would be uploaded.

    Raises:
        `SDRRLError`: for a name that no repository can have, a folder that holds neither, a report of several models,
            an adapter on a base that is not on the hub, and if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, metadata_load, metadata_update
    from huggingface_hub.utils import validate_repo_id

    folder = Path(folder)
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise SDRRLError(f"{inline(repo_id)} cannot be the name of a repository: {in_a_line(error)}") from error
    is_report = (folder / "report.json").exists()
    here, uploads = _of_report(folder) if is_report else _of_transfer_set(folder)
    kind, api = "model" if is_report else "dataset", HfApi()
    try:
        if dry_run:
            print(f"In README.md, {here} becomes {repo_id}.")
            lines = [f"  {name} ({file.stat().st_size:,} bytes)" for name, file in sorted(uploads.items())]
            there = f"the {kind} repository {repo_id} (if there is none, it is made, public)"
            print("\n".join([f"Would upload to {there}:", *lines]))
            return
        if why := hub.unreachable():
            raise OSError(why)
        api.create_repo(repo_id, repo_type=kind, exist_ok=True)
        if is_report and not MODEL_FILES & uploads.keys() and api.file_exists(repo_id, "README.md"):
            if scores := metadata_load(uploads.pop("README.md")).get("model-index"):
                metadata_update(repo_id, {"model-index": scores}, overwrite=True)
        contents = {name: str(file) for name, file in uploads.items()}
        if card := uploads.get("README.md"):
            contents["README.md"] = _renamed(card.read_text(encoding="utf-8"), here, repo_id).encode()
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        message = "Model and report" if is_report else "Transfer set"
        api.create_commit(repo_id, operations, repo_type=kind, commit_message=message)
    except Exception as error:  # of any HTTP library; a name that cannot be one
        raise SDRRLError(f"The upload to {repo_id} failed: {hub.explain(error) or in_a_line(error)}") from error


def _renamed(card: str, name: str, repo_id: str) -> str:
    """A card of ours with its repository in the place of its folder here: in code, the title and the scores."""
    card = re.sub(rf'(model=|load_dataset\()"{re.escape(name)}"', rf'\g<1>"{repo_id}"', card)
    title = rf"\g<1>{repo_id.rpartition('/')[2]}"
    return re.sub(rf"^(# |- name: ){re.escape(name)}(?=:|$)", title, card, flags=re.MULTILINE)


def _of_transfer_set(folder: Path) -> tuple[str, dict[str, Path]]:
    """Name of a transfer set in its card, and path in the repository and here of each of its files."""
    if any((folder / name).exists() for name in ("training.json", *MODEL_FILES)):
        raise SDRRLError(f"{folder} is a model. Give the folder of a report on it, which is uploaded with it.")
    names = (*load_manifest(folder)["sha256"], "manifest.json", "README.md")
    return "FOLDER", {name: folder / name for name in names}


def _of_report(folder: Path) -> tuple[str, dict[str, Path]]:
    """The same of the model of a report, and of both."""
    from huggingface_hub.utils import filter_repo_objects

    content = read_json(folder / "report.json", expect=("models", "tuned", "signatures"))
    if len(content["tuned"]) != 1:
        raise SDRRLError(f"{folder} compares {len(content['tuned'])} tuned models. Report on the one to upload alone.")
    model = content["models"][content["tuned"][0]]
    if split_strength(model)[1] is not None:
        raise SDRRLError(f"There is no folder {model}. Write it with `sdrrl merge`, evaluate that, and report on it.")
    if is_adapter(model) and not on_hub(base_path(model)):
        raise SDRRLError(
            f"The adapter {model} is of a base in a folder here, that others lack. Write both as one model with "
            f"`sdrrl merge {model} merged`, which tells how to go on. Or, if the hub has the very same weights, put "
            "their id into `base_model_name_or_path` of its adapter_config.json."
        )
    harmful = any(task.startswith(HARMFUL) for task in content["signatures"])
    shown = [file for file in folder.glob("report.*") if not (harmful and file.suffix == ".html")]
    uploads = {f"report/{file.name}": file for file in shown} | {"README.md": folder / "README.md"}
    # A path in a results file may be any folder: only one that holds a model is uploaded
    if not any((Path(model) / name).exists() for name in MODEL_FILES):
        print(f"Without the model: {inline(model)} is no folder with one here")
    else:
        files = {file.name: file for file in Path(model).iterdir() if file.is_file()}
        uploads = {name: files[name] for name in filter_repo_objects(files, ignore_patterns=_IGNORED)} | uploads
    return Path(model).name, uploads
