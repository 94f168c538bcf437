"""Which lm-eval tasks a name stands for, in which languages, and how each is loaded alone."""

import difflib
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sdrrl_trl.evaluation.tasks import include_paths, tasks_dir
from sdrrl_trl.languages import LANGUAGES, get_language
from sdrrl_trl.utils import SDRRLError


HARMFUL = ("sdrrl_multijail", "sdrrl_pku_saferlhf")  # their questions are not for every reader


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # that in C is ten times as fast
    """Reads task files without running the functions that they name."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {loader.construct_scalar(node)}")


def read_tasks(folder: Path) -> dict[Path, dict[str, Any]]:
    """
    Content of all task files in a folder, with what they include, functions as text.

    Raises:
        `yaml.YAMLError`: for a file that is not YAML, which lm-eval itself would skip without a word.
        `OSError`: if an included file is missing.
    """
    return {path: _read(path) for path in sorted(folder.glob("*/*.yaml"))}


def _read(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    if not isinstance(content, dict) or (path.suffix == ".yaml" and not {"task", "group"} & set(content)):
        raise yaml.YAMLError(f"{path} is not a mapping with `task` or `group`.")
    includes = content.pop("include", [])
    for name in [includes] if isinstance(includes, str) else includes:
        content = _read(path.parent / name) | content
    return content


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
def _ours() -> dict[str, dict[str, Any]]:
    """Content of our task and group files by name."""
    files = read_tasks(tasks_dir()).values()
    return {content["group" if "group" in content else "task"]: content for content in files}


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
    ours = leaves(tasks_dir())
    own_tags = {tag for content in _ours().values() for tag in content.get("tag", ())}
    foreign = [name for name in names if name not in {*_ours(), *ours, *own_tags}]
    manager = task_manager(everything=bool(foreign))
    unknown = [name for name in foreign if name not in manager.all_tasks]
    if unknown:
        close = difflib.get_close_matches(unknown[0], {*_ours(), *manager.all_tasks}, n=3)
        raise SDRRLError(f"Unknown task {unknown[0]!r}.{' Did you mean ' + ' or '.join(close) + '?' if close else ''}")

    tasks: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name in names:
        found = _load_foreign(manager, name) if name in foreign else dict.fromkeys(_expand(name))
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


def _expand(name: str) -> list[str]:
    """Names of the tasks that a name of ours stands for."""
    if name not in _ours():
        tagged = [content["task"] for content in _ours().values() if name in content.get("tag", ())]
        return tagged or [name]
    if "group" not in _ours()[name]:
        return [name]
    members = (member if isinstance(member, str) else member["task"] for member in _ours()[name]["task"])
    return [task for member in members for task in _expand(member)]


def language_of(task: str, content: dict[str, Any] | None = None) -> str | None:
    """Language that a task is about: by its tag, or by the end of its name, a language tag or a FLORES code."""
    for tag in (content or _ours().get(task, {})).get("tag", ()):
        if tag.startswith("sdrrl_lang_"):
            return tag.removeprefix("sdrrl_lang_")
    if task.startswith("agieval_"):  # whose "ar" is for analytical reasoning
        return None
    code = re.split(r"[-_](?=[a-z]{2,3}(?:_[A-Z][a-z]{3})?$)", task)[-1]
    by_flores = {language.flores: tag for tag, language in LANGUAGES.items()}
    return by_flores.get(code, code if code in LANGUAGES else None)
