"""Text generation with transformers."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
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
from transformers.cache_utils import DynamicLayer
from transformers.utils.logging import disable_progress_bar

from sdrrl_trl import hub
from sdrrl_trl.engines import Generation, Sampling
from sdrrl_trl.engines.chat import Chat, fix_date
from sdrrl_trl.options import similar
from sdrrl_trl.utils import MODEL_FILES, SDRRLError, in_a_line, is_first_process, on_hub


# Prompts and answers with padding; on a GPU with much memory up to MOST_TOKENS. Halved when memory runs out
BATCH_TOKENS, MOST_TOKENS = 32_768, 524_288


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Makes an [`SDRRLError`] of what libraries raise when something is missing, damaged or not for them."""
    if not Path(name).exists():
        if not on_hub(name):
            raise SDRRLError(
                f"Cannot load {what} {name!r}: no such folder. Correct it; adapters name it in adapter_config.json."
            )
        hub.unreachable()  # before they ask
    elif Path(name, "options.json").exists() and not any(Path(name, file).exists() for file in MODEL_FILES):
        raise SDRRLError(f"The training of {name!r} is not finished. The same `sdrrl train` again goes on with it.")
    try:
        yield
    except Exception as error:  # wrong types in a configuration can be any
        near = "" if Path(name).exists() else similar(name, [str(path) for path in Path(name).parent.glob("*/")])
        here = "" if Path(name).exists() else f"there is no such folder (yet).{near} And on the hub: "
        raise SDRRLError(f"Cannot load {what} {name!r}: {here}{hub.explain(error) or in_a_line(error)}") from error


def load_model(name: str, revision: str = "main", dtype: str = "auto") -> tuple[Any, Any]:
    """
    Loads a causal language model and its tokenizer from a local path or the hub. No remote code is run.

    Raises:
        `SDRRLError`: if the model cannot be loaded.
    """
    disable_progress_bar()
    tokenizer = load_tokenizer(name, revision)
    with loading("the model", name):
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype, trust_remote_code=False)
    return model.to(own_device()).eval(), tokenizer


def own_device() -> torch.device:
    """The accelerator of this process under `torchrun` or `accelerate launch`, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))  # which both launchers set


def load_tokenizer(name: str, revision: str = "main") -> Any:
    """
    Loads a tokenizer for batched generation.

    Raises:
        `SDRRLError`: if it cannot be loaded.
    """
    with loading("the tokenizer of", name):
        found = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left", trust_remote_code=False)
    if found.pad_token is None:  # any will do: it is masked
        found.pad_token = found.eos_token or found.convert_ids_to_tokens(0)
    return fix_date(found)


def check_model(name: str, needs_chat_template: bool, revision: str = "main") -> Any:
    """
    Finds out, without loading the weights, whether a model is there and whether it can be asked questions.

    Returns:
        `PretrainedConfig`: its configuration.

    Raises:
        `SDRRLError`: if there is no such model, or it has no chat template where one is needed.
    """
    with loading("the model", name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if needs_chat_template and load_tokenizer(name, revision).chat_template is None:
        raise SDRRLError(
            f"The tokenizer of {name!r} has no chat template, so it is unknown how to ask the model a question. "
            "Use an instruction-tuned model, or set `chat_template` in its tokenizer_config.json."
        )
    return config


def load_chat(name: str, sampling: Sampling, revision: str = "main") -> Chat:
    """
    Loads what a model is asked by, without its weights.

    Raises:
        `SDRRLError`: if there is no such model, or it cannot be asked so.
    """
    config = check_model(name, needs_chat_template=True, revision=revision)
    try:
        ends = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
    except OSError:  # it need not have such a file
        ends = None
    return Chat(name, load_tokenizer(name, revision), config, ends, sampling)


def weights_of(model: Any) -> dict[str, str | None]:
    """Data type and, from the hub, commit of a model's weights."""
    commit = vars(model.config).get("_commit_hash")
    return {"dtype": str(model.dtype).removeprefix("torch."), "commit": commit}


def batch_tokens(model: Any) -> int:
    """Most tokens of a batch of answers: on a GPU, those whose keys and values fill half of what the weights leave."""
    device, config = own_device(), model.config.get_text_config()
    if device.type != "cuda" or not hasattr(config, "num_attention_heads"):  # Mamba has none
        return BATCH_TOKENS
    n_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_a_token = 2 * config.num_hidden_layers * n_heads * size * model.dtype.itemsize
    left = torch.cuda.get_device_properties(device).total_memory - model.num_parameters() * model.dtype.itemsize
    return min(int(left / 2 / of_a_token), MOST_TOKENS)


def shard_bar(n: int, what: str) -> tqdm:
    """Progress within a shard that takes long, as on a CPU. The first of several processes shows its own."""
    # How long all will take, the lines between the shards say
    form = "{desc}: {n_fmt} of the {total_fmt} rows of this shard, {elapsed} so far, {remaining} left"
    return tqdm(total=n, desc=what, bar_format=form, delay=30, leave=False, disable=not is_first_process())


