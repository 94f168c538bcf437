"""The frozen teacher, and the forward pass that compares the student with it."""

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import SFTTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import maybe_gather_lm_head_ctx, use_adapter

from sdrrl_trl.trainer.divergence import Head, chunked_distillation
from sdrrl_trl.utils import SDRRLError


_TEACHER_ADAPTER = "sdrrl_teacher"


def initial_model(
    model: str | PreTrainedModel | PeftModel, ref_model: str | PreTrainedModel | None, peft_config: PeftConfig | None
) -> str | PreTrainedModel | None:
    """
    What the trainer's arguments say the frozen initial model is.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student, or its path.
        ref_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            The teacher, or its path.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter that the student gets.

    Returns:
        `str` or [`~transformers.PreTrainedModel`] or `None`: a model or its path, `None` for the student with its new
        adapter turned off, or with a copy of the adapter that it came with.

    Raises:
        `SDRRLError`: if there is no such model.
    """
    if ref_model is not None:
        if ref_model is model and not isinstance(model, str):
            raise SDRRLError("`ref_model` is the model itself: it would change with it. Give its path, or a copy.")
        return ref_model
    if isinstance(model, PeftModel):
        return None
    if peft_config is not None:
        if changes_base(peft_config):
            raise SDRRLError(
                "The model without its adapter is not the initial model, which the divergence is measured from: the "
                "adapter trains biases of the base model, replicates its layers, or is initialised by decomposing its "
                "weights. Give `ref_model`, or use `bias='none'` and a plain initialisation."
            )
        return None
    if isinstance(model, str):
        return model
    raise SDRRLError(
        "The divergence (`kl_coef`, ForgettingCallback) needs the frozen initial model: give it as `ref_model` (path "
        "or model), train with a `peft_config`, or give `model` as a path."
    )


def prepare_teacher(trainer: SFTTrainer, origin: tuple[Any, Any, Any]) -> tuple[PreTrainedModel | None, str | None]:
    """
    Makes the student comparable with its teacher, and loads that if need be.

    Args:
        trainer ([`~trl.SFTTrainer`]):
            Trainer that holds the student.
        origin (`tuple[Any, Any, Any]`):
            `model`, `ref_model` and `peft_config` that it was made with, see [`initial_model`].

    Returns:
        `tuple`: the reference model, or `None` if the student's adapters make the difference; the adapter that makes
        the student its teacher, or `None` for no adapter.

    Raises:
        `SDRRLError`: if there is no teacher, it has another vocabulary, or the student is a mixture of experts with a
            router loss.
    """
    initial, model = initial_model(*origin), origin[0]
    if trainer.aux_loss_enabled:
        raise SDRRLError("The divergence would leave out the experts' router loss. Set `router_aux_loss_coef=0.0`.")
    student = base_of(trainer.model)
    add_distillation(student)
    if initial is None and isinstance(model, PeftModel):  # without its adapter, it would not be the initial one
        copy_adapter(trainer.model, _TEACHER_ADAPTER)
        return None, _TEACHER_ADAPTER
    if initial is None:
        return None, None
    if isinstance(initial, str):
        kwargs = dict(trainer.args.model_init_kwargs or {}) if initial == model else {}
        kwargs |= {"dtype": student.dtype, "attn_implementation": student.config._attn_implementation}
        kwargs.setdefault("trust_remote_code", trainer.args.trust_remote_code)
        initial = AutoModelForCausalLM.from_pretrained(initial, **kwargs)
    sizes = [model.config.get_text_config().vocab_size for model in (student, initial)]
    if sizes[0] != sizes[1]:
        raise SDRRLError(
            f"The initial model has a vocabulary of {sizes[1]} tokens, the model one of {sizes[0]}, which cannot be "
            "compared. If `chat_template_path` adds tokens, add them to the model first, save it, and train that."
        )
    initial.requires_grad_(False)
    add_distillation(base_of(initial))
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(initial, trainer.accelerator), None
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(initial, trainer.accelerator), None
    # Not `accelerator.prepare_model`: `evaluate` before `train` would then leave the student unprepared
    return initial.to(trainer.accelerator.device).eval(), None


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def add_distillation(model: PreTrainedModel) -> None:
    """
    Adds two modes to `model.forward`, beside the ones it has. As with TRL's fused head, going through `forward` keeps
    the wrappers (DDP, FSDP, DeepSpeed) and PEFT working.

    * `model(..., labels=labels, hidden_states_only=True)` returns the last hidden states that predict a label, of
      shape `(N, H)`, and the [`Head`];
    * `model(..., labels=labels, distillation={"teacher": (states, head), "kl_coef": number, "anchored": mask})`, with
      what the teacher has returned so, and a mask of shape `(B, L - 1)` or `None`, returns a
      [`~divergence.DistillationOutput`].
    """
    text_config = model.config.get_text_config()
    scale, cap = logit_scale(text_config), text_config.to_dict().get("final_logit_softcapping")
    original_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def forward(self, *args, distillation=None, hidden_states_only=False, **kwargs):
        if distillation is None and not hidden_states_only:
            return original_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        # Behind the backbone: FSDP2 gathers the head with the last norm. On each call, since FSDP and PEFT replace it
        weight, bias = map(_whole, (self.get_output_embeddings().weight, self.get_output_embeddings().bias))
        # With the model split over devices (`device_map`), the backbone can end on another one than the head
        hidden, labels = hidden.to(weight.device), labels.to(weight.device)
        mask = labels != -100
        hidden = hidden[mask]
        with maybe_gather_lm_head_ctx(weight, bias):
            if distillation is not None:
                head, kl_coef = Head(weight, bias, scale, cap), distillation["kl_coef"]
                anchored = distillation["anchored"]
                anchored = None if anchored is None else anchored.to(weight.device)[mask]
                result = chunked_distillation(hidden, head, labels[mask], *distillation["teacher"], kl_coef, anchored)
                return result.spread(mask)
            tensors = [weight.detach(), None if bias is None else bias.detach()]
            if any(isinstance(module, FSDPModule) for module in self.modules()):
                # FSDP2 frees what it has gathered when this forward ends, and the student needs it after that
                tensors = [None if tensor is None else tensor.clone() for tensor in tensors]
            return hidden, Head(*tensors, scale, cap)

    model.forward = types.MethodType(forward, model)


