"""
Cost of the trainer, each ratio measured with both sides in turn in one run.

    python benchmarks/trainer.py [--quick]    # needs `pip install -e '.[demo]'`

The last line is one JSON object. Ratios below 1.3 mean little on a busy computer: run it on a quiet one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
KINDS = [
    ("source", "en", "en"),
    ("target", "pt", "pt"),
    ("source_to_target", "en", "pt"),
    ("target_to_source", "pt", "en"),
]


def rows(n, times=5):
    from datasets import Dataset

    text = "the sky looks blue because air scatters blue light more than red light "
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Why is the sky blue, number {i}?"}],
                "completion": [{"role": "assistant", "content": text * (1 + 7 * i % times)}],
                "kind": KINDS[i % 4][0],
                "question_language": KINDS[i % 4][1],
                "answer_language": KINDS[i % 4][2],
            }
            for i in range(n)
        ]
    )


def make_trainer(cls, config, folder, dataset, **options):
    from conftest import make_tiny_model

    torch.manual_seed(0)
    model = str(Path(folder) / "model")
    if not Path(model).exists():
        make_tiny_model(Path(model), hidden_size=256, num_hidden_layers=4, intermediate_size=1024)
    args = config(
        output_dir=str(Path(folder) / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        gradient_checkpointing=False,
        **{"packing": True, "max_length": 1024, "per_device_train_batch_size": 1, **options},
    )
    return cls(model, args, train_dataset=dataset)


def step_seconds(trainer, batch):
    inputs = {name: value.clone() if torch.is_tensor(value) else value for name, value in batch.items()}
    start = time.perf_counter()
    loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(900))
    loss.backward()
    seconds = time.perf_counter() - start
    trainer.model.zero_grad()
    return seconds


def step_times(folder, n):
    """Seconds of forward and backward: SFTTrainer, SDRRLTrainer without and with kinds and languages, in turn."""
    from trl import SFTConfig, SFTTrainer

    from sdrrl_trl import SDRRLConfig, SDRRLTrainer

    plain = rows(200).select_columns(["prompt", "completion"])
    trainers = [
        make_trainer(SFTTrainer, SFTConfig, folder, plain),
        make_trainer(SDRRLTrainer, SDRRLConfig, folder, plain),
        make_trainer(SDRRLTrainer, SDRRLConfig, folder, rows(200)),
    ]
    batches = [next(iter(trainer.get_train_dataloader())) for trainer in trainers]
    assert all(torch.equal(batches[0]["input_ids"], batch["input_ids"]) for batch in batches)
    for trainer in trainers:
        trainer.model.train()
    seconds = [[step_seconds(t, b) for t, b in zip(trainers, batches, strict=True)] for _ in range(n + 2)][2:]
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def demo_transfer_set(folder, quick):
    """The demo's training data and model."""
    from datasets import Dataset

    from sdrrl_trl.engines.fast_translate import smollm2
    from sdrrl_trl.options import parse, read_yaml
    from sdrrl_trl.run import demo_dir
    from sdrrl_trl.transfer.build import build_transfer_set
    from sdrrl_trl.transfer.config import TransferConfig

    config, (model, _) = read_yaml(str(demo_dir() / "config.yaml")), smollm2()
    options = {"recipe": config["recipe"]} | config["build"]
    options["seeds"] |= {"path": str(demo_dir() / "seeds.jsonl")}
    options["parallel"] = str(demo_dir() / "parallel.jsonl")
    options |= {"model_name_or_path": model, "output_dir": str(Path(folder) / "transfer_set")}
    if quick:
        options["seeds"]["split"] = "train[:24]"
    build_transfer_set(*parse((TransferConfig,), options, [], "build"))
    return model, Dataset.from_parquet(str(Path(folder) / "transfer_set" / "train.parquet"), cache_dir=folder)


