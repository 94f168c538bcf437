"""Offline generation with vLLM (extra `vllm`). Not yet run on a GPU by us."""

from typing import Any

from sdrrl_trl.engines import Generation
from sdrrl_trl.engines.transformers import check_model
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
        num_samples (`int`, *optional*, defaults to `1`):
            Answers sampled per question, of which the one with the highest mean log-likelihood per token is kept.
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
        num_samples: int = 1,
        seed: int = 42,
    ):
        require("vllm", "vllm", "The generator `vllm`")
        check_model(model, needs_chat_template=True, revision=revision)
        from vllm import LLM

        self.seed = seed
        self.options = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "n": num_samples}
        self._llm = LLM(model=model, revision=revision, dtype=dtype, seed=seed, trust_remote_code=False)

    def describe(self) -> dict[str, Any]:
        return {"engine": "vllm", "version": package_version("vllm"), "seed": self.seed, **self.options}

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        from vllm import SamplingParams

        parameters = [
            SamplingParams(seed=int(sha256(f"{self.seed}:{conversation}")[:8], 16), logprobs=0, **self.options)
            for conversation in conversations
        ]
        results = self._llm.chat(conversations, parameters, use_tqdm=False)
        return [self._best(result.outputs) for result in results]

    @staticmethod
    def _best(outputs: list[Any]) -> Generation:
        best = max(outputs, key=lambda output: output.cumulative_logprob / max(len(output.token_ids), 1))
        return Generation(best.text.strip(), best.finish_reason, len(best.token_ids))
