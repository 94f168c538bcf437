"""
Time of evaluating a model and its adapter on 10 languages x 3 benchmarks, against the `lm_eval` command, in one run.

    python benchmarks/evaluate.py [--quick]    # needs `pip install -e '.[test]'` and benchmark data

The models are tiny and random, and end their answers after a few tokens, as a chat model does that is asked for a
letter: what is measured is mostly not the model. Left to itself a random model writes on to the limit, on both sides,
and takes most of the time. `lm_eval` runs once for each model with all tasks (`speedup_vs_lm_eval`), and once for each
model and benchmark (`speedup_vs_lm_eval_by_benchmark`). The scores of both must agree. The last line is one JSON
object. Data are those of `SDRRL_DATA_DIR` (default: ../shared/data).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # in the place of this folder, whose evaluate.py would hide the package `evaluate`
DATA = Path(os.environ.get("SDRRL_DATA_DIR", ROOT.parent / "shared" / "data"))
ENVIRONMENT = {**os.environ, "SDRRL_DATA_DIR": str(DATA), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
LANGUAGES = {
    "xnli_gen": "ar el en hi ru sw th tr ur zh",
    "mmmlu_gen": "ar bn en es hi id ko pt sw yo",
    "mkqa": "ar de en ja ko pt ru tr vi zh",
}


def seconds(command, folder):
    start = time.perf_counter()
    result = subprocess.run(command, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return time.perf_counter() - start


def ours(models, tasks, limit, folder):
    names = [f"{name}={path}" for name, path in models.items()]
    command = [sys.executable, "-m", "sdrrl_trl", "evaluate", "--models", *names, "--tasks", *sum(tasks, [])]
    return seconds(
        [*command, "--limit", str(limit), "--model_args", "dtype=float32", "--output_dir", f"{folder}/ours"], ROOT
    )


def lm_eval(models, groups_of_tasks, limit, folder):
    total = 0.0
    for name, path in models.items():
        base = "dtype=float32,pretrained=" + (str(path) if name == "base" else f"{models['base']},peft={path}")
        for i, tasks in enumerate(groups_of_tasks):
            command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", base]
            command += [
                "--tasks",
                ",".join(tasks),
                "--include_path",
                str(ROOT / "lm_eval_tasks"),
                "--batch_size",
                "16",
            ]
            command += ["--limit", str(limit), "--apply_chat_template", "--log_samples", "--device", "cpu"]
            total += seconds([*command, "--output_path", f"{folder}/theirs/{name}/{i}"], folder)
    return total


def compare_scores(folder):
    """Largest difference between the scores of the two."""
    from sdrrl_trl.evaluation.outputs import load

    worst, n = 0.0, 0
    for file in Path(folder).glob("theirs/*/*/*/results_*.json"):
        ours = load(Path(folder) / "ours" / file.relative_to(folder).parts[1])
        for task, result in load(file).tasks.items():
            for metric, value in result.metrics.items():
                worst, n = max(worst, abs(value - ours.tasks[task].metrics[metric])), n + 1
    return worst, n


def index_seconds():
    """Time of indexing our suite, and everything that lm-eval has, in turn."""
    from lm_eval.tasks import TaskManager

    from sdrrl_trl.evaluation.suite import include_paths

    times = {"ours": [], "lm_eval": []}
    for _ in range(3):
        start = time.perf_counter()
        TaskManager(include_path=include_paths(), include_defaults=False)
        times["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        TaskManager()
        times["lm_eval"].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one benchmark, two languages, one round")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each (default: %(default)s)")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"There are no benchmark data in {DATA}. Set SDRRL_DATA_DIR.")
    import torch
    from conftest import make_tiny_model
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, GenerationConfig

    n = 2 if options.quick else 10
    tasks = [[f"sdrrl_{name}_{tag}" for tag in tags.split()[:n]] for name, tags in LANGUAGES.items()]
    tasks, limit, rounds = (tasks[:1], 3, 1) if options.quick else (tasks, 10, options.rounds)
    with tempfile.TemporaryDirectory() as root:
        make_tiny_model(Path(root) / "base")
        ending = GenerationConfig.from_pretrained(f"{root}/base")
        ending.exponential_decay_length_penalty = (4, 100.0)  # from the fourth token on
        ending.save_pretrained(f"{root}/base")
        torch.manual_seed(1)
        lora = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = AutoModelForCausalLM.from_pretrained(f"{root}/base")
        get_peft_model(model, lora).save_pretrained(f"{root}/tuned")
        models = {"base": f"{root}/base", "tuned": f"{root}/tuned"}
        times = {"ours": [], "lm_eval": [], "lm_eval by benchmark": []}
        for i in range(rounds):
            folder = f"{root}/{i}"
            for name in (folder, f"{folder}-by"):
                Path(name).mkdir()
            times["ours"].append(ours(models, tasks, limit, folder))
            times["lm_eval"].append(lm_eval(models, [sum(tasks, [])], limit, folder))
            times["lm_eval by benchmark"].append(lm_eval(models, tasks, limit, f"{folder}-by"))
            worst, n_scores = compare_scores(folder)
            print(", ".join(f"{name} {values[-1]:.1f} s" for name, values in times.items()))
            print(f"largest difference of {n_scores} scores: {worst:.2g}", flush=True)
            if worst > 1e-6 or not n_scores:
                raise SystemExit("The two do not agree.")
    index = index_seconds()
    print(f"index: ours {index['ours']:.2f} s, lm-eval {index['lm_eval']:.2f} s")
    times = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        "speedup_vs_lm_eval": times["lm_eval"] / times["ours"],
        "speedup_vs_lm_eval_by_benchmark": times["lm_eval by benchmark"] / times["ours"],
        "index_speedup": index["lm_eval"] / index["ours"],
    }
    versions = {name: version(name) for name in ("lm_eval", "torch", "transformers")}
    ratios = {name: round(ratio, 2) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "evaluate", "ratios": ratios, "n": rounds, "versions": versions}))


if __name__ == "__main__":
    main()
