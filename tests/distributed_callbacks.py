"""Run under torchrun by test_callbacks.py: trains with the callbacks and writes what was logged."""

import json
import math
import os
import sys
from pathlib import Path

import torch.distributed as dist
from peft import LoraConfig
from test_callbacks import TASKS, make_trainer, own_answers
from trl import SFTTrainer

from sdrrl_trl import ForgettingCallback, LMEvalCallback, SDRRLTrainer


class OnSteps(ForgettingCallback):
    """Also at step 3, where lm-eval does not run."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 1:
            super().on_step_end(args, state, control, **kwargs)


def run(cls: type, lora: bool, model: str, folder: Path, n_processes: int) -> list[dict]:
    trainer = make_trainer(
        model,
        folder / "out",
        cls=cls,
        peft_config=LoraConfig(target_modules=["q_proj", "up_proj"]) if lora else None,
        per_device_train_batch_size=8 // n_processes,
        ddp_find_unused_parameters=False,
    )
    assert trainer.accelerator.num_processes == n_processes
    # Odd numbers of items: the processes' shares differ
    callback = LMEvalCallback(trainer, [*TASKS, "sdrrl_xnli_gen_en"], steps=2, limit=5, at_start=True)
    trainer.add_callback(callback)
    trainer.add_callback(OnSteps(trainer, rows=own_answers(), steps=1, bound=1e9))
    trainer.train()
    for task in callback._tasks.values():  # the items are shared, not done by each process
        assert len({instance.doc_id for instance in task.instances}) <= math.ceil(5 / n_processes)
    names = ("loss", "grad_norm", "forgetting/", "lm_eval/")
    logs = [
        {name: value for name, value in entry.items() if name.startswith(names) and name != "lm_eval/seconds"}
        for entry in trainer.state.log_history
    ]
    return [entry for entry in logs if entry]


if __name__ == "__main__":
    model, folder, n_processes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    results = {
        name: run(cls, lora, model, folder, n_processes)
        for name, cls, lora in [("SFT", SFTTrainer, False), ("SDRRL, LoRA", SDRRLTrainer, True)]
    }
    if n_processes == 1 or dist.get_rank() == 0:
        (folder / f"{n_processes}.json").write_text(json.dumps(results))
    if n_processes > 1:
        # With gloo, about one run in twenty aborts in the destructors at exit ("terminate called without an active
        # exception", torch 2.13), after all is done. The results are what is tested here
        dist.barrier()
        sys.stdout.flush()
        os._exit(0)
