"""The models of `sdrrl evaluate` as lm-eval takes them: each base loaded once, adapters put on it in turn."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrrl_trl.utils import SDRRLError, read_json


if TYPE_CHECKING:
    from sdrrl_trl.evaluation.evaluate import EvaluationConfig


def loaded_models(config: "EvaluationConfig", names: list[str]) -> Iterator[tuple[str, Any]]:
    """Goes through the models of these names as `(name, lm-eval model)`, each base model loaded once."""
    by_base: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        path = config.model_paths[name]
        by_base.setdefault(base_of(path), []).append((name, path))
    for base_path, models in by_base.items():
        if config.backend != "hf":
            for name, path in models:
                yield name, _other_backend(config, base_path, path)
            continue
        from peft import PeftModel

        from sdrrl_trl.engines.transformers import load_model, load_tokenizer

        base, base_tokenizer = load_model(base_path, dtype=config.dtype)
        for name, path in sorted(models, key=lambda model: _is_adapter(model[1])):  # the bare model first
            if base is None:
                base, _ = load_model(base_path, dtype=config.dtype)
            model = PeftModel.from_pretrained(base, path) if _is_adapter(path) else base
            own = (Path(path) / "tokenizer_config.json").exists()
            tokenizer = load_tokenizer(path) if own else copy.deepcopy(base_tokenizer)
            yield name, _hf_model(model, tokenizer, config.batch_size)
            if _is_adapter(path):
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


def _hf_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's wrapper around a loaded model, which shares the items among the processes, if there are several."""
    from accelerate import Accelerator
    from lm_eval.models.huggingface import HFLM

    with no_tying(model):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    state = processes()
    if state.num_processes > 1:  # HFLM does this itself only for models that it loads
        lm.accelerator = Accelerator(cpu=state.device.type == "cpu")
        lm._rank, lm._world_size, lm._device = state.process_index, state.num_processes, state.device
    return lm


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


def _other_backend(config: "EvaluationConfig", base: str, path: str) -> Any:
    from lm_eval.api.registry import get_model

    arguments = {"model": path} if "completions" in config.backend else {"pretrained": base}
    if config.backend == "vllm":
        arguments["dtype"] = config.dtype
        if _is_adapter(path):
            arguments["lora_local_path"] = path
    given = dict(pair.split("=", 1) for pair in (config.model_args or "").split(",") if pair)
    try:
        return get_model(config.backend).create_from_arg_obj(
            arguments | given, {"batch_size": config.batch_size, "max_batch_size": None, "device": None}
        )
    except (ValueError, ImportError, OSError) as error:
        raise SDRRLError(f"lm-eval cannot start the backend {config.backend!r}: {error}") from error


def processes() -> Any:
    """The processes of `accelerate launch`, or this one alone."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def base_of(path: str) -> str:
    """Base model of an adapter, else the model itself; local ones by one name, however they are written."""
    if _is_adapter(path):
        adapter = Path(path) / "adapter_config.json"
        path = read_json(adapter, ("base_model_name_or_path",))["base_model_name_or_path"]
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").exists()
