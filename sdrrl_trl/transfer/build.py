"""Builds the transfer set: generate, translate, filter, mix, publish."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from sdrrl_trl.engines import Generation, Generator, Translator
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.filters import reject_answer, reject_translation
from sdrrl_trl.transfer.generate import generate_answers
from sdrrl_trl.transfer.mix import Item, held_out, mix, parallel_records, records_of
from sdrrl_trl.transfer.publish import count_reasons, load_manifest, publish, summary
from sdrrl_trl.transfer.record import Record
from sdrrl_trl.transfer.seeds import Seed, read_parallel, read_seeds
from sdrrl_trl.transfer.store import Store, check_options, clear_stage, record_options
from sdrrl_trl.transfer.translate import Translations
from sdrrl_trl.utils import (
    SDRRLError,
    check_output_dir,
    fingerprint,
    locked,
    package_version,
    sha256,
    timed,
)


def build_transfer_set(
    config: TransferConfig, generator: Generator | None = None, translator: Translator | None = None
) -> Path:
    """
    Builds a transfer set, or goes on with one that was interrupted.

    Args:
        config ([`TransferConfig`]):
            What to build.
        generator ([`~sdrrl_trl.engines.Generator`], *optional*):
            Answers the questions. Default: `model_name_or_path` through transformers.
        translator ([`~sdrrl_trl.engines.Translator`], *optional*):
            Translates. Default: the engine named in `config.translator`.

    Returns:
        `Path`: the folder, which `datasets.load_dataset` opens with the splits `train` and `test`; beside them,
        `rejected.parquet` holds all that was dropped and why.

    Raises:
        `SDRRLError`: for bad input, before any model is loaded.
    """
    plan = Plan(config)
    if plan.is_done():
        print(f"build: {plan.folder} is complete, nothing to do", file=sys.stderr)
        return plan.folder
    if generator is None:
        from sdrrl_trl.engines.transformers import TransformersGenerator

        generator = TransformersGenerator(
            config.model_name_or_path, config.model_revision, config.dtype, config.max_new_tokens
        )
    if translator is None:
        from sdrrl_trl.engines.offline import FastTranslate

        translator = FastTranslate()
    with locked(plan.folder):
        plan.clear()  # only now that the engines are there
        _build(plan, generator, translator)
    return plan.folder


def _build(plan: "Plan", generator: Generator, translator: Translator) -> None:
    config, clock = plan.config, plan.folder / "timings.json"
    with Store(plan.stages / "generate", plan.generate_options) as store, timed(clock, "generate"):
        answers = generate_answers(plan.seeds, generator, store, config.system_prompt, config.batch_size)
    rejected: list[dict[str, Any]] = []
    good = _filter_answers(plan.seeds, answers, config.source_language, rejected)

    texts = [text for seed in good for text in (seed.question, answers[seed.id].text)]
    with Store(plan.stages / "translate", plan.translate_options) as store, timed(clock, "translate"):
        translations = Translations(store, config.source_language)
        for target in config.target_languages:
            translations.run(texts, translator, target)
    items = [_item(seed, answers[seed.id].text, translations, config, rejected) for seed in good]

    with timed(clock, "mix"):
        record_options(plan.stages / "mix", plan.mix_options, "mix")
        train, test, left_out = _split_and_mix(items, plan.sentences, rejected, config)
        facts = {
            "inputs": plan.generate_options | plan.translate_options | plan.mix_options,
            "engines": {"generator": generator.describe(), "translator": translator.describe()},
        }
        publish(config, train, test, rejected, facts, {"seeds": len(plan.seeds), "left_out": left_out})
    print(summary(load_manifest(plan.folder)), file=sys.stderr)


class Plan:
    """
    The checked inputs of a build: everything that can be wrong is found out here, before any model is loaded.

    Args:
        config ([`TransferConfig`]):
            What to build.
    """

    def __init__(self, config: TransferConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        self.stages = self.folder / "stages"
        self.seeds = read_seeds(config.seeds, config.limit)
        languages = [config.source_language, *config.target_languages]
        self.sentences = read_parallel(config.parallel, languages) if config.parallel else []
        check_output_dir(self.folder, needed_bytes=50_000_000 + 20_000 * len(self.seeds) * len(languages))
        # The mix follows from the other two stages, so it is done again with each of them
        self.again = {config.overwrite_stage, "mix"} if config.overwrite_stage else set()
        options = {"generate": self.generate_options, "translate": self.translate_options, "mix": self.mix_options}
        for stage in options.keys() - self.again:
            check_options(self.stages / stage, options[stage], stage)

    def clear(self) -> None:
        """Deletes the stages that are to be done again."""
        if self.again:
            (self.folder / "manifest.json").unlink(missing_ok=True)
            (self.folder / "timings.json").unlink(missing_ok=True)
        for stage in self.again:
            clear_stage(self.stages / stage, stage)

    @property
    def generate_options(self) -> dict[str, Any]:
        names = ("source_language", "model_name_or_path", "model_revision", "dtype", "system_prompt", "max_new_tokens")
        options = {name: getattr(self.config, name) for name in (*names, "batch_size")}
        options |= {"model": fingerprint(self.config.model_name_or_path)}
        return options | {"seeds_sha256": sha256(json.dumps([[seed.id, seed.question] for seed in self.seeds]))}

    @property
    def translate_options(self) -> dict[str, Any]:
        version = package_version(self.config.translator)
        return {"translator": self.config.translator, "translator_version": version}

    @property
    def mix_options(self) -> dict[str, Any]:
        names = ("target_languages", "proportions", "test_size", "seed")
        options = {name: getattr(self.config, name) for name in names}
        return options | {"parallel_sha256": sha256(json.dumps(self.sentences))}

    def is_done(self) -> bool:
        """Whether the set is complete; its files are checked against their hashes."""
        if self.again or not (self.folder / "manifest.json").exists():
            return False
        load_manifest(self.folder)
        return True


def _filter_answers(
    seeds: list[Seed], answers: dict[str, Generation], language: str, rejected: list[dict[str, Any]]
) -> list[Seed]:
    good, seen = [], set()
    for seed in seeds:
        reason = reject_answer(answers[seed.id], language)
        if reason is None and seed.key in seen:
            reason = "duplicate"
        if reason is None:
            good.append(seed)
            seen.add(seed.key)
        else:
            rejected.append(_rejected_row(seed.id, "generate", reason, language, seed.question, answers[seed.id].text))
    return good


def _item(
    seed: Seed, answer: str, translations: Translations, config: TransferConfig, rejected: list[dict[str, Any]]
) -> Item:
    accepted = {}
    for target in config.target_languages:
        question_t = translations.assemble(seed.question, target)
        answer_t = translations.assemble(answer, target)
        reasons = {
            "question": reject_translation(seed.question, question_t, target),
            "answer": reject_translation(answer, answer_t, target),
        }
        found = [f"{side}_{reason}" for side, reason in reasons.items() if reason]
        if found:
            rejected.append(_rejected_row(seed.id, "translate", found[0], target, question_t, answer_t))
        else:
            accepted[target] = (question_t, answer_t)
    return Item(seed.id, seed.key, seed.question, answer, accepted)


def _rejected_row(
    source_id: str, stage: str, reason: str, language: str, question: str, answer: str
) -> dict[str, str]:
    return {
        "source_id": source_id,
        "stage": stage,
        "reason": reason,
        "language": language,
        "question": question,
        "answer": answer,
    }


def _split_and_mix(
    items: list[Item], sentences: list[dict[str, str]], rejected: list[dict[str, Any]], config: TransferConfig
) -> tuple[list[Record], list[Record], dict[str, int]]:
    held_out_keys = held_out([item.key for item in items], config.test_size, config.seed)
    train, test = [], []
    for item in items:
        (test if item.key in held_out_keys else train).extend(records_of(item, config.source_language))
    names = {tag: LANGUAGES[tag].name for tag in (config.source_language, *config.target_languages)}
    train += parallel_records(sentences, config.source_language, config.target_languages, names)
    mixed = mix(train, config.proportions, config.seed)
    counts, used = (Counter(record.kind for record in records) for records in (train, mixed))
    empty = [kind for kind in config.proportions if not used[kind]]
    if empty:
        reasons = ", ".join(f"{reason} {n}" for reason, n in count_reasons(rejected).items()) or "nothing was rejected"
        available = ", ".join(f"{kind} {counts[kind]}" for kind in config.proportions)
        raise SDRRLError(
            f"The training set would have no record of the kinds {', '.join(empty)}. Available: {available}; "
            f"{len(held_out_keys)} questions are held out; rejected: {reasons}. Use more seeds, a larger "
            "`max_new_tokens` if many are truncated, or drop the kinds from `proportions`."
        )
    left_out = {kind: counts[kind] - used[kind] for kind in sorted(config.proportions) if counts[kind] > used[kind]}
    return mixed, test, left_out
