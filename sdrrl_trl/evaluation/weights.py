"""Weights of a model: a base, an adapter on it, and how much of what training changed is used, as in `model@0.75`."""

import re
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from sdrrl_trl.hub import base_of, licence_fields, licence_of, metadata_of
from sdrrl_trl.render import inline, render
from sdrrl_trl.utils import SDRRLError, check_output_dir, on_hub, package_version, public_name, read_json, write_atomic


_NOTHING_BETWEEN = (
    "do not have weights of the same shapes, so there is nothing between them. Name the model that it was trained "
    "from. With new tokens, a model has no strength."
)
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
        raise SDRRLError(f"{model!r}: behind `@` is a strength, from 0 (base model) to 1 (tuned model), as in m@0.75.")


def check_between(model: str, base: str) -> None:
    """
    Raises [`SDRRLError`] if a model cannot be had at a strength, as far as configurations tell: no weights are read.
    """
    path, _ = split_strength(model)
    if is_adapter(path) and only_adds(path):  # its own weights are scaled
        return
    models = [on_meta(name) for name in (base_path(path), base)]
    if any("quantization_config" in vars(one.config) for one in models):
        raise SDRRLError(
            f"{model!r}: between quantized weights there is nothing. Use it without a strength, or name a base model "
            "and a tuned one that are not quantized."
        )
    if _shapes(models[0]) != _shapes(models[1]):
        raise SDRRLError(f"{path!r} and {base!r} {_NOTHING_BETWEEN}")


def on_meta(name: str, loader: Any = None) -> Any:
    """A model as its configuration describes it, without weights. `loader` is a class such as `AutoModel`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import set_zero3_state

    from sdrrl_trl.engines.transformers import loading

    # While a training with ZeRO-3 begins, transformers would share out weights that are not there
    with loading("the model", name), set_zero3_state(), torch.device("meta"):
        return (loader or AutoModelForCausalLM).from_config(AutoConfig.from_pretrained(name, trust_remote_code=False))


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    # With the head, even where the base ties it to the embeddings and training has parted them
    return {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}


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


def tokenizer_path(model: str) -> str:
    """Path or hub id of a model's tokenizer: an adapter may have one of its own, with another chat template."""
    path, _ = split_strength(model)
    return path if (Path(path) / "tokenizer_config.json").exists() else base_path(model)


def only_adds(path: str) -> bool:
    """
    Whether an adapter is LoRA that only adds to its base: then it can be scaled, and its base is as it was once it is
    taken off. PiSSA and the like change the base, DoRA scales it, and what was trained beside an adapter, such as a
    head or new tokens, takes the place of the base's.
    """
    from peft import LoraConfig, PeftConfig

    from sdrrl_trl.trainer.teacher import changes_base

    file = Path(path) / "adapter_model.safetensors"
    if not file.exists():
        return False
    config = PeftConfig.from_pretrained(path)
    if not isinstance(config, LoraConfig) or config.use_dora or changes_base(config):
        return False
    with safe_open(file, "pt") as weights:
        return all(".lora_" in name for name in weights.keys())  # noqa: SIM118 (it is no dict)


def put_adapter_on(model: Any, adapter: str, n_tokens: int, is_trainable: bool = False) -> Any:
    """Puts an adapter on its base, with the vocabulary that it was trained with: that of its embeddings, if any."""
    from peft import PeftModel

    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    size, file = max(n_tokens, embeddings.num_embeddings), Path(adapter) / "adapter_model.safetensors"
    if file.exists():
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (it is no dict)
                if f".{name}." in key and ".lora_" not in key and key.endswith(".weight"):
                    size = weights.get_slice(key).get_shape()[0]
    if size != embeddings.num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)  # the adapter has the weights of the new ones
    return PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable)


