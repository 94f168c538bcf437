"""The models of `sdrrl evaluate` as lm-eval takes them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, read_json


def load_lm(path: str, backend: str, arguments: dict[str, Any], batch_size: int) -> Any:
    """
    A model as lm-eval asks it.

    Args:
        path (`str`):
            Folder or hub id; of an adapter, which is put on its base; for a server, the name that it knows.
        backend (`str`):
            lm-eval's name of the backend.
        arguments (`dict[str, Any]`):
            Arguments for the backend.
        batch_size (`int`):
            Items per batch.

    Raises:
        `SDRRLError`: if the model cannot be loaded or the backend cannot be started.
    """
    if backend != "hf":
        return _other_backend(backend, path, arguments, batch_size)
    from accelerate import Accelerator
    from peft import PeftModel

    from sdrrl_trl.engines.transformers import load_model, load_tokenizer

    model, tokenizer = load_model(base_of(path), dtype=arguments.get("dtype", "auto"))
    if is_adapter(path):
        model = PeftModel.from_pretrained(model, path)
    if (Path(path) / "tokenizer_config.json").exists():  # of its own: it may have another chat template
        tokenizer = load_tokenizer(path)
    accelerator = Accelerator(cpu=processes().device.type == "cpu")
    return wrap(model, tokenizer, accelerator, batch_size=batch_size, **arguments)


def wrap(model: Any, tokenizer: Any, accelerator: Any, **arguments: Any) -> Any:
    """lm-eval's wrapper around a model that is loaded already, which each process asks its share of the items."""
    from lm_eval.models.huggingface import HFLM

    with no_tying(model):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, **arguments)
    if accelerator.num_processes > 1:  # HFLM shares the items among the processes only for models that it loads itself
        lm.accelerator, lm._device = accelerator, accelerator.device
        lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
    return lm


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raises [`SDRRLError`] for arguments that lm-eval's `hf` backend does not know, which it would pass over."""
    from lm_eval.models.huggingface import HFLM

    known = set(inspect.signature(HFLM).parameters) - {"pretrained", "tokenizer", "batch_size", "peft", "kwargs"}
    unknown = sorted(set(arguments) - (known - {"trust_remote_code"}))
    if unknown:
        raise SDRRLError(f"`model_args`: {', '.join(unknown)} cannot be set. Known: {', '.join(sorted(known))}.")


@contextmanager
def no_tying(model: Any) -> Iterator[None]:
    """lm-eval ties embeddings and head anew, which fails if an adapter trains a copy of one of them."""
    model.tie_weights = lambda: None
    try:
        yield
    finally:
        del model.tie_weights


@contextmanager
def watch_for_nan(model: Any) -> Iterator[Any]:
    """Gives a tensor that turns true once the model's logits hold a NaN, which lm-eval takes for an answer."""
    import torch

    found = torch.zeros((), dtype=torch.bool, device=model.device)

    def look(module, args, logits):
        found.logical_or_(logits.isnan().any())

    handle = model.get_output_embeddings().register_forward_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def _other_backend(backend: str, path: str, arguments: dict[str, Any], batch_size: int) -> Any:
    from lm_eval.api.registry import get_model

    # A server knows its models by name; the others load them
    named = {"model": path} if "completions" in backend else {"pretrained": base_of(path)}
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
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def base_of(path: str) -> str:
    """Base model of an adapter, else the model itself."""
    if not is_adapter(path):
        return path
    adapter = Path(path) / "adapter_config.json"
    return read_json(adapter, ("base_model_name_or_path",))["base_model_name_or_path"]


def is_adapter(path: str) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(path) / "adapter_config.json").exists()