def _whole(parameter: torch.Tensor | None) -> torch.Tensor | None:
    """A parameter that FSDP2 may have left in shards. Each process has a gradient of its own: their mean counts."""
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


def logit_scale(config: Any) -> float:
    """
    Factor that a model applies to its logits (Cohere, Falcon-H1, Granite, ...), 1.0 for most.

    The names are those of the models' transformers configurations, as TRL reads them for its fused head.
    """
    values = config.to_dict()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if values.get(name) is not None:
            return float(values[name])
    if values.get("logits_scaling") is not None:
        return values["logits_scaling"] if config.model_type == "hyperclovax" else 1 / values["logits_scaling"]
    return 1.0


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradient checkpointing inside; every module is afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def adapter_active(model: PeftModel, name: str | None) -> Iterator[None]:
    """The named adapter alone is active inside, no adapter for `None`; what is trainable stays so."""
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}

    def restore() -> None:
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key in trainable)

    with use_adapter(model, name):
        # FSDP2 takes the data type of gradients from what is trainable in the first forward, which is the teacher's
        restore()
        yield
    restore()


def copy_adapter(model: PeftModel, name: str) -> None:
    """Adds a frozen copy of the active adapter under another name, in place of an earlier copy of that name."""
    active = model.active_adapter
    if name in model.peft_config:
        model.delete_adapter(name)
    config = copy.deepcopy(model.peft_config[active])
    if isinstance(config, LoraConfig):
        config.init_lora_weights = True  # initialisations such as PiSSA would change the base model once more
    model.add_adapter(name, config)
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name=active), adapter_name=name)
    for parameter_name, parameter in model.named_parameters():
        if name in parameter_name.split("."):
            parameter.requires_grad_(False)


def changes_base(config: PeftConfig) -> bool:
    """Whether an adapter changes weights of the base model itself, which stay changed when it is taken off."""
    options = config.to_dict()
    init = options.get("init_lora_weights")
    decomposed = isinstance(init, str) and init not in ("gaussian", "eva", "orthogonal")
    replicated = options.get("layer_replication") is not None
    return options.get("bias", "none") != "none" or decomposed or replicated


@torch.no_grad()
def teacher_states(
    model: torch.nn.Module, ref_model: torch.nn.Module | None, adapter: str | None, inputs: dict[str, Any]
) -> tuple[torch.Tensor, Head]:
    """
    Last hidden states and head of the frozen initial model.

    Args:
        model (`torch.nn.Module`):
            The student, whose adapters are the difference to the teacher, if there is no `ref_model`.
        ref_model (`torch.nn.Module`, *optional*):
            The teacher.
        adapter (`str`, *optional*):
            Adapter of `model` that makes it the teacher. `None` for no adapter.
        inputs (`dict[str, Any]`):
            Model inputs with labels.
    """
    teacher = model if ref_model is None else ref_model
    switch = adapter_active(model, adapter) if ref_model is None else nullcontext()
    with evaluation_mode(teacher), switch:
        return teacher(**inputs, hidden_states_only=True)
