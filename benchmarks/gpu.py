"""
What only a GPU can tell: bit-parity with TRL, time and memory, the launchers, and that nothing is on the wrong device.

    python benchmarks/gpu.py [--quick] [--only NAME ...]    # needs `pip install -e '.[test]'`, no network, no weights

Models are random, of the shapes and sizes of real ones. A section that fails does not stop the others; its error is
printed at the end, and the exit status is 1. The last line is one JSON object. `--quick` is for a computer without a
GPU: tiny sizes, whose times mean nothing. ZeRO-3 needs `deepspeed`. Packed rows are
timed with FlashAttention 2 where that is installed, else with `sdpa`, as TRL does.
"""

import argparse
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch


# Libraries are imported in the sections: of one that is missing, the others shall not fail
ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # in the place of this folder, whose evaluate.py would hide the package `evaluate`
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
LLAMA_1B = {"vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192}
LLAMA_1B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096}
M2M_418M = {"vocab_size": 128_112, "d_model": 1024, "layers": 12, "heads": 16, "ffn_dim": 4096}
FULL = {"llama": LLAMA_1B, "m2m": M2M_418M, "steps": 10, "max_length": 2048, "text": 24, "kl": (8192, 151_936, 2048)}
FULL |= {"kl_checked": 512, "kl_rounds": 3, "questions": 256, "new_tokens": 128}
LLAMA_TINY = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64}
LLAMA_TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
M2M_TINY = {"vocab_size": 1000, "d_model": 32, "layers": 1, "heads": 2, "ffn_dim": 64}
QUICK = {"llama": LLAMA_TINY, "m2m": M2M_TINY, "steps": 6, "max_length": 512, "text": 3, "kl": (128, 1000, 32)}
QUICK |= {"kl_checked": 64, "kl_rounds": 1, "questions": 16, "new_tokens": 16}
WARM_UP = 3  # steps: the first ones compile Triton's kernels and fill the allocator
TEXT = "the sky looks blue because air scatters blue light more than red light "
KINDS = [("source", "en", "en"), ("target", "pt", "pt"), ("source_to_target", "en", "pt")]


def now():
    """Seconds, once the GPU has done what it was given."""
    if HAS_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def measured(found):
    """Puts seconds and the peak of extra GPU memory in MB into `found`."""
    gc.collect()
    if HAS_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if HAS_GPU else 0
    start = now()
    yield
    found["seconds"] = now() - start
    found["MB"] = (torch.cuda.max_memory_allocated() - before) / 2**20 if HAS_GPU else 1.0


@contextmanager
def deterministic():
    """Without it, the gradients of attention differ from run to run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def rows(n, times):
    from datasets import Dataset

    columns = ("kind", "question_language", "answer_language")
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Why is the sky blue, number {i}?"}],
                "completion": [{"role": "assistant", "content": TEXT * (1 + 7 * i % times)}],
            }
            | dict(zip(columns, KINDS[i % len(KINDS)], strict=True))
            for i in range(n)
        ]
    )


def tiny_model(folder):
    """Folder of the tests' smallest model, whose tokenizer all models here share."""
    from conftest import make_tiny_model

    path = folder / "tiny"
    if not path.exists():
        make_tiny_model(path)
    return str(path)


