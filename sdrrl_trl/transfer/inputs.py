"""What a build needs, read and checked before any model is loaded, and what its stages depend on."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrrl_trl.engines import Generator, Translator
from sdrrl_trl.engines.chat import Chat
from sdrrl_trl.engines.transformers import load_tokenizer
from sdrrl_trl.render import render
from sdrrl_trl.stages import check_options, recorded_options
from sdrrl_trl.transfer.config import TRANSLATOR, TransferConfig, is_address
from sdrrl_trl.transfer.fertility import MAX_LENGTH, fertilities
from sdrrl_trl.transfer.lexicon import Lexicon, read_lexicon
from sdrrl_trl.transfer.mix import n_held_out, quotas, records_of
from sdrrl_trl.transfer.parallel import read_parallel
from sdrrl_trl.transfer.publish import DATA_FILES
from sdrrl_trl.transfer.rows import Answer, Pair
from sdrrl_trl.transfer.seeds import Seeds
from sdrrl_trl.transfer.select_engines import check_engine, make_chat
from sdrrl_trl.transfer.shards import Stage
from sdrrl_trl.utils import SDRRLError, check_output_dir, fingerprint, package_version, sha256


@dataclass(frozen=True)
class Inputs:
    """
    The checked inputs of a build.

    Args:
        seeds ([`Seeds`]): The questions.
        lexicons (`dict[str, Lexicon]`): Word lists by target language, without those that the translator is to make.
        n_sentences (`int`): Number of parallel sentences, counted for each target language.
        quotas (`dict[tuple[str, str], int]`): Training records by kind and language, if nothing were rejected.
        stages (`dict[str, Stage]`): The stages by the names of their folders.
        chat ([`~sdrrl_trl.engines.chat.Chat`], *optional*): Of the model that answers, if it runs here.
    """

    seeds: Seeds
    lexicons: dict[str, Lexicon]
    n_sentences: int
    quotas: dict[tuple[str, str], int]
    stages: dict[str, Stage]
    chat: Chat | None


def check_inputs(
    config: TransferConfig, generator: Generator | None = None, translator: Translator | None = None
) -> Inputs:
    """
    Reads all inputs and finds out what is wrong with them.

    Args:
        config ([`TransferConfig`]):
            What to build.
        generator ([`~sdrrl_trl.engines.Generator`], *optional*):
            Engine given by the caller.
        translator ([`~sdrrl_trl.engines.Translator`], *optional*):
            Engine given by the caller.

    Raises:
        `SDRRLError`: for bad input, and for an output folder that was made with other options.
    """
    folder = Path(config.output_dir)
    engines = [config.generator] if generator is None and config.answer_source != "reference" else []
    engines += [config.translator_of(target)[0] for target in config.target_languages] if translator is None else []
    for engine in dict.fromkeys(engines):  # each once
        check_engine(engine)
    seeds = Seeds(config.seeds)
    if config.answer_source != "own" and seeds.without_reference is not None:
        raise SDRRLError(
            f"`answer_source={config.answer_source}` needs a reference answer to every question; "
            f"{seeds.without_reference} has none. Name their column in `columns` of `seeds`, or use own answers."
        )
    files = {target: path for target, path in config.lexicon.items() if path != TRANSLATOR}
    lexicons = {target: read_lexicon(path, config.source_language, target) for target, path in files.items()}
    digest, n_sentences, expected = hashlib.sha256(), 0, _records_of_seeds(config, len(seeds))
    for pair in sentences_of(config):
        digest.update(json.dumps(vars(pair)).encode())
        n_sentences += 1
        if pair.target:
            expected.update((record.kind, record.language) for record in records_of(pair, config.source_language))
    held_out = f" Held out: {n_held_out(len(seeds), config.test_size)} of {len(seeds)} questions."
    expected_quotas = quotas(expected, config, held_out)
    # Shards hold a text three times for each language, the set some seven times; answers are longer than questions
    check_output_dir(folder, 50_000_000 + 20 * seeds.n_characters * (1 + len(config.target_languages)))
    recorded_options(folder, "build")  # refuses the folder of a training or an evaluation
    foreign = [name for name in (*DATA_FILES, "README.md", "manifest.json") if (folder / name).exists()]
    if foreign and not (folder / "stages").exists():
        raise SDRRLError(
            f"{folder} holds {', '.join(foreign)}, which `sdrrl build` has not written and would replace. Choose "
            "another `output_dir`."
        )
    hashes = seeds.sha256, _hash([sorted(config.lexicon), lexicons]), digest.hexdigest()
    # An engine that the caller gives is known by what it says of itself
    given = [{"engine": engine.describe()} if engine else {} for engine in (generator, translator)]
    stages = _make_stages(config, *hashes, *given)
    for stage in stages.values():
        if stage.name not in config.stages_to_do_again:
            check_options(stage.folder, stage.options, stage.name)
    chat = make_chat(config) if generator is None else None
    if chat and (config.system_prompt or seeds.has_system):
        chat.check_system()
    return Inputs(seeds, lexicons, n_sentences, expected_quotas, stages, chat)


def sentences_of(config: TransferConfig) -> Iterator[Pair]:
    """The parallel sentences of a build."""
    return read_parallel(config.parallel, config.source_language, config.target_languages)


def _records_of_seeds(config: TransferConfig, n: int) -> Counter[tuple[str, str]]:
    """Training records by kind and language that the questions would give if nothing were rejected."""
    n_train = n - n_held_out(n, config.test_size)
    # One row of each shape stands for all
    records = [*records_of(Answer("", "", ("",), ""), config.source_language)]
    for target in config.target_languages:
        switched = "x" if target in config.lexicon else None
        records += records_of(Pair("", target, ("", ""), ("", "")), config.source_language, switched)
    return +Counter({cell: n * n_train for cell, n in Counter((r.kind, r.language) for r in records).items()})


def _make_stages(
    config: TransferConfig, seeds_hash: str, lexicons_hash: str, parallel_hash: str, generator: dict, translator: dict
) -> dict[str, Stage]:
    """
    The stages, each with the options and inputs that its rows depend on, and with a hash of what comes before.
    `generator` and `translator` are what engines that the caller gives say of themselves.
    """

    def options(*names: str) -> dict[str, Any]:
        return {name: getattr(config, name) for name in names}

    answer = options("source_language", "answer_source", "generator", "model_name_or_path", "model_revision", "dtype")
    answer |= options("system_prompt", "chat_template_kwargs", "max_new_tokens", "temperature", "top_p", "shard_size")
    answer |= generator
    answer |= options("keep_refusals") | {"seeds_sha256": seeds_hash}
    # Greedy and given answers do not depend on the seed: another one mixes the same answers anew
    if config.temperature > 0 and config.answer_source != "reference":
        answer |= options("seed")
    # What weights a server has is not known
    if config.answer_source != "reference" and not is_address(config.generator):
        answer |= {"model": fingerprint(config.model_name_or_path)}
    engines = sorted({config.translator_of(target) for target in config.target_languages}, key=str)
    translate = options("translator", "translator_model") | translator
    translate |= {"versions": {engine: package_version(engine) for engine, _ in engines}}
    weights = {model: fingerprint(model) for engine, model in engines if model and not is_address(engine)}
    translate |= {"translator_weights": weights} if weights else {}
    # Rows made from others are refused with them
    translate |= {"answer_stage": _hash(answer)}
    sentences = options("source_language", "target_languages", "system_prompt", "shard_size")
    sentences |= {"parallel_sha256": parallel_hash}
    mix = options("target_languages", "proportions", "size", "test_size", "seed")
    mix |= options("code_switch_rate") | {"lexicon_sha256": lexicons_hash} if config.lexicon else {}
    mix |= {"translate_stage": _hash(translate), "parallel_stage": _hash(sentences)}
    root = Path(config.output_dir) / "stages"
    stages = [Stage("answer", root / "answer", answer)]
    stages += [Stage("translate", root / f"translate_{target}", translate) for target in config.target_languages]
    stages += [Stage("parallel", root / "parallel", sentences), Stage("mix", root / "mix", mix)]
    return {stage.folder.name: stage for stage in stages}


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True))


def preview(
    config: TransferConfig, inputs: Inputs, generator: Generator | None = None, translator: Translator | None = None
) -> str:
    """
    What would be made, if nothing were rejected, by what, how long the answers may take, and how long they may become.
    `generator` and `translator` are engines that the caller gives.

    Raises:
        `SDRRLError`: for a translator that is not there.
    """
    from sdrrl_trl.evaluation.compare import MIN_ITEMS
    from sdrrl_trl.plan import check_translators, describe_generator

    tokenizer, model = inputs.chat and inputs.chat.tokenizer, config.model_name_or_path
    if is_address(config.generator) and Path(model).is_dir():  # a server's name for it can also be any
        tokenizer = load_tokenizer(model)
    own, n = config.answer_source != "reference", len(inputs.seeds) - inputs.seeds.n_bad
    return render(
        "transfer_preview.txt",
        inputs=inputs,
        config=config,
        n=n,
        n_tokens=n * config.max_new_tokens if own else 0,
        generator=generator.describe()["engine"] if generator else own and describe_generator(config, n),
        translators={} if translator else check_translators(config, inputs),
        fertilities=fertilities(tokenizer, inputs.seeds, config) if tokenizer else {},
        max_length=MAX_LENGTH,
        n_held_out=n_held_out(n, config.test_size),
        min_items=MIN_ITEMS,
    )
