"""The models of `sdrrl evaluate` as lm-eval takes them: each base loaded once, adapters put on it in turn."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdrrl_trl.utils import SDRRLError, read_json


def loaded_models(
    models: dict[str, str], backend: str, arguments: dict[str, Any], batch_size: int
) -> Iterator[tuple[str, Any]]:
    """
    Goes through models, those on the same base together.

    Args:
        models (`dict[str, str]`):
            Path or hub id of each model by its name.
        backend (`str`):
            lm-eval's name of the backend.
        arguments (`dict[str, Any]`):
            Arguments for the backend.
        batch_size (`int`):
            Items per batch.

    Yields:
        `tuple[str, Any]`: name and lm-eval model.

    Raises:
        `SDRRLError`: if a model cannot be loaded or the backend cannot be started.
    """
    if backend != "hf":
        for name, path in models.items():
            yield name, _other_backend(backend, path, arguments, batch_size)
        return
    from peft import PeftModel

    from sdrrl_trl.engines.transformers import load_model, load_tokenizer

    dtype = arguments.get("dtype", "auto")
    by_base: dict[str, list[str]] = {}
    for name in sorted(models, key=lambda name: is_adapter(models[name])):  # the bare model first
        by_base.setdefault(base_of(models[name]), []).append(name)
    for base_path, names in by_base.items():
        base, base_tokenizer = load_model(base_path, dtype=dtype)
        for name in names:
            path = models[name]
            if base is None:
                base, _ = load_model(base_path, dtype=dtype)
            model = PeftModel.from_pretrained(base, path) if is_adapter(path) else base
            own = (Path(path) / "tokenizer_config.json").exists()
            # A copy, as lm-eval may give it a padding token
            tokenizer = load_tokenizer(path) if own else copy.deepcopy(base_tokenizer)
            yield name, _hf_model(model, tokenizer, arguments, batch_size)
            if is_adapter(path):
                base = model.unload() if all(map(_leaves_base, model.peft_config.values())) else None


def _leaves_base(config: Any) -> bool:
    """
    Whether taking an adapter off gives its base back as it was. PiSSA and the like change it, and PEFT leaves in it
    what was trained beside the adapter, such as a head.
    """
    from peft import LoraConfig

    from sdrrl_trl.trainer.teacher import changes_base

    if not isinstance(config, LoraConfig) or changes_base(config):
        return False
    return not config.modules_to_save and not config.trainable_token_indices


def _hf_model(model: Any, tokenizer: Any, arguments: dict[str, Any], batch_size: int) -> Any:
    """lm-eval's wrapper around a loaded model, which shares the items among the processes, if there are several."""
    from accelerate import Accelerator
    from lm_eval.models.huggingface import HFLM

    with no_tying(model):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **arguments)
    state = processes()
    if state.num_processes > 1:  # HFLM does this itself only for models that it loads
        lm.accelerator = Accelerator(cpu=state.device.type == "cpu")
        lm._rank, lm._world_size, lm._device = state.process_index, state.num_processes, state.device
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
    """Base model of an adapter, else the model itself; local ones by one name, however they are written."""
    if is_adapter(path):
        adapter = Path(path) / "adapter_config.json"
        path = read_json(adapter, ("base_model_name_or_path",))["base_model_name_or_path"]
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def is_adapter(path: str) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(path) / "adapter_config.json").exists()
