"""
Scores trained arms on benchmark tasks, and keeps how they compare with `base` and with T-SFT.

    python benchmarks/evidence/tasks.py [--work evidence] [--target pt]

`sdrrl evaluate` and `sdrrl report` do the tasks. A small model cannot write a letter as its answer, so BELEBELE and
XNLI are lm-eval's own `belebele_eng_Latn` and `xnli_en`, which compare likelihoods (of the four letters, and of three
texts), with local files in the place of the hub's; XStoryCloze is done here the way of lm-eval's `xstorycloze`, as the
local files lack its columns. Needs the checkpoints that `run.py` left in the same `--work`. Goes on where it was
interrupted. `tables.py` shows the results.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import data
import lm_eval
import measure
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from run import DATA, HERE, KEEP_MEMORY, options_of

from sdrrl_trl.engines.fast_translate import smollm2
from sdrrl_trl.evaluation.outputs import load
from sdrrl_trl.evaluation.significance import bootstrap, item_statistics
from sdrrl_trl.utils import read_json


ARMS = ("t_sft", "sdrrl")
N_ITEMS, N_STORIES = 150, 400
TASKS = {
    "pt": ["mmmlu_pt", "mmmlu_en", "mkqa_pt", "mkqa_en"],
    "es": ["mmmlu_es"],
}
STORIES = {"pt": ["en", "es"], "es": ["es"]}  # XStoryCloze has no Portuguese, which is close to Spanish
# With the Portuguese arms only. lm-eval's task: its file, the local data, its split, the column of the right answer
ENGLISH = {
    "belebele_eng_Latn": ("belebele/belebele_eng_Latn.yaml", "belebele/eng_Latn.jsonl", "test", "correct_answer_num"),
    "xnli_en": ("xnli/xnli_en.yaml", "xnli/en.jsonl", "validation", "label"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("evidence"), help="folder of pools and checkpoints")
    parser.add_argument("--target", choices=list(TASKS), default="pt")
    arguments = parser.parse_args()
    target, folder = arguments.target, arguments.work / "tasks" / arguments.target
    models = {"base": smollm2()[0]}
    for arm in ARMS:
        path = arguments.work / "runs" / f"{target}-{arm}-0" / f"checkpoint-{options_of(arm)['steps']}"
        if not path.exists():
            raise SystemExit(f"error: {path} does not exist. Train it with run.py and the same --work.")
        models[arm] = str(path)
    sdrrl(
        "evaluate",
        *("--models", *(f"{name}={path}" for name, path in models.items())),
        *("--tasks", *(f"sdrrl_{task}" for task in TASKS[target])),
        *("--limit", str(N_ITEMS), "--model_args", "dtype=float32", "--output_dir", str(folder)),
    )
    right = {
        name: stories(folder / f"stories-{N_STORIES}-{name}.json", models["base"], path, STORIES[target])
        for name, path in models.items()
    }
    golds = {
        task: [item.target for item in load(folder / "base").tasks[f"sdrrl_{task}"].items]
        for task in TASKS[target]
        if not task.startswith("mkqa")
    }
    golds |= {f"xstorycloze_{tag}": [story["answer_right_ending"] for story in read(tag)] for tag in STORIES[target]}
    if target == "pt":
        for name, path in models.items():
            right[name] |= english(folder / f"english-{N_ITEMS}-{name}.json", models["base"], path)
        for task, (_, file, _, column) in ENGLISH.items():
            lines = (DATA / file).read_text().splitlines()[:N_ITEMS]
            golds[task] = [json.loads(line)[column] for line in lines]
    rows = []
    for of in ("base", "t_sft"):
        tuned = [name for name in models if name not in ("base", of)]
        report = folder.with_name(f"{target}-report-{of}")
        sdrrl("report", *(f"{name}={folder / name}" for name in (of, *tuned)), "--output_dir", str(report))
        content = read_json(report / "report.json")
        rows += [
            {"base": of, "task": row["task"].removeprefix("sdrrl_")}
            | {name: row[name] for name in ("model", "metric", "comparison")}
            for row in content["rows"]
            if row["metric"] in ("accuracy", "token_f1")
        ]
        for name in tuned:
            for task in right[name]:
                both = [item_statistics("acc", right[model][task]) for model in (of, name)]
                (found,) = bootstrap([("acc", *both)], 1000, seed=1234)
                rows.append({"base": of, "model": name, "task": task, "metric": "acc", "comparison": asdict(found)})
    signatures = content["signatures"] | {
        task: {"limit": len(right["base"][task]), "shots": 0, "chat_template": None} for task in right["base"]
    }
    frequent = {task: Counter(map(str, gold)).most_common(1)[0][1] / len(gold) for task, gold in golds.items()}
    content = {"rows": rows, "most_frequent": frequent, "signatures": signatures}
    data.write_compact(HERE / "results" / f"tasks-{target}.json", content)


def read(language: str) -> list[dict]:
    lines = (DATA / "xstorycloze" / f"{language}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:N_STORIES]]


def sdrrl(*options: str) -> None:
    environment = os.environ | KEEP_MEMORY | {"SDRRL_DATA_DIR": str(DATA)}
    subprocess.run([sys.executable, "-m", "sdrrl_trl", *options], check=True, env=environment)


def stories(file: Path, base: str, path: str, languages: list[str]) -> dict[str, list[int]]:
    """Of each story of XStoryCloze, by language, whether the right ending is likelier than the wrong one."""
    if file.exists():
        return read_json(file)
    generator = measure.load(base, adapter=None if path == base else path)
    right = {}
    for language in languages:
        pairs, answers = [], []
        for story in read(language):
            context = re.sub(r"([.!?])(?=\S)", r"\1 ", story["context"])  # the file has no spaces between sentences
            pairs += [(measure.DOCUMENT_START + context, f" {story[f'sentence_quiz{i}']}") for i in (1, 2)]
            answers.append(story["answer_right_ending"])
        found = [nats for nats, _ in measure.log_likelihoods(generator.model, generator.tokenizer, pairs)]
        chosen = [1 if first > second else 2 for first, second in zip(found[::2], found[1::2], strict=True)]
        right[f"xstorycloze_{language}"] = [
            int(choice == answer) for choice, answer in zip(chosen, answers, strict=True)
        ]
    data.write_compact(file, right)
    return right


def english(file: Path, base: str, path: str) -> dict[str, list[int]]:
    """Of each item of lm-eval's BELEBELE and XNLI in English, by task, whether the right answer is the likeliest."""
    if file.exists():
        return read_json(file)
    generator = measure.load(base, adapter=None if path == base else path)
    tasks = []
    for task, (config, local, split, _) in ENGLISH.items():
        content = load_yaml(Path(lm_eval.__file__).parent / "tasks" / config, resolve_func=True)
        files = {"data_files": {split: str(DATA / local)}}
        local_data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files, "training_split": None}
        tasks.append(content | {"task": task} | local_data)
    model = HFLM(pretrained=generator.model, tokenizer=generator.tokenizer, batch_size=16)
    samples = lm_eval.simple_evaluate(model, tasks=tasks, limit=N_ITEMS, bootstrap_iters=0)["samples"]
    right = {
        task: [int(sample["acc"]) for sample in sorted(found, key=lambda sample: sample["doc_id"])]
        for task, found in samples.items()
    }
    data.write_compact(file, right)
    return right


if __name__ == "__main__":
    main()
