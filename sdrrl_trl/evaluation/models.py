"""The models of `sdrrl evaluate` as lm-eval takes them."""

import inspect
import json
import logging
import math
import re
from typing import Any

from sdrrl_trl import hub
from sdrrl_trl.engines.chat import find_ends, fix_date
from sdrrl_trl.evaluation.weights import base_path, is_adapter, split_strength, tune
from sdrrl_trl.utils import SDRRLError


DTYPES = ("auto", "float32", "bfloat16", "float16")
# Arguments of lm-eval's `hf` backend that count for a model that is loaded already; it passes over the others
MODEL_ARGS = ("dtype", "max_length", "truncation", "logits_cache", "softmax_dtype", "mixed_precision_dtype")
MODEL_ARGS += ("add_bos_token", "prefix_token_id", "think_end_token", "enable_thinking", "chat_template_args")

# How answers are generated: numbers above 0, their type and the largest; and what only sampling reads
MAX_GEN_TOKS = {"max_gen_toks": (int, math.inf)}
NUMBERS = dict.fromkeys(("temperature", "repetition_penalty"), (float, math.inf))
NUMBERS |= dict.fromkeys(("top_p", "min_p"), (float, 1))
NUMBERS |= dict.fromkeys(("top_k", "no_repeat_ngram_size", "num_beams"), (int, math.inf))
OF_SAMPLING = ("temperature", "top_p", "min_p", "top_k")

# Must not be in files
_SECRET = re.compile(r"header|auth|api_?key|passw|secret|hf_token|^token$", re.IGNORECASE)
_NOT_SET = ("self", "args", "kwargs", "model", "pretrained", "batch_size")
_SECRET_URL = re.compile(r"://[^/,]*@|[?&][^=]*(key|token|secret|passw|sig|auth)[^=]*=", re.IGNORECASE)


def _parse(option: str, text: str | None) -> dict[str, Any]:
    """
    `name=value,name=value`, or JSON, as lm-eval has it.

    Raises:
        `SDRRLError`: for another form, and passwords.
    """
    from lm_eval._cli.utils import key_val_to_dict

    text = text or ""
    try:
        found = json.loads(text) if text.startswith("{") else key_val_to_dict(text)
        found |= {n: json.loads(v) for n, v in found.items() if isinstance(v, str) and v.startswith("{")}
    except ValueError as error:
        raise SDRRLError(f"`{option}` is not of the form `name=value,name=value`, as `dtype=float32`.") from error
    if _SECRET_URL.search(text) or any(map(_SECRET.search, found)):
        raise SDRRLError(f"`{option}` holds a password, key or header, which would be in files. Set OPENAI_API_KEY.")
    return found


