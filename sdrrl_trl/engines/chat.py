"""Conversations to tokens and back, by a model's chat template and tokenizer: for the engines that run here."""

import inspect
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from itertools import compress, takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sdrrl_trl.engines import Generation, Sampling
from sdrrl_trl.utils import SDRRLError


# The day that templates take for today: answers must not depend on that of the run. Llama 3 itself falls back to it
TODAY = datetime(2024, 7, 26)
# Takes the place of the function that tells templates the date: transformers gives them no other one by that name
_PARTS = {f"%{part}": TODAY.strftime(f"%{part}") for part in "aAbBcdDeFHIjmMpSTuUwWxXyY"}
_PARTS |= {"%-d": str(TODAY.day), "%-m": str(TODAY.month), "%-H": "0", "%-I": "12"}  # not known everywhere
_DATE = "{% macro strftime_now(format) %}{{ format"
_DATE += "".join(f" | replace('{part}', '{text}')" for part, text in _PARTS.items()) + " }}{% endmacro +%}"
# Special tokens around thoughts, and of channels (gpt-oss), by which thoughts are told from the answer later
_THOUGHT = re.compile(r"think|thought|reason|reflect|scratchpad|channel|<\|(start|message|end)\|>", re.IGNORECASE)
_WORD = "Sdrrl"  # that is looked for in what a template makes of it


def fix_date(tokenizer: Any) -> Any:
    """Makes the chat template of a tokenizer say the same on every day, though it asks for the date. Not saved."""
    # lm-eval and TRL have others, too; and one may come here twice
    if isinstance(tokenizer, PreTrainedTokenizerBase) and not isinstance(tokenizer.get_chat_template, partial):
        tokenizer.get_chat_template = partial(_with_fixed_date, tokenizer.get_chat_template)
    return tokenizer


def _with_fixed_date(get_chat_template: Callable[..., str], *args: Any, **options: Any) -> str:
    template = get_chat_template(*args, **options)
    # Only where it is asked for, so that other templates stay as they are
    return _DATE + template if "strftime_now" in template else template


def check_template_arguments(tokenizer: Any, model: str, names: Iterable[str]) -> None:
    """Raises [`SDRRLError`] for arguments of the chat template that it does not read."""
    own = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters} - {"tools", "documents"}
    if unknown := [name for name in names if name in own or name not in str(tokenizer.chat_template)]:
        raise SDRRLError(
            f"The chat template of {model!r} does not know {', '.join(unknown)}, so it would do nothing. Correct the "
            "name, or leave it out."
        )


def find_ends(tokenizer: Any, config: Any, generation_ends: int | list[int] | None, **options: Any) -> list[int]:
    """
    Tokens that end an answer: all that a model and its tokenizer call an end, and what the chat template puts behind
    an answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model, with a chat template or without.
        config (`PretrainedConfig`):
            Configuration of the model.
        generation_ends (`int` or `list[int]`, *optional*):
            Tokens that its generation configuration calls an end.
        **options:
            Arguments of `apply_chat_template`.
    """
    named = [getattr(one, "eos_token_id", None) for one in (config, config.get_text_config(), tokenizer)]
    ends = {i for ids in (generation_ends, *named) for i in (ids if isinstance(ids, list) else [ids]) if i is not None}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _WORD}]
    try:
        _, found, behind = tokenizer.apply_chat_template(turns, tokenize=False, **options).rpartition(_WORD)
    except (TemplateError, ValueError):  # the template refuses it, or there is none
        return sorted(ends)
    first = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"][:1] if found else []
    return sorted(ends.union(i for i in first if i in tokenizer.added_tokens_decoder))


class Chat:
    """
    The chat template, tokenizer and limits of a model, without its weights.

    Args:
        name (`str`):
            Name of the model, for errors.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, with a chat template and [`fix_date`].
        config (`PretrainedConfig`):
            Its configuration.
        ends (`int` or `list[int]`, *optional*):
            Tokens that its generation configuration calls an end.
        sampling ([`Sampling`]):
            How it is to answer.

    Attributes:
        window (`int`, *optional*): Most tokens of a question with its answer. None where positions do not run out.
        ends (`list[int]`): Tokens that end an answer.

    Raises:
        `SDRRLError`: if the chat template does not know an argument, or there is no room for an answer.
    """

    def __init__(self, name: str, tokenizer: Any, config: Any, ends: int | list[int] | None, sampling: Sampling):
        self.tokenizer, self._name = tokenizer, name
        self._arguments = sampling.chat_template_kwargs or {}
        check_template_arguments(tokenizer, name, self._arguments)
        text_config = config.get_text_config()
        # BLOOM has neither, for it knows distances alone; MPT's are a table of so many
        limits = [getattr(text_config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
        self.window = next(filter(None, limits), None)
        if self.window is not None and sampling.max_new_tokens >= self.window:
            raise SDRRLError(
                f"`max_new_tokens={sampling.max_new_tokens}` leaves no room for a question: {name!r} has "
                f"{self.window} positions for both. Set it lower."
            )
        self.ends = find_ends(tokenizer, config, ends, **self._arguments)
        special = {*self.tokenizer.all_special_ids}
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self._hidden = {i for i in special if not _THOUGHT.search(self.tokenizer.convert_ids_to_tokens(i))}

    def _apply(self, conversations: list[list[dict[str, str]]], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(conversations, return_dict=True, **options, **self._arguments)

    def check_system(self) -> None:
        """Raises [`SDRRLError`] if the template refuses system messages, or leaves them out."""
        messages = [{"role": "system", "content": _WORD}, {"role": "user", "content": "?"}]
        try:
            if _WORD in self._apply([messages], tokenize=False, add_generation_prompt=True)[0]:
                return
            problem = "it leaves them out"
        except TemplateError as error:
            problem = str(error)
        raise SDRRLError(
            f"The chat template of {self._name!r} takes no system messages ({problem}), but `system_prompt` is set "
            "or the questions have them. Put their text into the questions, or use another model."
        )

    def prompts(self, conversations: list[list[dict[str, str]]]) -> list[list[int]]:
        """Tokens of the conversations, up to where the answer begins."""
        try:
            return self._apply(conversations, add_generation_prompt=True)["input_ids"]
        except TemplateError as error:
            raise SDRRLError(f"The chat template of {self._name!r} refuses a conversation: {error}.") from error

    def answers(
        self, conversations: list[list[dict[str, str]]], sampling: Sampling, window: int | None, generate: Callable
    ) -> list[Generation]:
        """
        Answers to conversations; those that leave no room for the longest answer in the window are marked.

        Args:
            conversations (`list[list[dict[str, str]]]`): The questions.
            sampling ([`Sampling`]): How to answer.
            window (`int`, *optional*): Most tokens of a question with its answer.
            generate (`Callable[[list[list[int]], list[int]], list[Generation]]`): Answers the tokens of questions,
                with a seed for each.
        """
        prompts = self.prompts(conversations)
        fits = [window is None or len(prompt) + sampling.max_new_tokens <= window for prompt in prompts]
        seeds = map(sampling.seed_of, compress(conversations, fits))
        found = iter(generate([*compress(prompts, fits)], [*seeds]))
        return [next(found) if fit else Generation("", "prompt_too_long") for fit in fits]

    def text(self, tokens: list[int]) -> str:
        """The text of an answer up to its end, with the marks of thoughts even where they are special tokens."""
        whole = takewhile(lambda token: token not in self.ends, tokens)
        tokens = [token for token in whole if token not in self._hidden]
        # "x != 5" would become "x!= 5" where a tokenizer cleans up
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False).strip()
