"""Offline generation with vLLM (extra `vllm`). Not yet run on a GPU by us."""

from typing import Any

from sdrrl_trl.engines import Generation
from sdrrl_trl.engines.transformers import check_model, load_tokenizer
from sdrrl_trl.utils import package_version, require, sha256


class VLLMGenerator:
    """
    Generation with `vllm.LLM`, which batches by itself: hand it as many questions at a time as you can afford to lose.

    Args:
        model (`str`):
            Local path or hub id.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer in tokens.
        temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of sampling; 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of sampling.
        seed (`int`, *optional*, defaults to `42`):
            Seed of sampling; each question has one of its own.
    """

    def __init__(
        self,
        model: str,
        revision: str = "main",
        dtype: str = "auto",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 42,
    ):
        require("vllm", "vllm", "The generator `vllm`")
        check_model(model, needs_chat_template=True, revision=revision)
        from vllm import LLM

        self.dtype, self.seed = dtype, seed
        self.sampling = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self.tokenizer = load_tokenizer(model, revision)
        self._llm = LLM(model=model, revision=revision, dtype=dtype, seed=seed)

    def describe(self) -> dict[str, Any]:
        version = package_version("vllm")
        return {"engine": "vllm", "version": version, "dtype": self.dtype, "seed": self.seed, **self.sampling}

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        from vllm import SamplingParams

        prompts = self.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=True)
        prompts = prompts["input_ids"]
        limit = self._llm.llm_engine.model_config.max_model_len - self.sampling["max_tokens"]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= limit]  # vLLM raises at one that does not
        # A seed for each request, so that an answer does not depend on what is asked beside it
        seeds = [int(sha256(f"{self.seed}:{conversations[i]}")[:8], 16) for i in fitting]
        results = self._llm.generate(
            [{"prompt_token_ids": prompts[i]} for i in fitting],
            [SamplingParams(seed=seed, **self.sampling) for seed in seeds],
            use_tqdm=False,
        )
        answers = [Generation("", "prompt_too_long", 0)] * len(prompts)
        for i, result in zip(fitting, results, strict=True):
            output = result.outputs[0]
            n_tokens = len(output.token_ids) - (output.finish_reason == "stop")  # without the end of sequence
            answers[i] = Generation(output.text.strip(), output.finish_reason, n_tokens)
        return answers