def llama(sizes, folder, attention="sdpa"):
    """A random model in bfloat16, the same each time, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model(folder))
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    with torch.device(DEVICE):
        config = LlamaConfig(**sizes["llama"], **ids, tie_word_embeddings=True)
        options = {"dtype": torch.bfloat16, "attn_implementation": attention}
        return AutoModelForCausalLM.from_config(config, **options), tokenizer


def train(sizes, folder, ours, lora=False, logging_steps=10, attention="sdpa", **options):
    """Losses and gradient norms of the steps, median seconds of a step, and MB."""
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sdrrl_trl import SDRRLConfig, SDRRLTrainer

    starts, seconds = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            starts.append(now())

        def on_step_end(self, *_, **__):
            seconds.append(now() - starts[-1])

    found = {}
    cls, config = (SDRRLTrainer, SDRRLConfig) if ours else (SFTTrainer, SFTConfig)
    options = {"max_steps": sizes["steps"], "max_length": sizes["max_length"], **options}
    args = config(
        str(folder / "out"),
        report_to="none",
        save_strategy="no",
        logging_steps=logging_steps,
        disable_tqdm=True,
        use_cpu=not HAS_GPU,
        bf16=HAS_GPU,
        **options,
    )
    with measured(found):
        model, tokenizer = llama(sizes, folder, attention)
        data = rows(24 * sizes["steps"], sizes["text"])
        data = data if ours else data.select_columns(["prompt", "completion"])
        adapter = LoraConfig(r=16, target_modules="all-linear") if lora else None
        trainer = cls(model, args, train_dataset=data, processing_class=tokenizer, peft_config=adapter)
        trainer.add_callback(Clock())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    found["log"] = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]
    return found | {"seconds": statistics.median(seconds[WARM_UP:])}


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
    for name, options in BATCHES.items():
        for lora in (False, True):
            runs = ({"ours": ours, "lora": lora, "logging_steps": 1, **options} for ours in (False, True))
            with deterministic():
                sft, ours = (train(sizes, folder, **run)["log"] for run in runs)
            differences = [abs(x - y) for a, b in zip(sft, ours, strict=True) for x, y in zip(a, b, strict=True)]
            found[f"{name}{', LoRA' if lora else ''}: largest difference of losses and gradient norms"] = max(
                differences
            )
            assert len(sft) == sizes["steps"] and max(differences) == 0, (name, lora, sft, ours)
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


def transfer_set(folder):
    """Folder of a transfer set of 40 questions, by scripted engines."""
    from stub_engines import StubTranslator, build, sentence

    seeds = [json.dumps({"id": f"q{i}", "instruction": sentence(str(i), 8)}) for i in range(40)]
    (folder / "seeds.jsonl").write_text("\n".join(seeds))
    words = "".join(f"{word}\t{other}\n" for word, other in StubTranslator.VOCABULARY.items())
    (folder / "lexicon.tsv").write_text(words)
    return build(str(folder / "seeds.jsonl"), folder / "transfer_set")


TRAINING = "--packing --max_length 256 --max_steps 4 --learning_rate 1e-2 --report_to none".split()
TRAINING += [] if HAS_GPU else ["--use_cpu", "--bf16", "False"]
ANCHORED = "--use_peft --lora_target_modules all-linear --kl_coef 4 --anchor_languages en".split()


def launch(sizes, folder):
    """`accelerate launch` with examples/accelerate and one process: the script, fully, and `sdrrl train`, with LoRA."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    data, model, running = str(transfer_set(folder)), tiny_model(folder), {}
    script = [f"{ROOT}/examples/scripts/sdrrl.py", "--dataset_name", data, "--kl_coef", "0.5"]
    cli = ["-m", "sdrrl_trl", "train", "--transfer_set", data, *ANCHORED]
    names = ["ddp", "fsdp2", *(["zero3"] if find_spec("deepspeed") else [])]
    for name in names:
        for kind, arguments in (("script", script), ("sdrrl train", cli)):
            command = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--config_file"]
            command += [f"{ROOT}/examples/accelerate/{name}.yaml"]
            command += ["--main_process_port", str(29_600 + len(running))] if HAS_GPU else ["--cpu"]
            output = folder / f"{name}, {kind}"
            command += [*arguments, *TRAINING, "--model_name_or_path", model, "--output_dir", str(output)]
            running[output] = start(command, folder / f"log {len(running)}")
            if not HAS_GPU:  # two processors have enough to do
                running[output][0].wait()
    found = {} if "zero3" in names else {"zero3": "skipped: no deepspeed"}
    before = AutoModelForCausalLM.from_pretrained(model)
    for output, process in running.items():
        log = finish(*process)
        if output.name.endswith("script"):
            after = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
            changes = [(a - b).abs().max() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
        else:  # at the start, the second matrix of LoRA is zero
            after = AutoPeftModelForCausalLM.from_pretrained(output, dtype=torch.float32).named_parameters()
            changes = [parameter.abs().max() for name, parameter in after if "lora_B" in name]
        assert changes and all(0 < change < 1 for change in changes), (output, changes, log[-3000:])
        found[output.name] = "trained, saved, loaded"
    return found


def start(arguments, log):
    """A Python process, and the file of what it prints."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        options = {"env": environment, "stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen([sys.executable, *arguments], **options), log


def finish(process, log):
    """What a process has printed. One that hangs is ended, with those that it has started."""
    try:
        process.wait(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    text = log.read_text(errors="replace")
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(process.args)} failed with {process.returncode}:\n{text[-4000:]}")
    return text


def questions(n):
    return [[{"role": "user", "content": f"{i}: " + TEXT * (1 + i % 4)}] for i in range(n)]


def generation(sizes, folder):
    """Tokens a second of our engine, greedy and sampled, over `model.generate` in batches of 32."""
    from sdrrl_trl.engines import Sampling
    from sdrrl_trl.engines.transformers import TransformersGenerator

    path = folder / "llama"
    for part in llama(sizes, folder):
        part.save_pretrained(path)
    asked, n = questions(sizes["questions"]), sizes["new_tokens"]
    engine = TransformersGenerator(str(path), Sampling(n, temperature=0.0))
    assert engine.model.device.type == DEVICE and engine.model.dtype == torch.bfloat16
    assert engine.tokenizer.padding_side == "left"

    @torch.inference_mode()
    def plain():
        for i in range(0, len(asked), 32):
            texts = engine.tokenizer.apply_chat_template(
                asked[i : i + 32], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            engine.model.generate(**texts.to(DEVICE), max_new_tokens=n)

    def ours(temperature):
        engine.sampling = Sampling(n, temperature=temperature)
        return engine.generate(asked)

    speeds = {}
    engine.generate(asked[:2])
    arms = {"plain": plain, "greedy": lambda: ours(0.0), "sampled": lambda: ours(1.0)}
    for name, arm in arms.items():
        measure = {}
        with measured(measure):
            arm()
        speeds[name] = len(asked) * n / measure["seconds"]  # a random model goes on to the limit
        print(f"  {name}: {speeds[name]:.0f} tokens/s, {measure['MB']:.0f} MB", flush=True)
    found = {f"{name}: tokens/s": round(value) for name, value in speeds.items()}
    found |= {f"{name} over plain": speeds[name] / speeds["plain"] for name in ("greedy", "sampled")}
    # Whatever else is in the batch, a row is answered the same: mostly, as its logits differ in their last bits
    small = TransformersGenerator(tiny_model(folder), Sampling(8 * n, temperature=1.0), dtype="float32")
    alone = [small.generate([each])[0] for each in asked[:8]]
    found["float32: same sample alone and in a batch"] = sum(
        a == b for a, b in zip(small.generate(asked), alone, strict=False)
    ) / len(alone)
    found["of which ended by themselves"] = sum(answer.finish_reason == "stop" for answer in alone)
    assert found["float32: same sample alone and in a batch"] >= 0.75
    return found


def translation(sizes, folder):
    """Tokens a second of the seq2seq translator, in float32 and bfloat16."""
    from test_seq2seq import corpus
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=600, special_tokens=specials))
    state = json.loads(bpe.to_str())["model"]
    tokenizer = NllbTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])
    shape, speeds = dict(sizes["m2m"]), {}
    parts = {name: shape.pop(name) for name in ("layers", "heads", "ffn_dim")}
    for side in ("encoder", "decoder"):
        shape |= {f"{side}_layers": parts["layers"], f"{side}_ffn_dim": parts["ffn_dim"]}
        shape |= {f"{side}_attention_heads": parts["heads"]}
    torch.manual_seed(0)
    with torch.device(DEVICE):
        config = M2M100Config(**shape, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
        model = M2M100ForConditionalGeneration(config)
    texts = [question[0]["content"] for question in questions(sizes["questions"])]
    for dtype in (torch.float32, torch.bfloat16):
        path = folder / f"nllb-{dtype}"
        model.to(dtype).save_pretrained(path)
        tokenizer.save_pretrained(path)
        engine = Seq2SeqTranslator(str(path))
        assert engine.model.device.type == DEVICE and engine.model.dtype == dtype
        engine.translate(texts[:2], "en", "pt")
        n_tokens = sum(engine.limit(ids) for ids in engine.encode(texts, "en", "pt"))  # it never ends by itself
        measure = {}
        with measured(measure):
            engine.translate(texts, "en", "pt")
        speeds[str(dtype)] = n_tokens / measure["seconds"]
    speeds["bfloat16 over float32"] = speeds["torch.bfloat16"] / speeds["torch.float32"]
    return speeds


def callbacks(sizes, folder):
    """LMEvalCallback and ForgettingCallback: the run is to the bit the one without them."""
    from peft import LoraConfig
    from transformers import PrinterCallback

    from sdrrl_trl import ForgettingCallback, LMEvalCallback, SDRRLConfig, SDRRLTrainer

    os.environ["SDRRL_DATA_DIR"] = str(folder / "data")
    (folder / "data" / "xnli").mkdir(parents=True)
    items = [{"premise": TEXT, "hypothesis": f"Number {i}.", "label": i % 3} for i in range(12)]
    (folder / "data" / "xnli" / "en.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    logs = []
    for watched in (False, True):
        args = SDRRLConfig(
            str(folder / "out"),
            max_steps=4,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            learning_rate=1e-2,
            report_to="none",
            save_strategy="no",
            use_cpu=not HAS_GPU,
            bf16=HAS_GPU,
            disable_tqdm=True,
        )
        lora = LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear")
        data = {"train_dataset": rows(32, 3), "eval_dataset": rows(12, 3)}
        trainer = SDRRLTrainer(tiny_model(folder), args, **data, peft_config=lora)
        trainer.remove_callback(PrinterCallback)
        if watched:
            trainer.add_callback(LMEvalCallback(trainer, ["xnli_en", "sdrrl_xnli_gen_en"], limit=6))
            trainer.add_callback(ForgettingCallback(trainer, bound=0.0))
        with deterministic():
            trainer.train()
        logs.append(trainer.state.log_history)
    losses = [[(entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry] for log in logs]
    assert len(losses[0]) == 4 and losses[0] == losses[1], losses
    names = {name for entry in logs[1] for name in entry}
    assert {"eval_drift/source", "lm_eval/xnli_en/acc", "lm_eval/sdrrl_xnli_gen_en/accuracy"} <= names, sorted(names)
    drift = [entry["eval_drift/source"] for entry in logs[1] if "eval_drift/source" in entry]
    return {"losses with and without": "equal to the bit", "drift in bits per byte": str(drift)}


def chain(sizes, folder):
    """Answers and translations by scripted engines; `sdrrl train` and `sdrrl evaluate` on the device."""
    data, model, scores = str(transfer_set(folder)), tiny_model(folder), folder / "scores"
    train_it = [
        "-m",
        "sdrrl_trl",
        "train",
        "--transfer_set",
        data,
        "--model_name_or_path",
        model,
        *ANCHORED,
        *TRAINING,
    ]
    train_it += ["--forgetting_bound", "0.05", "--output_dir", str(folder / "tuned")]
    finish(*start(train_it, folder / "log of train"))
    evaluate = ["-m", "sdrrl_trl", "evaluate", "--models", f"base={model}", f"tuned={folder / 'tuned'}"]
    evaluate += ["--transfer_set", data, "--tasks", "sdrrl_heldout", "--output_dir", str(scores)]
    log = finish(*start(evaluate, folder / "log of evaluate"))
    assert len(list(scores.rglob("results_*.json"))) == 2, log[-3000:]
    return {"train, evaluate": "ran"}


SECTIONS = (parity, speed, anchored, kl, launch, generation, translation, callbacks, chain)


def main():
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a CPU, about two minutes")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="sections (default: all)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of what is not deterministic, among others
    random.seed(0)
    device = torch.cuda.get_device_name() if HAS_GPU else "CPU"
    results, errors = {}, {}
    for section in SECTIONS:
        if section.__name__ not in options.only:
            continue
        begin = now()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = results[section.__name__] = section(QUICK if options.quick else FULL, Path(folder))
            except Exception:  # of whatever kind: the other sections shall run
                found, errors[section.__name__] = {"FAILED": "see below"}, traceback.format_exc()
        gc.collect()  # the models of a failed section are in its error
        print(f"{section.__name__} ({now() - begin:.0f} s): {section.__doc__}", flush=True)
        for name, value in found.items():
            print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}", flush=True)
    for name, error in errors.items():
        print(f"\n{name} failed:\n{error}", flush=True)
    ratios = {
        f"{section}: {name}": round(value, 4) if isinstance(value, float) else value
        for section, found in results.items()
        for name, value in found.items()
    }
    versions = {name: version(name) for name in ("torch", "trl", "transformers", "peft", "accelerate")}
    print(
        json.dumps({"benchmark": "gpu", "device": device, "failed": [*errors], "ratios": ratios, "versions": versions})
    )
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
