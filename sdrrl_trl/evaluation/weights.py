"""Weights of a model: a base, an adapter on it, and how much of what training changed is used, as in `model@0.75`."""

import re
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, read_json


STRENGTH = re.compile(r"(.+)@(0|1|1\.0+|0?\.\d+)")


def split_strength(model: str) -> tuple[str, float | None]:
    """
    Path and strength of `path@strength`: 0 is the base model, 1 the tuned one. No strength if there is none, or a
    folder of the whole name.
    """
    found = STRENGTH.fullmatch(model)
    return (model, None) if found is None or Path(model).exists() else (found[1], float(found[2]))


def check_strength(model: str) -> None:
    """Raises [`SDRRLError`] if what is behind the `@` of a model is no strength."""
    # Beyond the tuned model, at more than 1, both languages get worse
    if "@" in model and not STRENGTH.fullmatch(model) and not Path(model).exists():
        raise SDRRLError(
            f"{model!r}: behind the `@` is a strength, from 0 (base model) to 1 (tuned model), as in m@0.75."
        )


def is_adapter(model: str) -> bool:
    """Whether a path is a folder that holds an adapter of PEFT."""
    return (Path(split_strength(model)[0]) / "adapter_config.json").exists()


def base_path(model: str) -> str:
    """Path or hub id of an adapter's base model, else of the model itself."""
    path, _ = split_strength(model)
    if not is_adapter(model):
        return path
    adapter = Path(path) / "adapter_config.json"
    return read_json(adapter, ("base_model_name_or_path",))["base_model_name_or_path"]


def only_adds(path: str) -> bool:
    """
    Whether an adapter is LoRA that only adds to its base: then it can be scaled, and its base is as it was once it is
    taken off. PiSSA and the like change the base, DoRA scales it, and what was trained beside an adapter, such as a
    head, takes the place of the base's.
    """
    from peft import LoraConfig, PeftConfig
    from safetensors import safe_open

    from sdrrl_trl.trainer.teacher import changes_base

    file = Path(path) / "adapter_model.safetensors"
    if not file.exists():
        return False
    config = PeftConfig.from_pretrained(path)
    if not isinstance(config, LoraConfig) or config.use_dora or changes_base(config):
        return False
    with safe_open(file, "pt") as weights:
        return all(".lora_" in name for name in weights.keys())  # noqa: SIM118 (it is no dict)


def put_on(base: Any, path: str, strength: float | None = None) -> Any:
    """An adapter on its base, which it changes; at a strength if it [`only_adds`]."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model = PeftModel.from_pretrained(base, path)
    for module in model.modules():
        if isinstance(module, LoraLayer) and strength is not None:
            module.scaling = {name: strength * scaling for name, scaling in module.scaling.items()}
    return model


def load_full(path: str, base: str, strength: float, dtype: str = "auto") -> tuple[Any, Any]:
    """
    Loads a model at a strength as full weights, `base + strength * (tuned - base)`, exact at 0 and 1.

    Args:
        path (`str`):
            Path or hub id of the model, or of an adapter.
        base (`str`):
            Path or hub id of its base model.
        strength (`float`):
            From 0, the base model, to 1, the tuned one.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.

    Returns:
        `tuple`: the model and its tokenizer.

    Raises:
        `SDRRLError`: if one of the two cannot be loaded, or they do not have the same weights.
    """
    from sdrrl_trl.engines.transformers import load_model, loading

    start, _ = load_model(base, dtype=dtype)
    model, tokenizer = load_model(base if is_adapter(path) else path, dtype=dtype)
    if is_adapter(path):
        with loading(f"the adapter {path!r}"):
            model = _merged(model, path)
    # With the head, even where the base ties it to the embeddings and training has parted them
    starts, weights = (dict(one.named_parameters(remove_duplicate=False)) for one in (start, model))
    if {name: weight.shape for name, weight in weights.items()} != {name: w.shape for name, w in starts.items()}:
        raise SDRRLError(
            f"{path!r} and {base!r} do not have weights of the same shapes, so there is nothing between them. Name "
            "the model that it was trained from. With new tokens, a model has no strength."
        )
    for name, weight in model.named_parameters():  # each once
        weight.data = starts[name].data.to(weight.dtype).lerp(weight.data, strength)
    return model, own_tokenizer(path) or tokenizer


def _merged(base: Any, path: str) -> Any:
    """An adapter merged into its base."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = put_on(base, path)
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    # What it adds to one of the two must not go into the other, to which the base may tie it
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        head = getattr(ends[1], "base_layer", ends[1])
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return tuned.merge_and_unload()


def own_tokenizer(path: str) -> Any | None:
    """The tokenizer in the folder of a model or adapter, which may have another chat template than the base's."""
    from sdrrl_trl.engines.transformers import load_tokenizer

    return load_tokenizer(path) if (Path(path) / "tokenizer_config.json").exists() else None