def _check_names(option: str, found: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(found.keys() - known):
        raise SDRRLError(f"`{option}`: {', '.join(unknown)} cannot be set. Known: {', '.join(sorted(known))}.")


def parse_gen_kwargs(backend: str, text: str | None) -> dict[str, Any]:
    """
    How answers are generated, in the place of what the tasks set.

    Args:
        backend (`str`):
            lm-eval's name of the backend.
        text (`str`, *optional*):
            As for [`parse_arguments`].

    Raises:
        `SDRRLError`: for what lm-eval would pass over, or find out once a model is loaded.
    """
    found = _parse("gen_kwargs", text)
    numbers = MAX_GEN_TOKS | (NUMBERS if backend == "hf" else {})  # of others, the backend knows
    known = {"until", "do_sample", *numbers, *(found if backend != "hf" else ())}
    known -= {"max_new_tokens", "max_length", "max_tokens", "max_completion_tokens"}  # the tasks set `max_gen_toks`
    _check_names("gen_kwargs", found, known)
    for name in found.keys() & numbers.keys():
        (kind, most), value = numbers[name], found[name]
        if type(value) not in (int, kind) or not 0 < value <= most:
            number = f"{'whole ' * (kind is int)}number above 0{', at most 1' * (most == 1)}"
            raise SDRRLError(f"`gen_kwargs`: {name} must be a {number}, got {value!r}.")
        found[name] = kind(value)  # transformers refuses 2 for 2.0
    until = found.get("until", [])
    if not all(isinstance(end, str) and end for end in (until if isinstance(until, list) else [until])):
        raise SDRRLError(f"`gen_kwargs`: until must be a text or a list of texts, got {until!r}.")
    # The tasks set `do_sample: false`, with which lm-eval takes the temperature for 0 and says nothing
    given = [name for name in OF_SAMPLING if name in found]
    if backend in ("hf", "vllm") and (given or found.get("do_sample")):
        if found.get("do_sample") is not True or "temperature" not in found:
            raise SDRRLError(
                f"`gen_kwargs`: {', '.join(given) or 'do_sample'} would do nothing alone. To sample, set `do_sample="
                "true` and a `temperature`."
            )
    return found


def parse_arguments(backend: str, text: str | None) -> dict[str, Any]:
    """
    Arguments for a backend, as lm-eval has them.

    Args:
        backend (`str`):
            lm-eval's name of the backend.
        text (`str`, *optional*):
            `name=value,name=value`, or JSON.

    Raises:
        `SDRRLError`: for another form, passwords, and a backend or an argument that is not known.
    """
    from lm_eval.api.registry import get_model

    found = _parse("model_args", text)
    known = set(MODEL_ARGS)
    if backend == "vllm":  # it hands on what it does not know
        known = set(found) - {"trust_remote_code"}
    elif backend != "hf":
        try:
            classes = get_model(backend).__mro__[:-1]
        except (ValueError, ImportError) as error:
            raise SDRRLError(f"lm-eval has no backend {backend!r}: {error}") from error
        known = {name for kind in classes for name in inspect.signature(kind.__init__).parameters}
        known = {name for name in known if not _SECRET.search(name)} - {"trust_remote_code", *_NOT_SET}
    _check_names("model_args", found, known)
    if found.get("dtype", "auto") not in DTYPES:
        raise SDRRLError(f"`model_args`: dtype must be one of {', '.join(DTYPES)}, got {found['dtype']!r}.")
    for name, kind in (("enable_thinking", bool), ("chat_template_args", dict)):
        if not isinstance(found.get(name, kind()), kind):
            raise SDRRLError(f"`model_args`: {name} must be a {kind.__name__}, such as {kind()}.")
    # Else lm-eval would look for the tokenizer under the server's name for the model
    needed = {"local-completions": ("base_url", "tokenizer"), "local-chat-completions": ("base_url",)}
    if missing := [name for name in needed.get(backend, ()) if not any(name in given for given in found)]:
        raise SDRRLError(
            f"`backend={backend}` needs {' and '.join(missing)} in `model_args`, such as "
            "`base_url=http://localhost:8000/v1/completions,tokenizer=MODEL`."
        )
    return found


def load_lm(spec: str, backend: str, arguments: dict[str, Any], batch_size: int, full_base: str | None = None) -> Any:
    """
    Loads a model as lm-eval asks it.

    Args:
        spec (`str`):
            Folder or hub id, with a strength or without; of an adapter, which is put on its base; for a server, the
            name that it knows.
        backend (`str`):
            lm-eval's name of the backend.
        arguments (`dict[str, Any]`):
            Arguments for the backend.
        batch_size (`int`):
            Items per batch.
        full_base (`str`, *optional*):
            Base model, for one that is no adapter and has a strength.

    Returns:
        `lm_eval.api.model.LM`

    Raises:
        `SDRRLError`: if the model cannot be loaded or the backend cannot be started.
    """
    if backend != "hf":
        return _other_backend(backend, spec, arguments, batch_size)
    import torch

    from sdrrl_trl.engines.transformers import load_model

    path, strength = split_strength(spec)
    start, dtype = base_path(spec), arguments.get("dtype", "auto")
    model, tokenizer = load_model(start, dtype=dtype)
    model, tokenizer = tune(model, tokenizer, path, strength, start if is_adapter(spec) else full_base, dtype)
    # An adapter freezes the head, and torch copies a bfloat16 one without a gradient for each row of a batch (on CPUs)
    for weight in filter(torch.is_floating_point, model.get_output_embeddings().parameters()):
        weight.requires_grad_(True)
    return wrap(model, tokenizer, processes(), batch_size=batch_size, **arguments)


def wrap(model: Any, tokenizer: Any, accelerator: Any, **arguments: Any) -> Any:
    """lm-eval's wrapper around a model that is loaded already, which each process asks its share of the items."""
    from lm_eval.models.huggingface import HFLM

    # It would stop at the tokenizer's own end alone, behind which chat models that say another one go on
    ends = find_ends(tokenizer, model.config, model.generation_config.eos_token_id)
    model.generation_config.eos_token_id = ends or None
    # lm-eval ties embeddings and head anew, which fails if an adapter trains a copy of one of them
    model.tie_weights = lambda: None
    try:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, **arguments)
    finally:  # a model in training goes on to be used
        del model.tie_weights
    if accelerator.num_processes > 1:  # HFLM shares the items among the processes only for models that it loads itself
        lm.accelerator, lm._device = accelerator, accelerator.device
        lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
    ask = lm._loglikelihood_tokens
    # Of whole texts it asks in batches of a given size, and would draw a bar for each
    lm._loglikelihood_tokens = lambda requests, disable_tqdm=False, override_bs=None: ask(
        requests, disable_tqdm=disable_tqdm or override_bs is not None, override_bs=override_bs
    )
    return lm


def _other_backend(backend: str, path: str, arguments: dict[str, Any], batch_size: int) -> Any:
    from lm_eval.api.registry import get_model

    # A server knows its models by name; the others load them
    named = {"model": path} if "completions" in backend else {"pretrained": base_path(path)}
    if backend == "vllm" and is_adapter(path):
        named["lora_local_path"] = path
    more = {"batch_size": batch_size, "max_batch_size": None, "device": None}
    hub.unreachable()  # for a tokenizer; before the library asks, again and again
    logging.getLogger("lm_eval.models.api_models").setLevel(logging.CRITICAL)  # its errors may hold the key
    try:
        lm = get_model(backend).create_from_arg_obj(named | arguments, more)
    except Exception as error:  # of any library
        raise SDRRLError(f"lm-eval cannot start the backend {backend!r}: {hub.explain(error) or error}") from error
    fix_date(getattr(lm, "tokenizer", None))
    return lm


def processes() -> Any:
    """The processes of `accelerate launch`, or this one alone."""
    import torch
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.accelerator.is_available())
