"""`sdrrl doctor`: what is here of all that a run needs; which benchmarks, in which languages, and why not the rest."""

import os
import re
import shutil
from collections import defaultdict

from sdrrl_trl import hub
from sdrrl_trl.evaluation.suite import find, language_of, read_tasks, tasks_dir
from sdrrl_trl.render import render
from sdrrl_trl.tasks import judge
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL
from sdrrl_trl.transfer.select_engines import EXTRAS
from sdrrl_trl.utils import package_version


def doctor(names: list[str] | None = None, languages: list[str] | None = None) -> dict[str, str | None]:
    """By task, why its data cannot be loaded, or `None`; of what [`find`] finds. No model is loaded."""
    tasks, problems = find(names or None, languages)
    return dict.fromkeys(tasks) | problems


def surroundings() -> dict[str, str]:
    """What is here of what a run needs beside data: by part, its state, or what to do about it."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    device = torch.accelerator.current_accelerator() or f"CPU with {torch.get_num_threads()} threads"
    found = {
        "torch": f"{torch.__version__} on {device}",
        "disk": f"{shutil.disk_usage('.').free / 1e9:.0f} GB free here",
        "hub": hub.unreachable() or "answers",
        "judge": _judge(),
    }
    is_cached = isinstance(try_to_load_from_cache(DEFAULT_TRANSLATOR_MODEL, "config.json"), str)
    found[f"translator {DEFAULT_TRANSLATOR_MODEL}"] = "downloaded" if is_cached else "not downloaded"
    for engine, extra in EXTRAS.items():
        found[f"engine {engine}"] = package_version(engine) or f'not installed: pip install "sdrrl-trl[{extra}]"'
    return found


def _judge() -> str:
    """The judge of harmful answers, or why it does not work."""
    try:
        # First that, as a judge who does not answer is waited for
        if os.environ.get("SDRRL_JUDGE") == "endpoint" and isinstance(why := hub.probe(judge.setting("URL")), str):
            return f"the server in SDRRL_JUDGE_URL does not answer ({why.partition(':')[0]}). Start it"
        judge.preflight()
        return judge.judge_name()
    except (ValueError, ImportError, OSError) as error:
        return str(error)


def format_doctor(problems: dict[str, str | None], parts: dict[str, str]) -> str:
    """Tables in Markdown: [`surroundings`]; languages and benchmarks, with the number of the reason for each gap."""
    benchmark_of = {}
    for path, content in read_tasks(tasks_dir()).items():
        members = content["task"] if "group" in content else [content]
        benchmark_of |= {member["task"]: path.parent.name for member in members if isinstance(member, dict)}
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    reasons: dict[str, int] = {}
    for task, problem in problems.items():
        language, benchmark = language_of(task) or "", benchmark_of.get(task, task)
        if problem is None:
            cells[language].setdefault(benchmark, "yes")
        else:
            # The same reason but for the name of the file is one
            code = rf"(?<=[/_-]){language or '!'}(?![a-z])|(?<![a-z])[a-z]{{3}}_[A-Z][a-z]{{3}}(?![a-z])"
            reason = re.sub(code, "*", problem)
            cells[language][benchmark] = f"no ({reasons.setdefault(reason, len(reasons) + 1)})"
    benchmarks = sorted({benchmark for row in cells.values() for benchmark in row})
    rows = [{"tag": tag} | {name: cells[tag].get(name, "") for name in benchmarks} for tag in sorted(cells)]
    states = [{"part": part, "state": state} for part, state in parts.items()]
    return render("doctor.md.jinja", states=states, rows=rows, reasons=reasons)
