"""Sections of gpu.py on training: parity with TRL, time, memory, the divergence, the callbacks."""

import gc
import json
import os
import statistics
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from gpu_shared import DEVICE, HAS_GPU, WORDS, llama, measured, now
from trainer import rows


LOGGED = {"logging_steps": 1}
BATCHES = {"plain": {"per_device_train_batch_size": 8}, "packed": {"per_device_train_batch_size": 2, "packing": True}}


@contextmanager
def deterministic():
    """As far as PyTorch can: on an H100, two runs of the same trainer still differed after the first step."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def make(sizes, folder, ours, lora=False, attention="sdpa", **options):
    """SDRRLTrainer or SFTTrainer of the same model, on the same data."""
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from sdrrl_trl import SDRRLConfig, SDRRLTrainer

    options = {"max_steps": sizes["steps"], "max_length": sizes["max_length"], "save_strategy": "no", **options}
    options |= {"report_to": "none", "disable_tqdm": True, "use_cpu": not HAS_GPU, "bf16": HAS_GPU}
    cls, config = (SDRRLTrainer, SDRRLConfig) if ours else (SFTTrainer, SFTConfig)
    model, tokenizer = llama(sizes, folder, attention)
    data = rows(24 * sizes["steps"], sizes["text"])
    data = data if ours else data.select_columns(["prompt", "completion"])
    adapter = LoraConfig(r=16, lora_dropout=0.1, target_modules="all-linear") if lora else None
    args, test = config(str(folder / "out"), **options), data.select(range(16))
    trainer = cls(model, args, None, data, test, processing_class=tokenizer, peft_config=adapter)
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(trainer):
    """What a training logs at each step."""
    with deterministic():
        trainer.train()
    gc.collect()
    return trainer.state.log_history


def against_itself(sft, again, ours):
    """
    Largest difference of a step's loss from the first run's, relative, of a second run like it and of ours.

    The first loss must be equal to the bit, the others as near as ten times those of the second run, which are 0 where
    the kernels are deterministic. One run says little of how far they spread: three times were too few on an H200.
    """
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (sft, again, ours)]
    assert losses[0][0] == losses[1][0] == losses[2][0], losses
    spread, own = (max(abs(x / y - 1) for x, y in zip(run, losses[0], strict=True)) for run in losses[1:])
    assert len(losses[0]) > 1 and own <= 10 * spread, losses
    return f"{own:.1e}, of a second run without {spread:.1e}"


def parity(sizes, folder):
    """SDRRLTrainer with kinds and languages, without the divergence, as near SFTTrainer as that is to itself."""
    found = {}
    for name, lora in (("plain", False), ("packed", True)):
        options = {**LOGGED, **BATCHES[name]}
        runs = [logged(make(sizes, folder, ours, lora, **options)) for ours in (False, False, True)]
        found[f"{name}{', LoRA' if lora else ''}: largest difference of a loss"] = against_itself(*runs)
    return found


def race(trainers, n=15, rounds=3, warm_up=5):
    """Forward and backward of two trainers in turn: medians of the second over the first, and peaks of memory."""
    batches = []
    for trainer in trainers:  # each several times: prepared once, the same for both
        loader = trainer.get_train_dataloader()
        batches.append([batch for _, batch in zip(range(4), loader, strict=False)])
    times, memory = [[], []], [{}, {}]

    def step(side, i):
        trainer, batch = trainers[side], batches[side][i % len(batches[side])]
        inputs = {name: value.clone() if torch.is_tensor(value) else value for name, value in batch.items()}
        with trainer.accelerator.autocast():  # as the model has it in `train`
            trainer.training_step(trainer.model, inputs, (inputs["labels"] != -100).sum())
        trainer.model.zero_grad()

    for i in range(warm_up + n * rounds):  # the first ones compile Triton's kernels and fill the allocator
        for side in (0, 1):
            start = now()
            step(side, i)
            times[side].append(now() - start)
    for side in (0, 1):
        with measured(memory[side]):
            step(side, 0)
    medians = [[statistics.median(side[i : i + n]) for i in range(warm_up, len(side), n)] for side in times]
    seconds = statistics.median(medians[1])
    return {
        "time": statistics.median(b / a for a, b in zip(*medians, strict=True)),
        "time over the expected": seconds / expected(trainers[1]),
        "memory": memory[1]["MB"] / memory[0]["MB"],
        "ms a step, in turn": ", ".join(f"{1000 * x:.1f}" for pair in zip(*medians, strict=True) for x in pair),
    }


def expected(trainer):
    """Seconds of a step as `--dry_run` has them, see sdrrl_trl/plan.py."""
    from sdrrl_trl.plan import training_duration

    args, is_adapter = trainer.args, hasattr(trainer.model, "peft_config")
    n_tokens = args.train_batch_size * statistics.mean(map(len, trainer.train_dataset["input_ids"]))
    shape = trainer.model.num_parameters(), trainer.model.config.num_hidden_layers
    return training_duration(shape, n_tokens, 1, args, is_adapter, args.gradient_checkpointing)


def speed(sizes, folder):
    """SDRRLTrainer with kinds and languages over SFTTrainer; LoRA with the source language anchored over without."""
    attention = "flash_attention_2" if find_spec("flash_attn") else "sdpa"
    common, packed = {"gradient_checkpointing": False}, BATCHES["packed"] | {"attention": attention}
    anchor = {"kl_coef": 4.0, "anchor_languages": ["en"]}
    races = {
        "plain": [{"ours": False, **BATCHES["plain"]}, {"ours": True, **BATCHES["plain"]}],
        f"packed, {attention}": [{"ours": False, **packed}, {"ours": True, **packed}],
        f"anchored, packed, {attention}": [{"ours": True, "lora": True, **packed, **more} for more in ({}, anchor)],
    }
    found = {}
    for name, arms in races.items():
        result = race([make(sizes, folder, **common, **arm) for arm in arms])
        found |= {f"{name}: {key}": value for key, value in result.items()}
    return found


def losses(n, vocabulary, hidden_size, trains_head, dtype=torch.bfloat16):
    """Functions of the same loss, NLL + KL (of GKD the KL alone), their student's states, and what has a gradient."""
    from trl.experimental.gkd import GKDTrainer
    from trl.kernels import ChunkedLogProbFunction
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    from sdrrl_trl.trainer.divergence import Head, chunked_distillation

    torch.manual_seed(0)
    draw = [torch.randn(size, hidden_size, device=DEVICE) for size in (n, n, vocabulary)]
    # The same numbers in every data type: random ones are others in each
    teacher, student, frozen = (
        values.bfloat16().to(dtype) for values in (draw[0], draw[0] + 0.3 * draw[1], 3 / hidden_size**0.5 * draw[2])
    )
    student.requires_grad_()
    weight = frozen.clone().requires_grad_() if trains_head else frozen
    labels = torch.randint(vocabulary, (n,), device=DEVICE)

    def sdrrl(**options):
        return chunked_distillation(student, Head(weight), labels, teacher, Head(frozen), 1.0, **options).loss

    def trl():
        nll, *_ = ChunkedLogProbFunction.apply(
            student, weight, None, labels, 1.0, 32_768, None, 1.0, ("log_probs", "entropy", "is_top1")
        )
        kl, _ = ChunkedDivergenceFunction.apply(student, weight, None, teacher, frozen, None, 0.0)
        return -nll.sum() + kl.sum()

    def logits():
        return [(states @ head.T).to(torch.promote_types(dtype, torch.float32)) for states, head in both]

    both = [(student, weight), (teacher, frozen)]

    def gkd():
        return GKDTrainer.generalized_jsd_loss(*logits(), beta=0.0, reduction="sum")

    def dense():
        log_q, log_p = (values.log_softmax(-1) for values in logits())
        nll = torch.nn.functional.nll_loss(log_q, labels, reduction="sum")
        return nll + (log_p.exp() * (log_p - log_q)).sum()

    chunks = {f"sdrrl, chunks of {size}": lambda size=size: sdrrl(chunk_size=size) for size in (128, 256, 1024)}
    return {"sdrrl": sdrrl, **chunks, "TRL's kernels": trl, "GKD, KL alone": gkd, "dense": dense}, [student, weight]


