"""
Scores trained arms on benchmark tasks, and keeps how they compare with `base` and with T-SFT.

    python benchmarks/evidence/tasks.py [--work evidence] [--target pt]

`sdrrl evaluate` and `sdrrl report` do the tasks. XStoryCloze is done a second time, by likelihood as lm-eval's
`xstorycloze` does it (without a question, from the local file): a small model cannot answer with a letter. Needs the
checkpoints that `run.py` left in the same `--work`. Goes on where it was interrupted. `tables.py` shows the results.
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
import measure
from run import DATA, HERE, KEEP_MEMORY, options_of

from sdrrl_trl.engines.offline import smollm2
from sdrrl_trl.evaluation.significance import compare
from sdrrl_trl.utils import read_json


ARMS = ("t_sft", "sdrrl")
N_ITEMS, N_STORIES = 150, 400
LANGUAGES = ("en", "es")  # of XStoryCloze by likelihood; it has no Portuguese, which is close to Spanish
TASKS = {
    "pt": ["mmmlu_pt", "mmmlu_en", "mkqa_pt", "mkqa_en"],
    "es": ["mmmlu_es", "mmmlu_en", "mkqa_en"],
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
        *("--limit", str(N_ITEMS), "--source_language", "en", "--dtype", "float32", "--output_dir", str(folder)),
    )
    right = {name: stories(folder / f"stories-{name}.json", models["base"], path) for name, path in models.items()}
    golds = {
        task: [sample["target"] for sample in read_json(folder / "base" / f"sdrrl_{task}.json")["samples"]]
        for task in TASKS[target]
        if not task.startswith("mkqa")
    }
    golds |= {
        f"xstorycloze_{language}": [story["answer_right_ending"] for story in read(language)] for language in LANGUAGES
    }
    rows = []
    for of in ("base", "t_sft"):
        tuned = [name for name in models if name not in ("base", of)]
        report = folder.with_name(f"{target}-report-{of}")
        sdrrl("report", "--evaluation", str(folder), "--base", of, "--tuned", *tuned, "--output_dir", str(report))
        content = read_json(report / "report.json")
        rows += [
            {"base": of, "task": row["task"].removeprefix("sdrrl_")}
            | {name: row[name] for name in ("model", "metric", "comparison")}
            for row in content["rows"]
            if row["metric"] in ("acc", "f1")
        ]
        for name in tuned:
            for language in LANGUAGES:
                found = compare("acc", right[of][language], right[name][language])
                task = {"task": f"xstorycloze_{language}", "metric": "acc", "comparison": asdict(found)}
                rows.append({"base": of, "model": name} | task)
    signatures = content["signatures"] | {"xstorycloze": {"limit": N_STORIES, "shots": 0, "chat template": False}}
    frequent = {task: Counter(map(str, gold)).most_common(1)[0][1] / len(gold) for task, gold in golds.items()}
    content = {"rows": rows, "most_frequent": frequent, "signatures": signatures}
    data.write_compact(HERE / "results" / f"tasks-{target}.json", content)


def read(language: str) -> list[dict]:
    lines = (DATA / "xstorycloze" / f"{language}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:N_STORIES]]


def sdrrl(*options: str) -> None:
    environment = os.environ | KEEP_MEMORY | {"SDRRL_DATA_DIR": str(DATA)}
    subprocess.run([sys.executable, "-m", "sdrrl_trl", *options], check=True, env=environment)


def stories(file: Path, base: str, path: str) -> dict[str, list[int]]:
    """Of each story of XStoryCloze, by language, whether the right ending is likelier than the wrong one."""
    if file.exists():
        return read_json(file)
    generator = measure.load(base, adapter=None if path == base else path)
    right = {}
    for language in LANGUAGES:
        pairs, answers = [], []
        for story in read(language):
            context = re.sub(r"([.!?])(?=\S)", r"\1 ", story["context"])  # the file has no spaces between sentences
            pairs += [(measure.DOCUMENT_START + context, f" {story[f'sentence_quiz{i}']}") for i in (1, 2)]
            answers.append(story["answer_right_ending"])
        found = [nats for nats, _ in measure.log_likelihoods(generator.model, generator.tokenizer, pairs)]
        chosen = [1 if first > second else 2 for first, second in zip(found[::2], found[1::2], strict=True)]
        right[language] = [int(choice == answer) for choice, answer in zip(chosen, answers, strict=True)]
    data.write_compact(file, right)
    return right


if __name__ == "__main__":
    main()
