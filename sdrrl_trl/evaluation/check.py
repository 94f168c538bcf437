"""`sdrrl doctor` and `sdrrl tasks check`: whether the tasks can be loaded here, and whether they are sound."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sdrrl_trl.evaluation.suite import leaves, read_tasks, task_manager
from sdrrl_trl.evaluation.tasks import tasks_dir


PREFIX = "sdrrl_"


def doctor(names: list[str] | None = None) -> dict[str, str | None]:
    """
    Loads the data of each task, without any model.

    Args:
        names (`list[str]`, *optional*):
            Only these tasks. Default: all of ours.

    Returns:
        `dict[str, str | None]`: by task, why it cannot be loaded, or `None`.
    """
    manager, found = task_manager(), leaves(tasks_dir())
    problems = {}
    for name in names or found:
        try:
            manager.load([found[name]])
            problems[name] = None
        except Exception as error:  # whatever a loader of data may raise; it is shown
            problems[name] = f"{type(error).__name__}: {error}".replace("\n", " ")
    return problems


def check_files(folder: Path) -> Iterator[str]:
    """
    Mistakes in the task files that lm-eval would accept or skip in silence: broken YAML, names without our prefix,
    names given twice, group members that do not exist, functions outside the task's folder, no version.
    """
    try:
        files = read_tasks(folder)
    except (yaml.YAMLError, OSError) as error:
        yield str(error)
        return
    known = set(task_manager().all_tasks)
    seen: dict[str, Path] = {}
    for path, content in files.items():
        name = content.get("group") or content["task"]
        where = f"{path.parent.name}/{path.name}"
        if name in seen:
            yield f"{where}: the name {name} is taken by {seen[name].name}"
        seen[name] = path
        tags = content.get("tag", [])
        for own in [name, *([tags] if isinstance(tags, str) else tags)]:
            if not own.startswith(PREFIX):
                yield f"{where}: the name {own} does not start with {PREFIX} and may replace one of lm-eval"
        if "version" not in content.get("metadata", {}):
            yield f"{where}: no `metadata.version`"
        for function in re.findall(r"!function (\S+?)['\",}\]]", repr(content)):
            module = function.rpartition(".")[0]
            if not (path.parent / f"{module}.py").exists():
                yield f"{where}: !function {function} is not in this folder, so it cannot be copied alone"
        for member in content["task"] if "group" in content else []:
            member = member if isinstance(member, str) else member["task"]
            if member not in known:
                yield f"{where}: there is no task or group {member}"
    for name, path in seen.items():
        twice = _twice(name, {p.get("group") or p["task"]: p for p in files.values()})
        if twice:
            yield f"{path.parent.name}/{path.name}: {', '.join(twice)} would be counted twice"


def _twice(name: str, files: dict[str, dict[str, Any]]) -> list[str]:
    """Tasks that a group reaches on two ways."""

    def reached(name: str) -> list[str]:
        if "group" not in files.get(name, {}):
            return [name]
        members = (m if isinstance(m, str) else m["task"] for m in files[name]["task"])
        return [leaf for member in members for leaf in reached(member)]

    all_leaves = reached(name)
    return sorted({leaf for leaf in all_leaves if all_leaves.count(leaf) > 1})


def check_task(task: Any, limit: int = 10) -> Iterator[str]:
    """
    Mistakes in a loaded lm-eval task that show in its first items: no item, an empty or unrendered prompt, the same
    prompt for all, no target, a target outside the choices, generation without limit or stop condition.
    """
    n = len(task.eval_docs)
    if n == 0:
        yield "no items"
        return
    task.set_config("num_fewshot", 0)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    prompts = [instance.args[0] for instance in task.instances]
    if any("{{" in prompt or "}}" in prompt for prompt in prompts):
        yield "a prompt holds unrendered braces"
    # Without a question the choices are whole sentences, as in lm-eval's XNLI
    choices = [str(instance.args[1]) for instance in task.instances]
    if len({*zip(prompts, choices, strict=True)}) < 2 <= min(n, limit):
        yield "all prompts are the same"
    if task.OUTPUT_TYPE == "generate_until":
        if not all(prompt.strip() for prompt in prompts):
            yield "an empty prompt"
        options = task.config.generation_kwargs
        if "max_gen_toks" not in options or "until" not in options:
            yield "no `max_gen_toks` or no `until`: lm-eval would stop at the first blank line or after 256 tokens"
    for doc in list(task.eval_docs)[:limit]:
        target = task.doc_to_target(doc)
        if task.OUTPUT_TYPE == "multiple_choice":
            options = task.doc_to_choice(doc)
            if len(options) < 2 or not (target in options or str(target).isdigit() and int(target) < len(options)):
                yield f"the target {target!r:.50} is none of {len(options)} choices"
                break
        elif task.config.doc_to_target and target in ("", []):  # "" is for tasks without a reference
            yield "an empty target"
            break


def check() -> list[str]:
    """Mistakes in all task files, and in all tasks whose data can be loaded here. Prints what could not be."""
    mistakes = list(check_files(tasks_dir()))
    if mistakes:
        return mistakes
    manager, found, missing = task_manager(), leaves(tasks_dir()), []
    for name, spec in found.items():
        try:
            (task,) = manager.load([spec])["tasks"].values()
        except (OSError, ConnectionError):
            missing.append(name)
            continue
        except Exception as error:  # a mistake in the task's file or code
            mistakes.append(f"{name}: {type(error).__name__}: {error}")
            continue
        mistakes += [f"{name}: {mistake}" for mistake in check_task(task)]
    print(f"{len(found) - len(missing)} tasks checked with their data, {len(mistakes)} mistakes")
    if missing:
        print(f"{len(missing)} tasks not checked, their data are not here (`sdrrl doctor` says why)")
    return mistakes


def show_doctor(names: list[str]) -> None:
    """Prints which tasks can be loaded here, and why the others cannot, those of a benchmark together."""
    problems = doctor(names)
    ready = [name for name, problem in problems.items() if problem is None]
    print(f"{len(ready)} tasks are ready: {','.join(ready)}")
    missing: dict[str, list[str]] = {}
    for name in problems:
        if problems[name] is not None:
            missing.setdefault(re.sub("_[a-z]{2,3}(_[A-Z][a-z]{3})?$", "", name), []).append(name)
    for same in missing.values():
        print(f"\n{len(same)} not here: {','.join(same)}\n  {problems[same[0]]}")