CHECKED = {torch.float64: ["dense"], torch.float32: ["sdrrl"], torch.bfloat16: ["sdrrl", "TRL's kernels", "dense"]}


def kl(sizes, folder):
    """The divergence, forward and backward: time, memory, and the error against float64."""
    found, ratios = {}, {}
    for trains_head in (False, True):
        head, measures = ", trained head" if trains_head else "", {}
        functions, tensors = losses(*sizes["kl"], trains_head)
        tensors = [tensor for tensor in tensors if tensor.requires_grad]
        for name, function in functions.items():
            measures[name] = []
            for _ in range(sizes["kl_rounds"] + 1):  # the first one is to warm up
                measures[name].append({})
                try:
                    with measured(measures[name][-1]):
                        torch.autograd.grad(function(), tensors)
                except torch.OutOfMemoryError:
                    measures[name][-1] = {"seconds": float("nan"), "MB": float("nan")}
            seconds = statistics.median(each["seconds"] for each in measures[name][1:])
            ratios[name] = seconds, measures[name][-1]["MB"]
            found[f"{name}{head}"] = f"{1000 * seconds:.1f} ms, {ratios[name][1]:.0f} MB"
        for name, short in (("TRL's kernels", "trl"), ("GKD, KL alone", "gkd"), ("dense", "dense")):
            for i, measure in enumerate(("time", "memory")):
                if ratios[name][i] > 0:  # it fitted into the memory
                    found[f"{measure} over {short}{head}"] = ratios["sdrrl"][i] / ratios[name][i]
        del functions, tensors, function
        exact, wrong = None, {}
        for dtype, names in CHECKED.items():
            functions, tensors = losses(sizes["kl_checked"], *sizes["kl"][1:], trains_head, dtype)
            for name in names:
                loss = functions[name]()
                gradients = torch.autograd.grad(loss, [tensor for tensor in tensors if tensor.requires_grad])
                result = [loss.detach().double(), *(gradient.double() for gradient in gradients)]
                exact = exact or result  # the first one, in float64
                errors = [((x - y).norm() / y.norm()).item() for x, y in zip(result, exact, strict=True)]
                key = f"error of {name} in {str(dtype).removeprefix('torch.')}{head}"
                found[key], wrong[name, dtype] = f"loss {errors[0]:.1e}, gradients {max(errors[1:]):.1e}", max(errors)
        assert wrong["sdrrl", torch.float32] < 1e-4, wrong
        # Of what is rounded to bfloat16, the dense computation rounds as much
        assert wrong["sdrrl", torch.bfloat16] < 1.5 * wrong["dense", torch.bfloat16], wrong
    return found


