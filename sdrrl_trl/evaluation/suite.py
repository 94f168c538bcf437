"""Which lm-eval tasks a name stands for, in which languages, and how each is loaded alone."""

import difflib
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.utils import SDRRLError


BY_FLORES = {language.flores: tag for tag, language in LANGUAGES.items()}
HARMFUL = ("sdrrl_multijail", "sdrrl_pku_saferlhf")  # their questions are not for every reader


def tasks_dir() -> Path:
    """Folder of the task definitions, for `lm_eval --include_path`: of the checkout, or of the installed wheel."""
    root = Path(__file__).parents[2]
    checkout = root / "lm_eval_tasks"
    return checkout if checkout.exists() else root / "lm_eval" / "tasks" / "sdrrl"


def include_paths() -> list[str]:
    """
    Folders for `TaskManager(include_path=..., include_defaults=False)`: ours, and those of lm-eval's own tasks that
    our groups take.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    return [str(tasks_dir()), *(str(root / name) for name in ("belebele", "xnli", "xstorycloze"))]


def read_tasks(folder: Path) -> dict[Path, dict[str, Any]]:
    """
    Content of all task files in a folder, with what they include, functions as text.

    Raises:
        `yaml.YAMLError`, `ValueError`: for a file that lm-eval itself would skip without a word.
        `OSError`: if an included file is missing.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    return {path: load_yaml(path, resolve_func=False) for path in sorted(folder.glob("*/*.yaml"))}


def task_manager(everything: bool = False) -> Any:
    """
    Task manager with our tasks and those of lm-eval that our groups take.

    Args:
        everything (`bool`, *optional*, defaults to `False`):
            All tasks of lm-eval, too, whose index takes seconds.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("lm_eval.judge").setLevel(logging.INFO)  # who judges, and how many judgements failed
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_paths(), include_defaults=everything)


def leaves(folder: Path) -> dict[str, Any]:
    """
    Every task of a folder, and every task of lm-eval that its groups take, by name, as `TaskManager.load` takes them.

    Each can be loaded alone: a group fails as a whole if the data of one language are missing.
    """
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES
    from lm_eval.tasks._yaml_loader import load_yaml

    files = read_tasks(folder)
    found: dict[str, Any] = {content["task"]: content["task"] for content in files.values() if "group" not in content}
    for path, content in files.items():
        if "group" in content and any(isinstance(member, dict) for member in content["task"]):
            group = load_yaml(path, resolve_func=True)
            shared = {key: value for key, value in group.items() if key not in GROUP_FIELD_NAMES}
            for member in group["task"]:
                found[member["task"]] = {"group": f"only_{member['task']}", "task": [shared | member]}
    return found


@cache  # read once: a report asks for the language of each task
def own_tasks() -> dict[str, list[str]]:
    """Names of the tasks that each name of ours stands for: of a group, of a tag, or of a task itself."""
    contents = {
        content["group" if "group" in content else "task"]: content for content in read_tasks(tasks_dir()).values()
    }

    def expand(name: str) -> list[str]:
        if "group" not in contents.get(name, ()):
            return [name]
        members = [member if isinstance(member, str) else member["task"] for member in contents[name]["task"]]
        return [task for member in members for task in expand(member)]

    found = {name: expand(name) for name in contents}
    found |= {task: [task] for tasks in found.values() for task in tasks}  # those of lm-eval in our groups, too
    for name, content in contents.items():
        for tag in content.get("tag", ()):
            found.setdefault(tag, []).append(name)
    return found


def select(names: list[str], languages: list[str] | None = None) -> dict[str, Any]:
    """
    Loads tasks, groups and tags by their names, of ours or of lm-eval, with their data.

    Args:
        names (`list[str]`):
            Names.
        languages (`list[str]`, *optional*):
            Only tasks about these.

    Returns:
        `dict[str, Any]`: lm-eval task objects by name.

    Raises:
        `SDRRLError`: for an unknown name or language, a name without a task in the languages, or data that are not
            here; all that are missing are named at once.
    """
    tags = {get_language(language).tag for language in languages or ()}
    # lm-eval's index of everything takes 10 seconds: it is read only for a name that is not in ours
    ours, foreign = leaves(tasks_dir()), [name for name in names if name not in own_tasks()]
    manager = task_manager(everything=bool(foreign))
    unknown = [name for name in foreign if name not in manager.all_tasks]
    if unknown:
        close = difflib.get_close_matches(unknown[0], {*own_tasks(), *manager.all_tasks}, n=3)
        raise SDRRLError(f"Unknown task {unknown[0]!r}.{' Did you mean ' + ' or '.join(close) + '?' if close else ''}")

    tasks: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name in names:
        found = _load_foreign(manager, name) if name in foreign else dict.fromkeys(own_tasks()[name])
        if tags and not tags & set(map(language_of, found)):
            known = ", ".join(sorted({str(language_of(task)) for task in found}))
            raise SDRRLError(f"{name} has no task in {', '.join(sorted(tags))}, only in {known}. Correct `languages`.")
        for task, loaded in found.items():
            if task in tasks or task in problems or (tags and language_of(task) not in tags):
                continue
            try:
                tasks[task] = loaded or next(iter(_load(manager, ours[task]).values()))
            except (OSError, ValueError, ImportError) as error:
                problems[task] = str(error)
    if problems:
        first = next(iter(problems.values()))
        raise SDRRLError(
            f"{len(problems)} tasks cannot be loaded: {', '.join(problems)}. The first: {first} `sdrrl doctor` lists "
            "what can be loaded here; name those, or choose `languages`."
        )
    return tasks


def _load(manager: Any, spec: Any) -> dict[str, Any]:
    tasks = manager.load([spec])["tasks"]
    for task in tasks.values():
        _ = task.dataset  # lm-eval 0.5 would load it only when it asks, after the model
    return tasks


def _load_foreign(manager: Any, name: str) -> dict[str, Any]:
    """Tasks of lm-eval itself by name, loaded."""
    try:
        return _load(manager, name)
    except Exception as error:  # whatever the data, their code or the hub may raise
        raise SDRRLError(f"lm-eval cannot load {name}: {type(error).__name__}: {error}") from error


@cache
def language_of(task: str) -> str | None:
    """Language that a task is about: by its tag, or by the end of its name, a language tag or a FLORES code."""
    for tag in LANGUAGES:
        if task in own_tasks().get(f"sdrrl_lang_{tag}", ()):
            return tag
    if task.startswith("agieval_"):  # whose "ar" is for analytical reasoning
        return None
    code = re.split(r"[-_](?=[a-z]{2,3}(?:_[A-Z][a-z]{3})?$)", task)[-1]
    return BY_FLORES.get(code, code if code in LANGUAGES else None)
