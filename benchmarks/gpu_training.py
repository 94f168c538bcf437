"""Sections of gpu.py on training: parity with TRL, time, memory, the divergence, the callbacks."""

import json
import os
import statistics
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from gpu_shared import DEVICE, HAS_GPU, WORDS, llama, measured, now
from trainer import rows


WARM_UP = 3  # steps: the first ones compile Triton's kernels and fill the allocator
LOGGED = {"logging_steps": 1}


@contextmanager
def deterministic():
    """Without it, the gradients of attention differ from run to run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def train(sizes, folder, ours, lora=False, attention="sdpa", callbacks=None, **options):
    """The trainer's log, median seconds of a step, and MB, of SDRRLTrainer or SFTTrainer on the same data."""
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sdrrl_trl import SDRRLConfig, SDRRLTrainer

    starts, seconds, found = [], [], {}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            starts.append(now())

        def on_step_end(self, *_, **__):
            seconds.append(now() - starts[-1])

    options = {"max_steps": sizes["steps"], "max_length": sizes["max_length"], "save_strategy": "no", **options}
    options |= {"report_to": "none", "disable_tqdm": True, "use_cpu": not HAS_GPU, "bf16": HAS_GPU}
    cls, config = (SDRRLTrainer, SDRRLConfig) if ours else (SFTTrainer, SFTConfig)
    with measured(found):
        model, tokenizer = llama(sizes, folder, attention)
        data = rows(24 * sizes["steps"], sizes["text"])
        data = data if ours else data.select_columns(["prompt", "completion"])
        adapter = LoraConfig(r=16, lora_dropout=0.1, target_modules="all-linear") if lora else None
        args, test = config(str(folder / "out"), **options), data.select(range(16))
        trainer = cls(model, args, None, data, test, processing_class=tokenizer, peft_config=adapter)
        for callback in (Clock(), *(callbacks(trainer) if callbacks else ())):
            trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return found | {"log": trainer.state.log_history, "seconds": statistics.median(seconds[WARM_UP:])}


def steps(run):
    """Loss and gradient norm of each step."""
    return [(entry["loss"], entry["grad_norm"]) for entry in run["log"] if "loss" in entry]


def race(arms, rounds=2):
    """Ratios of time and memory of the second arm to the first, run in turn."""
    times, memory = [], []
    for _ in range(rounds):
        for arm in arms:
            found = arm()
            times.append(found["seconds"])
            memory.append(found["MB"])
    medians = [statistics.median(times[i::2]) for i in range(2)]
    seconds = ", ".join(f"{value:.4f}" for value in times)
    return {"time": medians[1] / medians[0], "memory": memory[1] / memory[0], "s a step, in turn": seconds}


BATCHES = {"plain": {"per_device_train_batch_size": 8}, "packed": {"per_device_train_batch_size": 2, "packing": True}}


def parity(sizes, folder):
    """SDRRLTrainer with kinds and languages, without the divergence, against SFTTrainer: to the bit, with LoRA too."""
    found = {}
    for name, lora in (("plain", False), ("packed", False), ("packed", True)):
        with deterministic():
            sft, ours = (steps(train(sizes, folder, ours, lora, **LOGGED, **BATCHES[name])) for ours in (False, True))
        differences = [abs(x - y) for a, b in zip(sft, ours, strict=True) for x, y in zip(a, b, strict=True)]
        assert len(sft) == sizes["steps"] and max(differences) == 0, (name, lora, sft, ours)
        found[f"{name}{', LoRA' if lora else ''}: largest difference of a loss or norm"] = max(differences)
    return found


def speed(sizes, folder):
    """SDRRLTrainer with kinds and languages, without the divergence, over SFTTrainer."""
    found = {}
    for name, options in BATCHES.items():
        if name == "packed" and find_spec("flash_attn"):
            options = options | {"attention": "flash_attention_2"}
        arms = [lambda ours=ours, options=options: train(sizes, folder, ours, **options) for ours in (False, True)]
        found |= {f"{name}: {key}": value for key, value in race(arms).items()}
    return found


def anchored(sizes, folder):
    """LoRA, packed, the source language anchored, over the same without."""
    anchor = {"kl_coef": 4.0, "anchor_languages": ["en"]}
    arms = [lambda more=more: train(sizes, folder, True, True, **BATCHES["packed"], **more) for more in ({}, anchor)]
    return race(arms)


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

    chunks = {f"sdrrl, chunks of {size}": lambda size=size: sdrrl(chunk_size=size) for size in (256, 512, 1024)}
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
    """LMEvalCallback and ForgettingCallback: the run is to the bit the one without them."""
    from sdrrl_trl import ForgettingCallback, LMEvalCallback

    os.environ["SDRRL_DATA_DIR"] = str(folder / "data")
    (folder / "data" / "xnli").mkdir(parents=True)
    items = [{"premise": WORDS, "hypothesis": f"Number {i}.", "label": i % 3} for i in range(12)]
    (folder / "data" / "xnli" / "en.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    tasks = ["xnli_en", "sdrrl_xnli_gen_en"]

    def both(trainer):
        return [LMEvalCallback(trainer, tasks, limit=6), ForgettingCallback(trainer, bound=0.0)]

    options = {**LOGGED, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "learning_rate": 1e-3}
    with deterministic():
        runs = [train(sizes, folder, True, True, callbacks=added, **options) for added in (None, both)]
    without, watched = map(steps, runs)
    assert len(without) == 4 and without == watched, (without, watched)
    log = {name: value for entry in runs[1]["log"] for name, value in entry.items()}
    assert {"lm_eval/xnli_en/acc", "lm_eval/sdrrl_xnli_gen_en/accuracy"} <= log.keys(), sorted(log)
    assert log["eval_drift/source"] > 0
    return {"losses with and without": "equal to the bit", "drift, bits per byte": log["eval_drift/source"]}