def callbacks(sizes, folder):
    """LMEvalCallback and ForgettingCallback: the run with them is as near the one without as that is to itself."""
    from sdrrl_trl import ForgettingCallback, LMEvalCallback

    os.environ["SDRRL_DATA_DIR"] = str(folder / "data")
    (folder / "data" / "xnli").mkdir(parents=True)
    items = [{"premise": WORDS, "hypothesis": f"Number {i}.", "label": i % 3} for i in range(12)]
    (folder / "data" / "xnli" / "en.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    tasks = ["xnli_en", "sdrrl_xnli_gen_en"]

    options = {**LOGGED, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "learning_rate": 1e-3}
    runs = []
    for add in (False, False, True):
        trainer = make(sizes, folder, True, True, **options)
        if add:
            trainer.add_callback(LMEvalCallback(trainer, tasks, limit=6))
            trainer.add_callback(ForgettingCallback(trainer, bound=0.0))
        runs.append(logged(trainer))
    log = {name: value for entry in runs[2] for name, value in entry.items()}
    assert {"lm_eval/xnli_en/acc", "lm_eval/sdrrl_xnli_gen_en/accuracy"} <= log.keys(), sorted(log)
    assert log["eval_drift/source"] > 0
    found = {"largest difference of a loss": against_itself(*runs)}
    return found | {"drift, bits per byte": log["eval_drift/source"]}
