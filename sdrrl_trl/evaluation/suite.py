"""Which lm-eval tasks a name stands for, in which languages, and how each is loaded alone."""

import logging
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from sdrrl_trl import hub
from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.options import similar
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


def find(names: list[str] | None, languages: list[str] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Loads tasks, groups and tags by their names, of ours or of lm-eval, with their data.

    Args:
        names (`list[str]`, *optional*):
            Names. Default: all of ours.
        languages (`list[str]`, *optional*):
            Only tasks about these.

    Returns:
        `tuple`: lm-eval task objects by name; and by name of a task or group, why it cannot be loaded.

    Raises:
        `SDRRLError`: for an unknown name or language, and for a name without a task in the languages.
    """
    tags = {get_language(language).tag for language in languages or ()}
    ours, own = leaves(tasks_dir()), own_tasks()
    # lm-eval's index of everything takes 10 seconds: it is read only for a name that is not in ours
    manager = task_manager(everything=not set(names or ()) <= set(own))
    everything = _in_languages("The suite", ours, tags) if names is None else ()
    specs: dict[str, Any] = {task: ours[task] for task in everything}
    for name in names or ():
        if name in own:
            specs |= {task: ours[task] for task in _in_languages(name, own[name], tags)}
        elif name in manager.all_tasks:
            specs[name] = name
        else:
            hint = similar(name, {*own, *manager.all_tasks, "sdrrl_heldout"})
            if name in LANGUAGES:
                hint = f" {LANGUAGES[name].name} is a language: `--languages {name}`."
            raise SDRRLError(f"Unknown task {name!r}.{hint}")
    loaded, problems = load_tasks(manager, specs)
    # Which tasks are in a group of lm-eval's own is known only now
    tasks = {task: found[task] for name, found in loaded.items() for task in _in_languages(name, found, tags)}
    return tasks, problems


def select(
    names: list[str], languages: list[str] | None = None, skip_missing: bool = False, are_all: bool = True
) -> dict[str, Any]:
    """
    The tasks that [`find`] finds.

    Raises:
        `SDRRLError`: if data are not here; all that are missing are named at once. With `skip_missing`, only if all
            are missing, and these are all there are: else they are left out, and printed with the reason.
    """
    tasks, problems = find(names, languages)
    if problems and skip_missing and (tasks or not are_all):
        lines = [f"{task}: {problem}" for task, problem in problems.items()]
        print("\n".join([f"Left out, as they cannot be loaded ({len(problems)}):", *lines]), file=sys.stderr)
    elif problems:
        first = next(iter(problems.values()))
        raise SDRRLError(
            f"Of the tasks, {len(problems)} cannot be loaded: {', '.join(problems)}. The first: {first} `sdrrl "
            "doctor` lists what can be loaded here; name those, choose `languages`, or leave out the others "
            "(`skip_missing`)."
        )
    return tasks


def _in_languages(name: str, tasks: Iterable[str], tags: set[str]) -> list[str]:
    """Those of the tasks that a name stands for that are about one of the languages."""
    chosen = [task for task in tasks if not tags or language_of(task) in tags]
    if not chosen:
        known = ", ".join(sorted({str(language_of(task)) for task in tasks}))
        raise SDRRLError(f"{name} has no task in {', '.join(sorted(tags))}, only in {known}. Correct `languages`.")
    return chosen


def load_tasks(manager: Any, specs: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """
    Loads tasks with their data, each alone.

    Args:
        manager (`lm_eval.tasks.TaskManager`):
            Task manager that knows them.
        specs (`dict[str, Any]`):
            By name, what `TaskManager.load` takes: one of [`leaves`], or the name of a task or group of lm-eval.

    Returns:
        `tuple`: by name, its lm-eval task objects by theirs; and by name, why it cannot be loaded.
    """
    hub.unreachable()  # before `datasets` asks, again and again
    loaded, problems = {}, {}
    for name, spec in specs.items():
        try:
            found = manager.load([spec])["tasks"]
            for task in found.values():
                len(task.eval_docs)  # lm-eval 0.5 would load them only when it asks, after the model
            # lm-eval 0.5 puts the group before a task's name
            loaded[name] = {task.rpartition("::")[2]: one for task, one in found.items()}
        except Exception as error:  # whatever the data, their code or the hub may raise; it is shown
            says_it = isinstance(error, FileNotFoundError | ValueError)
            from_hub = hub.explain(error)
            text = (from_hub and f"No data: {from_hub} Or set SDRRL_DATA_DIR to a folder with the data.") or (
                str(error) if says_it else f"{type(error).__name__}: {error}"
            )
            problems[name] = "".join(char if char.isprintable() else " " for char in text)  # it may come from a server
    return loaded, problems


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
