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

        sampling = self.sampling
        options = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        options["stop_token_ids"] = self.chat.ends

        def answer(rows: list[list[int]], seeds: list[int]) -> list[Generation]:
            prompts = [{"prompt_token_ids": row} for row in rows]
            results = self._llm.generate(
                prompts, [SamplingParams(seed=seed, **options) for seed in seeds], use_tqdm=False
            )
            outputs = [result.outputs[0] for result in results]
            return [Generation(self.chat.text(output.token_ids), output.finish_reason) for output in outputs]

        # vLLM would raise at one that does not fit
        return self.chat.answers(conversations, sampling, self._llm.llm_engine.model_config.max_model_len, answer)
