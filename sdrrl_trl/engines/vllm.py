"""Offline generation with vLLM (extra `vllm`). Run with vLLM 0.32 on a CPU, not yet on a GPU."""

from typing import Any

import torch

from sdrrl_trl.engines import Generation, Sampling
from sdrrl_trl.engines.transformers import load_chat
from sdrrl_trl.utils import package_version


class VLLMGenerator:
    """
    Generation with `vllm.LLM`, which batches by itself: hand it as many questions at a time as you can afford to lose.

    Args:
        model (`str`):
            Local path or hub id.
        sampling ([`Sampling`]):
            How to answer.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
    """

    def __init__(self, model: str, sampling: Sampling, revision: str = "main", dtype: str = "auto"):
        self.chat = load_chat(model, sampling, revision)
        from vllm import LLM

        self.dtype, self.sampling = dtype, sampling
        # On a CPU, vLLM 0.32 fails where a prompt with a seed is read in pieces
        in_pieces = None if torch.accelerator.is_available() else False
        self._llm = LLM(model=model, revision=revision, dtype=dtype, enable_chunked_prefill=in_pieces)

    def describe(self) -> dict[str, Any]:
        return {"engine": "vllm", "version": package_version("vllm"), "dtype": self.dtype, **vars(self.sampling)}

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        from vllm import SamplingParams

        prompts, sampling = self.chat.prompts(conversations), self.sampling
        limit = self._llm.llm_engine.model_config.max_model_len - sampling.max_new_tokens
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= limit]  # vLLM raises at one that does not
        options = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        options["stop_token_ids"] = self.chat.ends
        results = self._llm.generate(
            [{"prompt_token_ids": prompts[i]} for i in fitting],
            [SamplingParams(seed=sampling.seed_of(conversations[i]), **options) for i in fitting],
            use_tqdm=False,
        )
        answers = [Generation("", "prompt_too_long")] * len(prompts)
        for i, result in zip(fitting, results, strict=True):
            output = result.outputs[0]
            answers[i] = Generation(self.chat.text(output.token_ids), output.finish_reason)
        return answers
