"""Run by test_distributed.py, there and under torchrun: trains each case and writes what was logged."""

import json
import math
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import PartialState
from conftest import data_dir
from datasets import Dataset, load_from_disk
from peft import LoraConfig, get_peft_model
from test_trainer import LORA, make, rows
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer

from sdrrl_trl import LMEvalCallback, SDRRLTrainer
from sdrrl_trl.trainer.teacher import add_distillation, base_of, teacher_states


def one_language_a_rank() -> Dataset:
    """With two processes, each step gives one of them rows of only one answer language."""
    data = rows()
    english, portuguese = ([i for i in range(16) if data[i]["answer_language"] == name] for name in ("en", "pt"))
    return data.select([*english[:4], *portuguese[:4], *english[4:], *portuguese[4:]])


ALTERNATING = {"dataset": one_language_a_rank, "train_sampling_strategy": "sequential"}
ANCHOR = {"kl_coef": 4.0, "anchor_languages": ["en"]}
CASES = {
    "plain": {},
    "kl, full": {"kl_coef": 0.5},
    "kl, lora, packed evaluation": {"kl_coef": 0.5, "peft_config": LORA, "eval_packing": True, "max_length": 64},
    "one language a rank": ALTERNATING,
    "anchor, full, one language a rank": ANCHOR | ALTERNATING,
    "anchor, lora": ANCHOR | {"peft_config": LORA},
}
# On two processes with the model split over them, where DeepSpeed is installed
ZERO3 = {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto", "zero_optimization": {"stage": 3}}
ZERO3 |= {"optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}, "bf16": {"enabled": False}}
if find_spec("deepspeed"):
    CASES |= {f"ZeRO-3: {case}": CASES[case] for case in ("plain", "kl, full", "anchor, lora")}


def train(case: str, model: str, folder: Path, world_size: int) -> dict:
    options = dict(CASES[case])
    dataset = options.pop("dataset", rows)()
    options |= {"lr_scheduler_type": "constant", "ddp_find_unused_parameters": False}
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        options[name] = 8 // world_size
    if case.startswith("ZeRO-3") and world_size == 2:
        import deepspeed

        deepspeed.init_distributed("gloo")
        options["deepspeed"] = ZERO3
    trainer = make(model, folder, dataset, **options)
    assert trainer.accelerator.num_processes == world_size
    assert trainer.is_deepspeed_enabled == ("deepspeed" in options)
    trainer.train()
    sums = {name: parameter.detach().double().sum().item() for name, parameter in trainer.model.named_parameters()}
    logs = [*trainer.state.log_history[:3], trainer.evaluate(rows(13))]  # in three batches of four and a rest
    logs = [{name: entry[name] for name in entry if name in ("loss", "grad_norm") or "/" in name} for entry in logs]
    return {"logs": logs, "parameters": sums}


def prepare_once(model: str, folder: Path) -> None:
    """The first process prepares the data, the others read its cache."""
    state = PartialState()
    if state.is_main_process:
        rows().save_to_disk(folder / "rows")
    state.wait_for_everyone()

    def decode_slowly(tokenizer, texts, **options):  # so that the others would not find it done by chance
        time.sleep(1)
        return [""] * len(texts)

    with mock.patch.object(PreTrainedTokenizerFast, "batch_decode", autospec=True) as counts_bytes:
        counts_bytes.side_effect = decode_slowly
        make(model, folder, load_from_disk(str(folder / "rows")), packing=True)
    assert counts_bytes.called == state.is_main_process


def shard(model: torch.nn.Module, policy: MixedPrecisionPolicy, head_alone: bool) -> None:
    """As accelerate 1.15 does: layers, embeddings, norm with head, the rest. With a head alone, nothing gathers it."""
    options = {"mesh": init_device_mesh("cpu", (2,)), "mp_policy": policy}
    base = base_of(model)
    for module in (*base.base_model.layers, base.get_input_embeddings()):
        fully_shard(module, **options)
    tail = [base.get_output_embeddings()] if head_alone else [base.base_model.norm, base.get_output_embeddings()]
    fully_shard(tail, reshard_after_forward=False, **options)
    fully_shard(model, **options)


def loss_and_gradients(model, ref_model, inputs):
    teacher = teacher_states(model, ref_model, None, inputs)
    anchored = inputs["input_ids"][:, 1:] % 2 == 0
    outputs = model(**inputs, distillation={"teacher": teacher, "kl_coef": 0.7, "anchored": anchored})
    outputs.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outputs.loss.detach(), {name: g.full_tensor() if sharded(g) else g for name, g in gradients.items()}


def sharded(tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def compare_fsdp2(case: str, path: str) -> None:
    """The divergence on sharded models, with other data on each process, against unsharded ones."""
    assert dist.get_world_size() == 2
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if "bf16" in case else MixedPrecisionPolicy()
    seen = []
    for is_sharded in (False, True):
        model = AutoModelForCausalLM.from_pretrained(path)
        add_distillation(model)
        torch.manual_seed(1)
        ref_model = None
        if "lora" in case:
            more = {"modules_to_save": ["lm_head"]} if "head" in case else {}
            options = {"r": 4, "init_lora_weights": False, "target_modules": ["q_proj", "up_proj"]}
            model = get_peft_model(model, LoraConfig(**options, **more))
        else:
            ref_model = AutoModelForCausalLM.from_pretrained(path).requires_grad_(False)
            add_distillation(ref_model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        if is_sharded:
            shard(model, policy, "alone" in case)
            if ref_model is not None:  # as `trl.models.prepare_fsdp` does
                fully_shard(ref_model, reshard_after_forward=True, mp_policy=policy)
        ids = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(dist.get_rank()))
        labels = ids.clone()
        labels[:, : 7 + dist.get_rank()] = -100
        seen.append(loss_and_gradients(model, ref_model, {"input_ids": ids, "labels": labels}))
    (expected, gradients), (loss, found) = seen
    tolerance = 0.1 if "bf16" in case else 1e-4
    assert abs(loss / expected - 1) < tolerance, case
    assert found.keys() == gradients.keys() and found, case
    for name, gradient in gradients.items():
        dist.all_reduce(gradient, dist.ReduceOp.AVG)
        distance = (found[name] - gradient).norm() / gradient.norm()
        assert distance < tolerance, (case, name, distance)


FSDP2_CASES = ["full", "full bf16", "full, head alone", "lora", "lora and head", "lora bf16"]


def train_watched(name: str, model: str, folder: Path, world_size: int) -> list[dict]:
    """What is logged with lm-eval."""
    cls, lora = (SFTTrainer, None) if name == "SFT" else (SDRRLTrainer, LoraConfig())
    options = {"max_steps": 4, "logging_steps": 2, "max_length": 512, "eval_steps": 2}
    options |= {"per_device_train_batch_size": 8 // world_size, "ddp_find_unused_parameters": False}
    trainer = make(model, folder, cls=cls, peft_config=lora, **options)
    # Odd numbers of items: the processes' shares differ
    callback = LMEvalCallback(trainer, ["xnli_en", "sdrrl_pku_saferlhf", "sdrrl_xnli_gen_en"], limit=5)
    trainer.add_callback(callback)
    trainer.train()
    for task in callback._tasks.values():  # the items are shared, not done by each process
        assert len({instance.doc_id for instance in task.instances}) <= math.ceil(5 / world_size)
    kept = ("loss", "grad_norm", "lm_eval/")
    logs = [
        {key: value for key, value in entry.items() if key.startswith(kept) and key != "lm_eval/seconds"}
        for entry in trainer.state.log_history
    ]
    return [entry for entry in logs if entry]


def run(model: str, folder: Path, world_size: int = 1) -> dict[str, Any]:
    results = {case: train(case, model, folder, world_size) for case in CASES}
    if data_dir() is not None:
        results |= {name: train_watched(name, model, folder, world_size) for name in ("SFT", "SDRRL, LoRA")}
    return results


if __name__ == "__main__":
    model, folder = sys.argv[1], Path(sys.argv[2])
    results = run(model, folder, world_size=2)
    prepare_once(model, folder)
    for fsdp2_case in FSDP2_CASES:
        compare_fsdp2(fsdp2_case, model)
    state = PartialState()
    if state.is_main_process:
        (folder / "found.json").write_text(json.dumps(results))
    state.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)  # with gloo, some runs abort in the destructors at exit; what is tested here is done
