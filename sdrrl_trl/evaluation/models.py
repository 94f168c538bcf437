"""The models of `sdrrl evaluate` as lm-eval takes them."""

from collections.abc import Iterator
from typing import Any

from sdrrl_trl.evaluation.weights import base_path, is_adapter, only_adds, split_strength, tune
from sdrrl_trl.utils import SDRRLError


# Arguments of lm-eval's `hf` backend that count for a model that is loaded already; it passes over the others
MODEL_ARGS = ("dtype", "max_length", "truncation", "logits_cache", "softmax_dtype", "mixed_precision_dtype")
MODEL_ARGS += ("add_bos_token", "prefix_token_id", "think_end_token", "enable_thinking", "chat_template_args")


def load_models(
    paths: dict[str, str], backend: str, arguments: dict[str, Any], batch_size: int, full_base: str | None = None
) -> Iterator[tuple[str, Any]]:
    """
    Loads models one after the other, as lm-eval asks them; one base for all adapters of it that follow each other.

    Args:
        paths (`dict[str, str]`):
            By name, folder or hub id, with a strength or without; of an adapter, which is put on its base; for a
            server, the name that it knows.
        backend (`str`):
            lm-eval's name of the backend.
        arguments (`dict[str, Any]`):
            Arguments for the backend.
        batch_size (`int`):
            Items per batch.
        full_base (`str`, *optional*):
            Base model of those that are no adapters and have a strength.

    Returns:
        `Iterator[tuple[str, Any]]`: name and `lm_eval.api.model.LM`. Only the last one may be used: it is changed when
            the next is loaded.

    Raises:
        `SDRRLError`: if a model cannot be loaded or the backend cannot be started.
    """
    if backend != "hf":
        yield from ((name, _other_backend(backend, path, arguments, batch_size)) for name, path in paths.items())
        return
    from sdrrl_trl.engines.transformers import load_model

    dtype = arguments.get("dtype", "auto")
    loaded = base = None
    for name, spec in paths.items():
        path, strength = split_strength(spec)
        if base is None or base_path(spec) != loaded:
            base = model = None  # before the next one is loaded: there may be no room for two
            loaded = base_path(spec)
            base, base_tokenizer = load_model(loaded, dtype=dtype)
        start = loaded if is_adapter(spec) else full_base
        model, tokenizer = tune(base, base_tokenizer, path, strength, start, dtype)
        yield name, wrap(model, tokenizer, processes(), batch_size=batch_size, **arguments)
        if is_adapter(spec):
            base = model.unload() if only_adds(path) else None
        elif strength is not None:
            base = None


def wrap(model: Any, tokenizer: Any, accelerator: Any, **arguments: Any) -> Any:
    """lm-eval's wrapper around a model that is loaded already, which each process asks its share of the items."""
    from lm_eval.models.huggingface import HFLM

    # lm-eval ties embeddings and head anew, which fails if an adapter trains a copy of one of them
    model.tie_weights = lambda: None
    try:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, **arguments)
    finally:  # a model in training goes on to be used
        del model.tie_weights
    if accelerator.num_processes > 1:  # HFLM shares the items among the processes only for models that it loads itself
        lm.accelerator, lm._device = accelerator, accelerator.device
        lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
    return lm


def _other_backend(backend: str, path: str, arguments: dict[str, Any], batch_size: int) -> Any:
    from lm_eval.api.registry import get_model

    # A server knows its models by name; the others load them
    named = {"model": path} if "completions" in backend else {"pretrained": base_path(path)}
    if backend == "vllm" and is_adapter(path):
        named["lora_local_path"] = path
    more = {"batch_size": batch_size, "max_batch_size": None, "device": None}
    try:
        return get_model(backend).create_from_arg_obj(named | arguments, more)
    except (ValueError, ImportError, OSError) as error:
        raise SDRRLError(f"lm-eval cannot start the backend {backend!r}: {error}") from error


def processes() -> Any:
    """The processes of `accelerate launch`, or this one alone."""
    import torch
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.accelerator.is_available())
