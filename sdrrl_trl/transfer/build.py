"""Builds the transfer set: answer, translate, switch, mix, publish."""

import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState

from sdrrl_trl.engines import Generator, Translator
from sdrrl_trl.plan import check_translators, describe_generator
from sdrrl_trl.stages import clear_stage, write_options
from sdrrl_trl.transfer.answer import answer_seeds, whole_answers
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.contamination import find_items
from sdrrl_trl.transfer.inputs import Inputs, check_inputs, preview, sentences_of
from sdrrl_trl.transfer.lexicon import Lexicon, translate_words
from sdrrl_trl.transfer.mix import Mix, cells
from sdrrl_trl.transfer.parallel import check_sentences
from sdrrl_trl.transfer.publish import is_non_commercial, load_manifest, publish, summary
from sdrrl_trl.transfer.select_engines import make_generator, make_translator
from sdrrl_trl.transfer.shards import is_complete, map_shards
from sdrrl_trl.transfer.translate import translate_answers
from sdrrl_trl.utils import locked, read_json, timed, write_json


def build_transfer_set(
    config: TransferConfig, generator: Generator | None = None, translator: Translator | None = None
) -> Path:
    """
    Builds a transfer set, or goes on with one that was interrupted. Under `torchrun` or `accelerate launch`, the
    processes share the work; the result is the same.

    Args:
        config ([`TransferConfig`]):
            What to build.
        generator ([`~sdrrl_trl.engines.Generator`], *optional*):
            Answers the questions. Default: the engine named in `config.generator`.
        translator ([`~sdrrl_trl.engines.Translator`], *optional*):
            Translates. Default: the engine named in `config.translator`.

    Returns:
        `Path`: the folder, which `datasets.load_dataset` opens with the splits `train` and `test`; beside them,
        `rejected.parquet` holds all that was dropped and why.

    Raises:
        `SDRRLError`: for bad input, before any model is loaded.
    """
    folder, inputs = Path(config.output_dir), check_inputs(config, generator, translator)
    if config.dry_run:
        print(preview(config, inputs, generator, translator))
        return folder
    if not config.stages_to_do_again and (folder / "manifest.json").exists():
        load_manifest(folder)  # tells if a file was lost
        print(f"build: {folder} is complete, nothing to do", file=sys.stderr)
        return folder
    if translator is None:
        check_translators(config)
    # Processes wait for each other at the end of a stage, however long the slowest takes
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    state.wait_for_everyone()  # none writes before all have looked
    n, answer = len(inputs.seeds), inputs.stages["answer"]
    answered = is_complete(answer, config.shard_size, n) and "answer" not in config.stages_to_do_again
    if state.is_main_process and generator is None and config.answer_source != "reference" and not answered:
        expected = f"at most {n * config.max_new_tokens:,} tokens; {describe_generator(config, n)}"
        print(f"answer: {expected}", file=sys.stderr, flush=True)
    generator = None if config.answer_source == "reference" else generator or make_generator(config)
    translator = translator or make_translator(config, generator)
    # One lock for all processes of this build
    with locked(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            _clear(config, inputs)  # only now that the engines are there
        state.wait_for_everyone()
        build(config, inputs, generator, translator)
        state.wait_for_everyone()
    return folder


def build(config: TransferConfig, inputs: Inputs, generator: Generator | None, translator: Translator) -> None:
    """The stages, one after the other, each from the files of the one before. All processes run it together."""
    source, stages, size = config.source_language, inputs.stages, config.shard_size
    answer = partial(answer_seeds, generator=generator, config=config, benchmarks=_find_items(config, inputs))
    map_shards(inputs.seeds, answer, stages["answer"], size, len(inputs.seeds))
    answers = stages["answer"].folder
    # Translated without the bad ones, so that their number is not that of the questions
    n_whole = sum(1 for _ in whole_answers(answers))
    for target in config.target_languages:
        translate = partial(translate_answers, translator=translator, source=source, target=target)
        map_shards(whole_answers(answers), translate, stages[f"translate_{target}"], size, n_whole)
    if config.parallel:
        check = partial(check_sentences, source=source, system=config.system_prompt)
        map_shards(sentences_of(config), check, stages["parallel"], size, inputs.n_sentences)
    # The choice needs all rows, and takes little time beside the engines
    if PartialState().is_main_process:
        with timed(Path(config.output_dir) / "timings.json", "mix"):
            made = {target for target in config.lexicon if target not in inputs.lexicons}
            lexicons = inputs.lexicons | {target: _make_lexicon(inputs, translator, source, target) for target in made}
            mix = Mix(config, Path(config.output_dir) / "stages", lexicons)
            _choose_and_publish(config, inputs, mix, generator, translator)
        print(summary(load_manifest(Path(config.output_dir))), file=sys.stderr)


def _find_items(config: TransferConfig, inputs: Inputs) -> dict[str, str]:
    """The items of benchmarks among the questions, found once: data that come later must not change the rows."""
    path, state = _items_path(config), PartialState()
    if state.is_main_process and not path.exists():
        write_json(path, find_items(inputs.seeds, config.source_language))
    state.wait_for_everyone()
    return read_json(path)["found"]


def _items_path(config: TransferConfig) -> Path:
    return Path(config.output_dir) / "stages" / "benchmarks.json"


def _make_lexicon(inputs: Inputs, translator: Translator, source: str, target: str) -> Lexicon:
    """A word list by the translator of the words of all answers, in a file beside their translations."""
    path = inputs.stages[f"translate_{target}"].folder / "lexicon.json"
    if not path.exists():
        answers = whole_answers(inputs.stages["answer"].folder)
        texts = (text for answer in answers for text in (*answer.turns, answer.text))
        write_json(path, translate_words(texts, translator, source, target))
    return read_json(path)


def _choose_and_publish(
    config: TransferConfig, inputs: Inputs, mix: Mix, generator: Generator | None, translator: Translator
) -> None:
    chosen, available = mix.choose(), mix.available
    # Only now: a choice that failed leaves the old set under its old options. The manifest goes first, for a set must
    # not look complete under options that it was not made with
    (Path(config.output_dir) / "manifest.json").unlink(missing_ok=True)
    write_options(inputs.stages["mix"].folder, inputs.stages["mix"].options, "mix", ())
    if config.size and sum(chosen.values()) < config.size - len(chosen):
        missing = f"only {sum(chosen.values())} of {config.size} training records can be made; available: "
        print(f"warning: {missing}{cells(available)}", file=sys.stderr)
    n_made, n_planned = sum(chosen.values()), sum(inputs.quotas.values())
    if 2 * n_made < n_planned:
        cut = f"of {len(inputs.seeds)} answers, {mix.n_truncated} were cut off and so not translated (raise "
        cut += "`max_new_tokens`, or ask for short ones in `system_prompt`, without naming a language); "
        why = f"{cut if mix.n_truncated else ''}what was rejected stands below"
        print(f"warning: {n_made} training records, where there could be {n_planned}: {why}", file=sys.stderr)
    generator_facts = {"engine": "reference answers"} if generator is None else generator.describe()
    engines = {"generator": generator_facts, "translator": translator.describe()}
    licence = engines["translator"].get("licence", "not stated")
    if is_non_commercial(licence):
        print(f"warning: the translator is under {licence}: so is what is trained on its output", file=sys.stderr)
    left_out = {" ".join(cell): available[cell] - n for cell, n in sorted(chosen.items()) if available[cell] > n}
    counts = {"seeds": len(inputs.seeds), "left_out": left_out, "truncated": mix.n_truncated, "rejected": mix.rejected}
    counts["benchmarks"] = read_json(_items_path(config))["checked"]
    facts = {
        "inputs": {name: value for stage in inputs.stages.values() for name, value in stage.options.items()},
        "engines": engines,
        "licences": {"translator": licence},
        "counts": counts,
    }
    publish(config, mix.rows(), facts)


def _clear(config: TransferConfig, inputs: Inputs) -> None:
    """Deletes the stages that are to be done again."""
    if config.stages_to_do_again <= {"mix"}:  # it has nothing but its options, which are replaced with the set
        return
    folder = Path(config.output_dir)
    (folder / "manifest.json").unlink(missing_ok=True)
    if (folder / "timings.json").exists():
        seconds = read_json(folder / "timings.json").items()
        write_json(folder / "timings.json", {name: s for name, s in seconds if name not in config.stages_to_do_again})
    if "answer" in config.stages_to_do_again:
        _items_path(config).unlink(missing_ok=True)
    for stage in inputs.stages.values():
        if stage.name in config.stages_to_do_again:
            clear_stage(stage.folder, stage.name)