def in_batches(
    function: Callable[[list[int]], list[Any]], rows: list[list[int]], most: int, longer: int = 0
) -> list[Any]:
    """
    What a function gives for rows of tokens, batched by length.

    Args:
        function (`Callable`):
            Takes the indices of a batch, and gives one result for each.
        rows (`list[list[int]]`):
            Token ids.
        most (`int`):
            Most tokens in a batch, with padding. Halved when memory runs out.
        longer (`int`, *optional*, defaults to `0`):
            Tokens that each row will grow by.
    """
    results: dict[int, Any] = {}

    def run(batch: list[int]) -> None:
        try:
            results.update(zip(batch, function(batch), strict=True))
            return
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Behind the handler, which keeps the failed attempt's tensors alive
        torch.accelerator.empty_cache()
        run(batch[: len(batch) // 2])
        run(batch[len(batch) // 2 :])

    batch: list[int] = []
    # By content as well as by length: the same rows in another order make the same batches
    for i in sorted(range(len(rows)), key=lambda i: (len(rows[i]), rows[i])):
        if batch and (len(batch) + 1) * (len(rows[i]) + longer) > most:
            run(batch)
            batch = []
        batch.append(i)
    if batch:
        run(batch)
    return [results[i] for i in range(len(rows))]


class TransformersGenerator:
    """
    Generation with `model.generate`, greedy or sampled.

    Rows are batched by length, and those that are finished leave the batch, so that a long answer does not keep the
    others waiting.

    Args:
        model (`str`):
            Local path or hub id.
        sampling ([`Sampling`]):
            How to answer. Each row has random numbers of its own, whatever batch it is in.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
    """

    def __init__(self, model: str, sampling: Sampling, revision: str = "main", dtype: str = "auto"):
        self.chat, self.sampling = load_chat(model, sampling, revision), sampling
        self.model, self.tokenizer = load_model(model, revision, dtype)
        # Plain decoding: what else a model recommends (beams, penalties, another temperature) would shape the answers
        begin, pad = self.model.generation_config.bos_token_id, self.tokenizer.pad_token_id
        ends = {"bos_token_id": begin, "eos_token_id": self.chat.ends or None, "pad_token_id": pad}
        self.model.generation_config = GenerationConfig(**ends)
        self._ends = torch.tensor(self.chat.ends or [-1], device=self.model.device)
        # transformers 5.24 renamed the argument, and warns of the old name
        names = inspect.signature(self.model.forward).parameters
        self._cache_name = next((name for name in ("cache", "past_key_values") if name in names), None)
        # Rows can leave a cache of keys and values, but not the state of Mamba, LFM2 or xLSTM
        layers = DynamicCache(config=self.model.config).layers
        has_keys = all(isinstance(layer, DynamicLayer) for layer in layers)
        if not (has_keys and self._cache_name and self.model._supports_default_dynamic_cache()):
            self._cache_name = None
        # Rows go one by one where none can leave the batch
        self._batch_tokens = batch_tokens(self.model) if self._cache_name else 0

    def describe(self) -> dict[str, Any]:
        return {"engine": "transformers", **vars(self.sampling), **weights_of(self.model)}

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        def answer(rows: list[list[int]], seeds: list[int]) -> list[Generation]:
            with shard_bar(len(rows), "answer") as bar:
                function = partial(self._answer, rows, seeds, bar.update)
                return in_batches(function, rows, self._batch_tokens, self.sampling.max_new_tokens)

        return self.chat.answers(conversations, self.sampling, self.chat.window, answer)

    @torch.inference_mode()
    def _answer(
        self, prompts: list[list[int]], seeds: list[int], tell: Callable[[int], Any], batch: list[int]
    ) -> list[Generation]:
        """The answers to some of the prompts, by their indices; `tell` is told how many more are there."""
        inputs = {"input_ids": [prompts[i] for i in batch]}
        inputs = self.tokenizer.pad(inputs, return_tensors="pt").to(self.model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        cache = {self._cache_name: DynamicCache(config=self.model.config)} if self._cache_name else {}
        start = ids.shape[1]
        generators = [torch.Generator(self.model.device).manual_seed(seeds[i]) for i in batch]
        answers: dict[int, Generation] = {}
        rows = list(range(len(batch)))  # those that are still in the batch
        while True:
            sampler = [_Sampler(self.sampling, generators)] if self.sampling.temperature > 0 else []
            ids = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=start + self.sampling.max_new_tokens - ids.shape[1],
                stopping_criteria=StoppingCriteriaList([_SomeFinished(self._ends, start)]),
                logits_processor=LogitsProcessorList(sampler),
                **cache,
            )
            finished = torch.isin(ids[:, start:], self._ends).any(-1)
            at_limit = ids.shape[1] - start >= self.sampling.max_new_tokens
            before = len(answers)
            for row, tokens, ended in zip(rows, ids[:, start:].tolist(), finished.tolist(), strict=True):
                if ended or at_limit:
                    answers[row] = Generation(self.chat.text(tokens), "stop" if ended else "length")
            tell(len(answers) - before)
            if len(answers) == len(batch):
                return [answers[row] for row in range(len(batch))]
            keep = (~finished).nonzero().flatten()
            rows, generators = ([values[i] for i in keep.tolist()] for values in (rows, generators))
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)[keep]
            ids = ids[keep]
            cache[self._cache_name].batch_select_indices(keep)


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
    and Gumbel noise is a sample of the softmax, so that greedy decoding of the sums samples. Logits that differ in
    their last bits, as they do with the padding of a batch, give the same token: nearly always in float32, mostly in
    bfloat16.
    """

    def __init__(self, sampling: Sampling, generators: list[torch.Generator]):
        self.sampling, self.generators = sampling, generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self.sampling.temperature
        if self.sampling.top_p < 1:  # at 1 it would only sort the vocabulary
            scores = TopPLogitsWarper(self.sampling.top_p)(input_ids, scores)
        # Made where they are used: from the CPU, one for each row and token of the vocabulary would be sent to the GPU
        # at every step. In float32 they let tokens less likely than 6e-8 come more rarely than they should
        size, device = scores.shape[-1], scores.device
        noise = torch.stack([torch.rand(size, generator=generator, device=device) for generator in self.generators])
        return scores - (-noise.clamp(min=1e-20).log()).log()
