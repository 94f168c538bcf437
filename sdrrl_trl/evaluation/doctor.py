"""`sdrrl doctor`: which benchmarks can be loaded here, in which languages, and why the others cannot."""

import re
from collections import defaultdict

from sdrrl_trl.evaluation.suite import language_of, leaves, load_tasks, own_tasks, read_tasks, task_manager, tasks_dir
from sdrrl_trl.render import render
from sdrrl_trl.utils import SDRRLError


def doctor(names: list[str] | None = None) -> dict[str, str | None]:
    """
    Loads the data of each task, without any model.

    Args:
        names (`list[str]`, *optional*):
            Only these tasks. Default: all of ours.

    Returns:
        `dict[str, str | None]`: by task, why it cannot be loaded, or `None`.
    """
    ours, own = leaves(tasks_dir()), own_tasks()
    unknown = sorted(set(names or ()) - set(own))
    if unknown:
        raise SDRRLError(f"{', '.join(unknown)}: no task, group or tag of these. Leave the names out to see them all.")
    wanted = dict.fromkeys(task for name in names or ours for task in own[name])
    _, problems = load_tasks(task_manager(), {task: ours[task] for task in wanted})
    return {task: problems.get(task) for task in wanted}


def format_doctor(problems: dict[str, str | None]) -> str:
    """A table of languages and benchmarks in Markdown: what is here, and the number of the reason for what is not."""
    benchmark_of = {}
    for path, content in read_tasks(tasks_dir()).items():
        members = content["task"] if "group" in content else [content]
        benchmark_of |= {member["task"]: path.parent.name for member in members if isinstance(member, dict)}
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    reasons: dict[str, int] = {}
    for task, problem in problems.items():
        language, benchmark = language_of(task) or "", benchmark_of[task]
        if problem is None:
            cells[language].setdefault(benchmark, "yes")
        else:
            # The same reason but for the name of the file is one
            reason = re.sub(rf"(?<![a-z])({language}|[a-z]{{3}}_[A-Z][a-z]{{3}})(?![a-z])", "*", problem)
            cells[language][benchmark] = f"no ({reasons.setdefault(reason, len(reasons) + 1)})"
    benchmarks = sorted({benchmark for row in cells.values() for benchmark in row})
    rows = [{"tag": tag} | {name: cells[tag].get(name, "") for name in benchmarks} for tag in sorted(cells)]
    return render("doctor.md.jinja", rows=rows, reasons=reasons)
