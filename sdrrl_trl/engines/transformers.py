"""Text generation with transformers."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)
from transformers.utils.logging import disable_progress_bar

from sdrrl_trl.engines import Generation
from sdrrl_trl.utils import SDRRLError, sha256


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
    return model.to(own_device()).eval(), tokenizer


def own_device() -> torch.device:
    """The accelerator of this process under `torchrun` or `accelerate launch`, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))


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
    Generation with `model.generate`, greedy or sampled.

    Rows are batched by length, and those that are finished leave the batch, so that a long answer does not keep the
    others waiting.

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
            Seed of sampling. Each row has random numbers of its own, whatever batch it is in.
        batch_tokens (`int`, *optional*, defaults to `32768`):
            Most tokens, prompts and answers with padding, that a batch may grow to. Halved when memory runs out.
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
        batch_tokens: int = 32_768,
    ):
        check_model(model, needs_chat_template=True, revision=revision)
        self.max_new_tokens, self.batch_tokens = max_new_tokens, batch_tokens
        self.temperature, self.top_p, self.num_samples, self.seed = temperature, top_p, num_samples, seed
        self.model, self.tokenizer = load_model(model, revision, dtype)
        # Plain decoding: what else a model recommends (beams, penalties, another temperature) would shape the answers
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=self.tokenizer.pad_token_id
        )
        ends = own.eos_token_id
        self._ends = torch.tensor([ends] if isinstance(ends, int) else ends or [-1], device=self.model.device)

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "commit": vars(self.model.config).get("_commit_hash"),
        }

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        prompts = self.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=True)
        rows = [
            _Row(tokens, f"{self.seed}:{sample}:{conversation}")
            for tokens, conversation in zip(prompts["input_ids"], conversations, strict=True)
            for sample in range(self.num_samples)
        ]
        limit = self.model.config.get_text_config().max_position_embeddings - self.max_new_tokens
        for row in rows:
            if len(row.prompt) > limit:
                row.finish_reason = "prompt_too_long"
        batch: list[_Row] = []
        for row in sorted((row for row in rows if row.finish_reason is None), key=lambda row: len(row.prompt)):
            if batch and (len(batch) + 1) * (len(row.prompt) + self.max_new_tokens) > self.batch_tokens:
                self._answer(batch)
                batch = []
            batch.append(row)
        if batch:
            self._answer(batch)
        best = (
            max(rows[i : i + self.num_samples], key=lambda row: row.log_likelihood / (len(row.answer) + 1))
            for i in range(0, len(rows), self.num_samples)
        )
        return [self._decode(row) for row in best]

    def _answer(self, rows: list["_Row"]) -> None:
        try:
            self._decode_batch(rows)
            return
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        # Behind the handler, which keeps the failed attempt's tensors alive
        torch.accelerator.empty_cache()
        for row in rows:
            row.answer, row.finish_reason, row.log_likelihood = [], None, 0.0
        self._answer(rows[: len(rows) // 2])
        self._answer(rows[len(rows) // 2 :])

    @torch.inference_mode()
    def _decode_batch(self, rows: list["_Row"]) -> None:
        inputs = self.tokenizer.pad({"input_ids": [row.prompt for row in rows]}, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        ids, mask, cache = inputs["input_ids"], inputs["attention_mask"], DynamicCache(config=self.model.config)
        start, ends = ids.shape[1], set(self._ends.tolist())
        if self.temperature > 0:
            generators = [torch.Generator().manual_seed(int(sha256(row.seed)[:15], 16)) for row in rows]
        while rows:
            processors = LogitsProcessorList()
            if self.temperature > 0:
                processors.append(_Sampler(self.temperature, self.top_p, generators, self._ends))
            ids = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=start + self.max_new_tokens - ids.shape[1],
                stopping_criteria=StoppingCriteriaList([_SomeFinished(self._ends, start)]),
                logits_processor=processors,
            )
            if self.temperature > 0:
                for row, log_likelihood in zip(rows, processors[0].finish(ids), strict=True):
                    row.log_likelihood += log_likelihood
            finished = torch.isin(ids[:, start:], self._ends).any(-1)
            at_limit = ids.shape[1] - start >= self.max_new_tokens
            for row, tokens, ended in zip(rows, ids[:, start:].tolist(), finished.tolist(), strict=True):
                if ended or at_limit:
                    row.finish_reason = "stop" if ended else "length"
                    row.answer = tokens[: next((i for i, token in enumerate(tokens) if token in ends), None)]
            keep = torch.tensor([i for i, row in enumerate(rows) if row.finish_reason is None], device=ids.device)
            if len(keep) == 0:
                break
            rows = [rows[i] for i in keep.tolist()]
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)[keep]
            ids = ids[keep]
            cache.batch_select_indices(keep)
            if self.temperature > 0:
                generators = [generators[i] for i in keep.tolist()]

    def _decode(self, row: "_Row") -> Generation:
        text = self.tokenizer.decode(row.answer, skip_special_tokens=True).strip()
        return Generation(text, row.finish_reason, len(row.answer))


@dataclass
class _Row:
    prompt: list[int]
    seed: str
    answer: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    log_likelihood: float = 0.0


class _SomeFinished(StoppingCriteria):
    """Stops when a quarter of the rows are finished, for them to leave the batch."""

    def __init__(self, ends: torch.Tensor, start: int):
        self.ends, self.start = ends, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        finished = torch.isin(input_ids[:, self.start :], self.ends).any(-1)
        return torch.ones_like(finished) if finished.float().mean() >= 0.25 else finished


class _Sampler(LogitsProcessor):
    """
    Sampling with random numbers of each row's own, by the Gumbel-max trick: the token with the highest sum of logit
    and Gumbel noise is a sample of the softmax. Sums the log-likelihood of what is sampled, at temperature 1.
    """

    def __init__(self, temperature: float, top_p: float, generators: list[torch.Generator], ends: torch.Tensor):
        self.temperature, self.top_p, self.generators, self.ends = temperature, top_p, generators, ends
        self.total: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._count(input_ids)
        scores = scores.float()
        self.log_probs = scores.log_softmax(-1)
        scores = TopPLogitsWarper(self.top_p)(input_ids, scores / self.temperature)
        noise = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in self.generators])
        return scores - (-noise.clamp(min=1e-20).log()).log().to(scores.device)

    def _count(self, input_ids: torch.Tensor) -> None:
        if self.total is None:
            self.total = torch.zeros(len(input_ids), device=input_ids.device)
            self.active = torch.ones_like(self.total, dtype=torch.bool)
            return
        token = input_ids[:, -1]
        self.total += self.active * self.log_probs.gather(-1, token[:, None]).squeeze(-1)
        self.active &= ~torch.isin(token, self.ends)

    def finish(self, input_ids: torch.Tensor) -> list[float]:
        """Log-likelihood of each row since the start of this pass."""
        self._count(input_ids)
        return self.total.tolist()
