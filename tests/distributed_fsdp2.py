"""Run under torchrun by test_distributed.py: the divergence on models sharded by FSDP2 against unsharded ones."""

import copy
import sys

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from sdrrl_trl.trainer.teacher import add_distillation, base_of, teacher_states


def shard(model, mesh):
    for layer in base_of(model).base_model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def loss_and_gradients(model, ref_model, inputs):
    teacher, head = teacher_states(model, ref_model, None, inputs)
    weights = torch.linspace(0.5, 2.0, len(teacher))
    options = {"kl_coef": 0.7, "direction": "forward", "temperature": 1.0, "token_weights": None, "weights": weights}
    outputs = model(**inputs, distillation={"teacher": teacher, "teacher_head": head, **options})
    loss = -outputs.log_probs.sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}


def main(path, lora):
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    mesh = init_device_mesh("cpu", (2,))
    ref_model = AutoModelForCausalLM.from_pretrained(path).requires_grad_(False)
    model = copy.deepcopy(ref_model).requires_grad_(True)
    add_distillation(ref_model)
    add_distillation(model)
    torch.manual_seed(1)
    if lora:
        targets = ["q_proj", "up_proj"]
        model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, target_modules=targets))
        ref_model = None
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    ids = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :7] = -100
    inputs = {"input_ids": ids, "labels": labels}  # the same on both ranks, so that averaging changes nothing
    expected, gradients = loss_and_gradients(copied(model), copied(ref_model), inputs)
    sharded = shard(copied(model), mesh)
    loss, found = loss_and_gradients(sharded, None if lora else shard(copied(ref_model), mesh), inputs)
    torch.testing.assert_close(loss, expected)
    assert found.keys() == gradients.keys() and found
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}")
    print("equal", len(found))
    dist.destroy_process_group()


def copied(model):
    """A copy whose patched forward is its own."""
    if model is None:
        return None
    new = copy.deepcopy(model)
    base = base_of(new)
    del base.forward
    add_distillation(base)
    return new


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "lora")