def epoch_times(folder, quick):
    """Seconds of one epoch over the demo's transfer set as the demo trains, padded and packed."""
    from peft import LoraConfig

    from sdrrl_trl import SDRRLConfig, SDRRLTrainer

    model, dataset = demo_transfer_set(folder, quick)
    seconds = []
    for packing in (False, True):
        args = SDRRLConfig(
            output_dir=str(Path(folder) / "out"),
            packing=packing,
            max_length=512,
            # about as many tokens a step as a packed row
            per_device_train_batch_size=1 if packing else 4,
            num_train_epochs=1,
            model_init_kwargs={"dtype": "bfloat16"},
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = LoraConfig(r=16, target_modules="all-linear")
        trainer = SDRRLTrainer(model, args, train_dataset=dataset, peft_config=lora)
        start = time.perf_counter()
        trainer.train()
        seconds.append(time.perf_counter() - start)
    return seconds


def memory(name):
    """A figure of this process in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def kl_once(side, n_tokens, vocabulary, hidden_size):
    """Loss and gradients of NLL + KL with a frozen head (LoRA). Prints seconds and the peak of extra memory in MB."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    from sdrrl_trl.trainer.divergence import Head, chunked_distillation

    torch.manual_seed(0)
    student = torch.randn(n_tokens, hidden_size).requires_grad_()
    teacher, weight = torch.randn(n_tokens, hidden_size), torch.randn(vocabulary, hidden_size) / hidden_size**0.5
    labels = torch.randint(vocabulary, (n_tokens,))

    def sdrrl(rows):
        head = Head(weight)
        result = chunked_distillation(student[rows], head, labels[rows], teacher[rows], head, 1.0)
        return result.loss

    def trl(rows):
        outputs = ChunkedLogProbFunction.apply(
            student[rows], weight, None, labels[rows], 1.0, 32768, None, 1.0, ("log_probs",)
        )
        kl, _ = ChunkedDivergenceFunction.apply(
            student[rows], weight, None, teacher[rows], weight, None, 0.0, 1.0, 1.0, None, 1.0, None
        )
        return -outputs[0].sum() + kl.sum()

    def plain(rows):
        log_q, log_p = (student[rows] @ weight.T).log_softmax(-1), (teacher[rows] @ weight.T).log_softmax(-1)
        nll = -log_q.gather(-1, labels[rows, None]).sum()
        return nll + (log_p.exp() * (log_p - log_q)).sum()

    loss = {"sdrrl": sdrrl, "trl": trl, "plain": plain}[side]
    loss(slice(0, 8)).backward()  # warm
    student.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (Linux)
    before = memory("VmRSS")
    start = time.perf_counter()
    total = loss(slice(None))
    total.backward()
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    print(json.dumps({"seconds": seconds, "peak": peak, "loss": total.item(), "grad": student.grad.norm().item()}))


def kl_costs(n, n_tokens, vocabulary, hidden_size):
    """Median seconds and MB of each side, each in processes of its own, in turn."""
    found = {"sdrrl": [], "trl": [], "plain": []}
    for _ in range(n):
        for side in found:
            command = [sys.executable, __file__, "--kl", side, str(n_tokens), str(vocabulary), str(hidden_size)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[side].append(json.loads(output.splitlines()[-1]))
    for side, results in found.items():  # all compute the same
        for name in ("loss", "grad"):
            assert abs(results[0][name] / found["plain"][0][name] - 1) < 1e-4, (side, name)
    medians = {
        side: {name: statistics.median(result[name] for result in results) for name in ("seconds", "peak")}
        for side, results in found.items()
    }
    for side, values in medians.items():
        print(f"NLL + KL, {side}: {values['seconds']:.1f} s, {values['peak']:.0f} MB")
    return medians


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--kl", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kl:
        kl_once(options.kl[0], *map(int, options.kl[1:]))
        return
    n = 3 if options.quick else 15
    with tempfile.TemporaryDirectory() as folder:
        sft, without, groups = step_times(folder, n)
        print(f"step: SFTTrainer {sft:.3f} s, SDRRLTrainer {without:.3f} s, with kinds and languages {groups:.3f} s")
        padded, packed = epoch_times(folder, options.quick)
        print(f"epoch over the demo's transfer set: padded {padded:.1f} s, packed {packed:.1f} s")
    sizes = (1024, 64_000, 128) if options.quick else (2048, 151_936, 512)
    kl = kl_costs(1 if options.quick else 3, *sizes)
    ratios = {
        "step_time_plain": without / sft,
        "step_time_groups": groups / sft,
        "packed_speedup": padded / packed,
        "kl_peak_memory_vs_trl": kl["sdrrl"]["peak"] / kl["trl"]["peak"],
        "kl_time_vs_trl": kl["sdrrl"]["seconds"] / kl["trl"]["seconds"],
        "kl_peak_memory_vs_plain": kl["sdrrl"]["peak"] / kl["plain"]["peak"],
        "kl_time_vs_plain": kl["sdrrl"]["seconds"] / kl["plain"]["seconds"],
    }
    versions = {name: version(name) for name in ("torch", "trl", "transformers")}
    ratios = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "trainer", "ratios": ratios, "n": n, "kl_size": sizes, "versions": versions}))


if __name__ == "__main__":
    main()
