"""Sections of gpu.py on engines and commands: speed of answers and translations, launchers, the command line."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import torch
from gpu_shared import DEVICE, DTYPE, HAS_GPU, ROOT, WORDS, llama, measured, tiny_model


def questions(n):
    return [[{"role": "user", "content": f"{i}: " + WORDS * (1 + i % 4)}] for i in range(n)]


def generation(sizes, folder):
    """Tokens a second of our engine, greedy and sampled, over `model.generate` in batches of 32."""
    from sdrrl_trl.engines import Sampling
    from sdrrl_trl.engines.transformers import TransformersGenerator
    from sdrrl_trl.plan import duration

    path = folder / "llama"
    for part in llama(sizes, folder):
        part.save_pretrained(path)
    asked, n = questions(sizes["questions"]), sizes["new_tokens"]
    engine = TransformersGenerator(str(path), Sampling(n, temperature=0.0))
    assert engine.model.device.type == DEVICE and engine.model.dtype == DTYPE
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
    arms = {"plain": plain, "greedy": lambda: ours(0.0), "sampled": lambda: ours(1.0)}
    for name, arm in arms.items():
        measure = {}
        arm()  # the same once before: the first of these shapes pays for kernels and for the cache of the keys
        with measured(measure):
            arm()
        speeds[name] = len(asked) * n / measure["seconds"]  # a random model goes on to the limit
        print(f"  {name}: {speeds[name]:.0f} tokens/s, {measure['MB']:.0f} MB", flush=True)
    found = {f"{name}: tokens/s": round(value) for name, value in speeds.items()}
    found |= {f"{name} over plain": speeds[name] / speeds["plain"] for name in ("greedy", "sampled")}
    # As `--dry_run` has it, see sdrrl_trl/plan.py
    shape, dtype = (engine.model.num_parameters(), engine.model.config.num_hidden_layers), str(DTYPE)
    expected = duration(shape, 0, len(asked) * n, 0, min(64, len(asked)), dtype.removeprefix("torch."))
    found["greedy: time over the expected"] = len(asked) * n / speeds["greedy"] / expected
    # Whatever else is in the batch, a row is answered the same: mostly, as its logits differ in their last bits
    small = TransformersGenerator(tiny_model(folder), Sampling(2 * n), dtype="float32")
    alone = [small.generate([each])[0] for each in asked[:8]]
    same = sum(x == y for x, y in zip(small.generate(asked[:64]), alone, strict=False))
    found["float32: of 8 samples, the same alone and in a batch"] = same
    found["float32: ended by themselves"] = sum(answer.finish_reason == "stop" for answer in alone)
    assert same >= 6
    return found


def translation(sizes, folder):
    """Tokens a second of the seq2seq translator, in float32 and bfloat16."""
    from test_seq2seq import corpus
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator
    from sdrrl_trl.plan import duration

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
        engine.translate(texts, "en", "pt")  # to warm up, on the same shapes
        n_tokens = sum(engine.limit(ids) for ids in engine.encode(texts, "en", "pt"))  # it never ends by itself
        measure = {}
        with measured(measure):
            engine.translate(texts, "en", "pt")
        name = str(dtype).removeprefix("torch.")
        speeds[name] = n_tokens / measure["seconds"]
        # One half of the weights reads, the other one writes
        shape = engine.model.num_parameters() / 2, engine.model.config.num_hidden_layers
        expected = duration(shape, n_tokens, n_tokens, 0, min(64, len(texts)), name)
        speeds[f"{name}: time over the expected"] = measure["seconds"] / expected
    speeds["bfloat16 over float32"] = speeds["bfloat16"] / speeds["float32"]
    return speeds


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
CONFIGURATIONS = ["ddp", "fsdp2", *(["zero3"] if find_spec("deepspeed") else [])]
ANCHORED = (
    "--forgetting_bound 0.05 --use_peft --lora_target_modules all-linear --kl_coef 4 --anchor_languages en".split()
)


def commands(sizes, folder):
    """`sdrrl train` and `evaluate`; `accelerate launch`, one process, with examples/accelerate: in full, and LoRA."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    data, model, running = str(transfer_set(folder)), tiny_model(folder), {}
    script = [f"{ROOT}/examples/scripts/sdrrl.py", "--dataset_name", data, "--kl_coef", "0.5"]
    cli = ["-m", "sdrrl_trl", "train", "--transfer_set", data, *ANCHORED]
    asked = {folder / "sdrrl train": cli}
    for name in CONFIGURATIONS:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", f"{ROOT}/examples/accelerate/{name}.yaml"]
        for kind, arguments in (("script", script), ("sdrrl train", cli)):
            port = ["--main_process_port", str(29_600 + len(asked))] if HAS_GPU else ["--cpu"]
            asked[folder / f"{name}, {kind}"] = [*launcher, "--num_processes", "1", *port, *arguments]
    for output, command in asked.items():
        command = [*command, *TRAINING, "--model_name_or_path", model, "--output_dir", str(output)]
        running[output] = start(command, folder / f"log of {output.name}")
        if not HAS_GPU:  # two processors have enough to do
            running[output][0].wait()
    found = {} if "zero3" in CONFIGURATIONS else {"zero3": "skipped: no deepspeed"}
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
        print(f"  {output.name}: trained, saved, loaded", flush=True)
    command = ["-m", "sdrrl_trl", "evaluate", "--models", f"base={model}", f"tuned={folder / 'sdrrl train'}"]
    command += ["--transfer_set", data, "--tasks", "sdrrl_heldout", "--output_dir", str(folder / "scores")]
    log = finish(*start(command, folder / "log of evaluate"))
    assert len(list((folder / "scores").rglob("results_*.json"))) == 2, log[-3000:]
    return found | {"sdrrl evaluate": "ran"}


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
