"""Run under torchrun by test_distributed.py: trains each case and writes what was logged."""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from test_trainer import rows

from sdrrl_trl import SDRRLConfig, SDRRLTrainer


WEIGHTS = {"kind_weights": {"target": 2.0, "translation": 0.5}}


def one_language_a_rank() -> Dataset:
    """With two processes, each step gives one of them rows of only one answer language."""
    data = rows()
    order = [i for pair in zip(range(0, 16, 2), range(1, 16, 2), strict=True) for i in pair]
    english = [i for i in order if data[i]["answer_language"] == "en"]
    portuguese = [i for i in order if data[i]["answer_language"] == "pt"]
    return data.select([i for k in range(0, 8, 4) for i in (*english[k : k + 4], *portuguese[k : k + 4])])


CASES = {
    "plain": {},
    "weights": WEIGHTS,
    "weights, lora": {**WEIGHTS, "peft": True},
    "kl, full": {"kl_coef": 0.5},
    "kl, lora, weights": {**WEIGHTS, "kl_coef": 0.5, "peft": True},
    "kl, lora, packed evaluation": {"kl_coef": 0.5, "peft": True, "eval_packing": True, "max_length": 64},
    "one language a rank": {"dataset": one_language_a_rank, "train_sampling_strategy": "sequential"},
}


def run(case: str, model: str, folder: Path, world_size: int) -> dict:
    options = dict(CASES[case])
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "up_proj"]) if options.pop("peft", False) else None
    dataset = options.pop("dataset", rows)()
    args = SDRRLConfig(
        output_dir=str(folder / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8 // world_size,
        per_device_eval_batch_size=8 // world_size,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        **options,
    )
    trainer = SDRRLTrainer(model, args, train_dataset=dataset, peft_config=lora)
    assert trainer.accelerator.num_processes == world_size
    trainer.train()
    sums = {name: parameter.detach().double().sum().item() for name, parameter in trainer.model.named_parameters()}
    names = ["loss", "grad_norm"]
    if trainer.args.kl_coef or trainer.args.kind_weights:  # transformers' own mean is one over batches
        names.append("eval_loss")
    logs = [*trainer.state.log_history[:3], trainer.evaluate(rows(13))]  # in three batches of four and a rest
    logs = [{name: value for name, value in entry.items() if name in names or "/" in name} for entry in logs]
    return {"logs": logs, "parameters": sums}


if __name__ == "__main__":
    model, folder, world_size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    results = {case: run(case, model, folder, world_size) for case in CASES}
    state = PartialState()
    if state.is_main_process:
        (folder / f"{world_size}.json").write_text(json.dumps(results))
    state.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)  # with gloo, some runs abort in the destructors at exit; what is tested here is done