def tune(
    model: Any, tokenizer: Any, path: str, strength: float | None, base: str | None, dtype: str = "auto"
) -> tuple[Any, Any]:
    """
    Makes the tuned model of a loaded one, which it changes: puts an adapter on it, and goes back to a strength, to
    `base + strength * (tuned - base)`, exact at 0 and 1.

    Args:
        model (`PreTrainedModel`):
            What was loaded from [`base_path`].
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        path (`str`):
            Path or hub id of the tuned model, or folder of an adapter.
        strength (`float`, *optional*):
            From 0, the base model, to 1. Default: the tuned model as it is.
        base (`str`, *optional*):
            Path or hub id of the model that it was trained from, for a strength.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.

    Returns:
        `tuple`: the model, on which an adapter may still lie, and its tokenizer, see [`tokenizer_path`].

    Raises:
        `SDRRLError`: if the two models do not have the same weights.
    """
    from peft.tuners.lora import LoraLayer

    from sdrrl_trl.engines.transformers import load_model, load_tokenizer, loading

    if is_adapter(path):
        if (own := tokenizer_path(path)) != base_path(path):
            tokenizer = load_tokenizer(own)
        with loading("the adapter", path):
            model = put_adapter_on(model, path, len(tokenizer))
        if strength is not None and only_adds(path):
            for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
                layer.scale_layer(strength)
            return model, tokenizer
    if strength is None:
        return model, tokenizer
    model = _merged(model) if is_adapter(path) else model
    start = load_model(base, dtype=dtype)[0]
    if _shapes(model) != _shapes(start):
        raise SDRRLError(f"{path!r} and {base!r} {_NOTHING_BETWEEN}")
    starts = dict(start.named_parameters(remove_duplicate=False))
    for name, weight in model.named_parameters():  # each once
        weight.data = starts[name].data.to(weight.dtype).lerp(weight.data, strength)
    return model, tokenizer


def _merged(model: Any) -> Any:
    """A model with its adapter merged into it."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    # What it adds to one of the two must not go into the other, to which the base may tie it
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        head = getattr(ends[1], "base_layer", ends[1])
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return model.merge_and_unload()


def merge(model: str, output_dir: Path, base: str | None = None) -> Path:
    """
    `sdrrl merge`: writes a model at a strength as full weights, with the tokenizer and a card, for whatever reads
    those of transformers.

    Args:
        model (`str`):
            Path or hub id of the tuned model, or of an adapter; with a strength, as `output/model@0.75`, else all of
            what training changed.
        output_dir (`Path`):
            New folder.
        base (`str`, *optional*):
            Path or hub id of the model that it was trained from. Default: the one that the adapter names.

    Returns:
        `Path`: `output_dir`.

    Raises:
        `SDRRLError`: for a full model without its base, a folder that is not empty, or models that do not fit.
    """
    from peft import PeftModel

    from sdrrl_trl.engines.transformers import check_model, load_model

    check_strength(model)
    path, strength = split_strength(model)
    if base is None and not is_adapter(path):
        raise SDRRLError(f"{path!r} is no adapter, which would name its base. Give that: `--base`.")
    base = base or base_path(path)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise SDRRLError(f"{output_dir} is not empty. Name a new folder.")
    check_output_dir(output_dir, needed_bytes=1_000_000_000)
    check_model(base, needs_chat_template=False)
    check_between(model, base)
    strength = 1.0 if strength is None else strength
    merged, tokenizer = tune(*load_model(base if is_adapter(path) else path), path, strength, base)
    merged = _merged(merged) if isinstance(merged, PeftModel) else merged
    merged.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_atomic(output_dir / "README.md", _card(output_dir.name, path, strength, base))
    return output_dir


def _card(name: str, path: str, strength: float, base: str) -> str:
    """Card of a merged model: that of the tuned model, if it is one of ours, under its own name and without scores."""
    licence = licence_fields(path if licence_of(path) else base)  # that of the tuned model may be stricter
    known = metadata_of(path)
    kept = {field: known[field] for field in ("datasets", "language", "pipeline_tag") if field in known}
    kept |= {"base_model": on_the_hub} if (on_the_hub := base if on_hub(base) else base_of(base)) else {}
    card = file.read_text(encoding="utf-8") if (file := Path(path) / "README.md").is_file() else ""
    headings = "# .* with SDRRL.*|## Use|## Licence and limits|<!-- .*|## Citation"
    _, *parts = re.split(f"^({headings})$", card, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))
    title = next((heading for heading in sections if heading.startswith("# ")), f"# {inline(name)}")
    asked = re.search("^messages = .*", sections.get("## Use", ""), re.MULTILINE)
    return render(
        "merged_card.md.jinja",
        title=title,
        about=sections.get(title),
        name=name,
        strength=strength,
        tuned=Path(path).name,
        base=public_name(base),
        metadata=yaml.safe_dump(licence | kept, sort_keys=False),
        version=package_version("sdrrl-trl"),
        messages=asked[0] if asked else 'messages = [{"role": "user", "content": "Hello!"}]',
        rest={part: sections[part] for part in ("## Licence and limits", "## Citation") if part in sections},
    )
