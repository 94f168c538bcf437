"""`sdrrl doctor`: which benchmarks can be loaded here, in which languages, and why the others cannot."""

import re
from collections import defaultdict

from sdrrl_trl.evaluation.suite import language_of, leaves, read_tasks, task_manager
from sdrrl_trl.evaluation.tasks import tasks_dir


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
    problems: dict[str, str | None] = {}
    for name in names or found:
        try:
            for task in manager.load([found[name]])["tasks"].values():
                len(task.eval_docs)  # lm-eval 0.5 loads them only now
            problems[name] = None
        except Exception as error:  # whatever a loader of data may raise; it is shown
            text = f"{type(error).__name__}: {error}"
            problems[name] = "".join(char if char.isprintable() else " " for char in text)  # it may come from a server
    return problems


def places() -> dict[str, tuple[str, str]]:
    """Benchmark and language of each task."""
    found = {}
    for path, content in read_tasks(tasks_dir()).items():
        members = content["task"] if isinstance(content["task"], list) else [content]
        for member in members:
            if isinstance(member, dict):
                found[member["task"]] = (path.parent.name, language_of(member["task"], member) or "")
    return found


def format_doctor(problems: dict[str, str | None]) -> str:
    """A table of languages and benchmarks in Markdown: what is here, and the number of the reason for what is not."""
    where, cells, reasons = places(), defaultdict(dict), []
    for task, problem in problems.items():
        benchmark, language = where[task]
        # The same reason but for the name of the file is one
        reason = problem and re.sub(rf"(?<![a-z])({language}|[a-z]{{3}}_[A-Z][a-z]{{3}})(?![a-z])", "*", problem)
        if reason and reason not in reasons:
            reasons.append(reason)
        worse = cells[language].get(benchmark, "yes") if reason is None else f"no ({reasons.index(reason) + 1})"
        cells[language][benchmark] = worse
    benchmarks = sorted({benchmark for row in cells.values() for benchmark in row})
    lines = [["language", *benchmarks], ["---"] * (len(benchmarks) + 1)]
    lines += [[language, *(cells[language].get(b, "") for b in benchmarks)] for language in sorted(cells)]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*table, "", *(f"({number}) {reason}" for number, reason in enumerate(reasons, 1))]).rstrip()
