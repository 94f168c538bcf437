"""Text generation with transformers."""

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from sdrrl_trl.engines import Generation
from sdrrl_trl.utils import SDRRLError


def load_model(name: str, revision: str = "main", dtype: str = "auto") -> tuple[Any, Any]:
    """
    Loads a causal language model and its tokenizer from a local path or the hub. No remote code is run.

    Raises:
        `SDRRLError`: if the model cannot be loaded.
    """
    disable_progress_bar()
    tokenizer = load_tokenizer(name, revision)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SDRRLError(f"Cannot load the model {name!r}: {error}") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device).eval(), tokenizer


def load_tokenizer(name: str, revision: str = "main") -> Any:
    """
    Loads a tokenizer for batched generation.

    Raises:
        `SDRRLError`: if it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left")
    except (OSError, ValueError) as error:
        raise SDRRLError(f"Cannot load the tokenizer of {name!r}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_model(name: str, needs_chat_template: bool, revision: str = "main") -> None:
    """
    Finds out, without loading the weights, whether a model is there and whether it can be asked questions.

    Raises:
        `SDRRLError`: if there is no such model, or it has no chat template where one is needed.
    """
    try:
        AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise SDRRLError(f"Cannot load the model {name!r}: {error}") from error
    if needs_chat_template and load_tokenizer(name, revision).chat_template is None:
        raise SDRRLError(
            f"The tokenizer of {name!r} has no chat template, so it is unknown how to ask the model a question. "
            "Use an instruction-tuned model, or set `chat_template` in its tokenizer_config.json."
        )


class TransformersGenerator:
    """
    Greedy generation with `model.generate`.

    Args:
        model (`str`):
            Local path or hub id.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer in tokens.
    """

    def __init__(self, model: str, revision: str = "main", dtype: str = "auto", max_new_tokens: int = 512):
        check_model(model, needs_chat_template=True, revision=revision)
        self.max_new_tokens = max_new_tokens
        self.model, self.tokenizer = load_model(model, revision, dtype)
        # Plain greedy decoding: what else a model recommends (sampling, beams, penalties) would be part of the answers
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=self.tokenizer.pad_token_id
        )

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "decoding": "greedy",
            "max_new_tokens": self.max_new_tokens,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "commit": vars(self.model.config).get("_commit_hash"),
        }

    @torch.inference_mode()
    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        inputs = self.tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        try:
            output = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens)
        except torch.OutOfMemoryError:
            if len(conversations) == 1:
                raise
            torch.accelerator.empty_cache()
            half = len(conversations) // 2
            return self.generate(conversations[:half]) + self.generate(conversations[half:])
        return [self._finish(tokens) for tokens in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _finish(self, tokens: list[int]) -> Generation:
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or [])
        length = next((i for i, token in enumerate(tokens) if token in ends), None)
        text = self.tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()
        if length is None:
            return Generation(text, "length", len(tokens))
        return Generation(text, "stop", length)
