"""
Scores trained arms on benchmark tasks with `sdrrl evaluate` and `sdrrl report`, and keeps the comparisons.

    python benchmarks/evidence/tasks.py [--work evidence] [--target pt]

Needs the checkpoints that `run.py` left in the same `--work`. Goes on where it was interrupted. `tables.py` shows the
results.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import data
from run import DATA, HERE, KEEP_MEMORY, options_of

from sdrrl_trl.engines.offline import smollm2
from sdrrl_trl.utils import read_json


ARMS = ("t_sft", "sdrrl", "sdrrl_references")
LIMIT = 300
TASKS = {
    "pt": ["mmmlu_pt", "mmmlu_en", "mkqa_pt", "mkqa_en", "belebele_gen_en", "xnli_gen_en", "xstorycloze_gen_en"],
    "es": ["mmmlu_es", "mmmlu_en", "xstorycloze_gen_es", "xstorycloze_gen_en", "mkqa_en"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("evidence"), help="folder of pools and checkpoints")
    parser.add_argument("--target", choices=list(TASKS), default="pt")
    arguments = parser.parse_args()
    target, folder = arguments.target, arguments.work / "tasks" / arguments.target
    base, _ = smollm2()
    checkpoints = {
        arm: arguments.work / "runs" / f"{target}-{arm}-0" / f"checkpoint-{options_of(arm)['steps']}" for arm in ARMS
    }
    models = {"base": base} | {arm: path for arm, path in checkpoints.items() if path.exists()}
    environment = os.environ | KEEP_MEMORY | {"SDRRL_DATA_DIR": str(DATA)}

    def sdrrl(*options: str) -> None:
        subprocess.run([sys.executable, "-m", "sdrrl_trl", *options], check=True, env=environment)

    sdrrl(
        "evaluate",
        *("--models", *(f"{name}={path}" for name, path in models.items())),
        *("--tasks", *(f"sdrrl_{task}" for task in TASKS[target])),
        *("--limit", str(LIMIT), "--source_language", "en", "--dtype", "float32", "--output_dir", str(folder)),
    )
    kept = []
    for of in ("base", "t_sft"):
        tuned = [name for name in models if name not in ("base", of)]
        report = folder.with_name(f"{target}-report-{of}")
        sdrrl("report", "--evaluation", str(folder), "--base", of, "--tuned", *tuned, "--output_dir", str(report))
        content = read_json(report / "report.json")
        kept += [
            {"base": of} | {name: row[name] for name in ("model", "task", "metric", "comparison", "p_holm", "verdict")}
            for row in content["rows"]
        ]
    data.write_compact(HERE / "results" / f"tasks-{target}.json", {"rows": kept, "signatures": content["signatures"]})


if __name__ == "__main__":
    main()
