"""
Cost and care of the transfer-set builder, each ratio with both sides in turn in one run.

    python benchmarks/builder.py [--quick]    # needs `pip install -e '.[test]'` and data for the questions

The last line is one JSON object. Questions are those of `instructions/alpaca_1000.jsonl` in `SDRRL_DATA_DIR`
(default: ../shared/data), or of the demo; Markdown is that of the packages installed beside this one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import masks

from sdrrl_trl.transfer.segment import segment


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def instructions(n):
    """Questions and reference answers."""
    folder = Path(os.environ.get("SDRRL_DATA_DIR", ROOT.parent / "shared" / "data"))
    path = folder / "instructions" / "alpaca_1000.jsonl"
    path = path if path.exists() else ROOT / "examples" / "demo" / "seeds.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(f"{row['instruction']}\n\n{row.get('input') or ''}".strip(), row.get("output") or "") for row in rows[:n]]


def generation_speeds(n_rows, rounds, max_new_tokens=256):
    """Rows/s of a loop over rows, of batches in the order of the file, and of ours; the same model and limit."""
    import torch

    from sdrrl_trl.engines import Sampling
    from sdrrl_trl.engines.fast_translate import smollm2
    from sdrrl_trl.engines.transformers import TransformersGenerator

    ours = TransformersGenerator(smollm2()[0], Sampling(max_new_tokens, temperature=0.0), dtype="bfloat16")
    conversations = [[{"role": "user", "content": question}] for question, _ in instructions(n_rows)]

    @torch.inference_mode()
    def plain(batch):
        inputs = ours.tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        ours.model.generate(**inputs, max_new_tokens=max_new_tokens)

    def naive():
        for conversation in conversations[: n_rows // 8]:
            plain([conversation])
        return n_rows // 8

    def fixed():
        for start in range(0, n_rows, 32):
            plain(conversations[start : start + 32])
        return n_rows

    def sorted_and_compacted():
        ours.generate(conversations)
        return n_rows

    speeds = {"naive": [], "fixed": [], "ours": []}
    for _ in range(rounds):
        for name, run in zip(speeds, (naive, fixed, sorted_and_compacted), strict=True):
            start = time.perf_counter()
            n = run()
            speeds[name].append(n / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def segments_sent(shard_size=512):
    """Segments of a loop over sentences, those that the builder sends, and those that differ in the whole set."""
    loop, shard, sent, everything = 0, set(), 0, set()
    for number, texts in enumerate(instructions(1000), 1):
        for text in texts:
            parts = [part.masked for part in segment(text, ".!?…") if part.translate]
            loop += len(parts)
            shard.update(parts)
        if number % shard_size == 0:
            sent, everything, shard = sent + len(shard), everything | shard, set()
    return loop, sent + len(shard), len(everything | shard)


def build_once(n_rows):
    """A build with engines that take no time. Prints seconds, those of the CPU, and the peak of memory in MB."""
    import datasets  # noqa: F401  before the clock starts
    from accelerate import PartialState
    from conftest import write_json_lines
    from stub_engines import StubGenerator, StubTranslator, sentence

    from sdrrl_trl import TransferConfig, build_transfer_set

    PartialState(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = ({"id": str(i), "instruction": f"{sentence(str(i))} Number {i}?"} for i in range(n_rows))
        seeds = str(write_json_lines(Path(folder) / "seeds.jsonl", list(rows)))
        rows = None
        config = TransferConfig(seeds, f"{folder}/set", "stub", ["pt"])
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
        start, cpu_start = time.perf_counter(), time.process_time()
        build_transfer_set(config, StubGenerator(), StubTranslator())
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        manifest = json.loads((Path(folder) / "set" / "manifest.json").read_text())
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    n = sum(manifest["counts"]["train"].values()) + sum(manifest["counts"]["test"].values())
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": int(peak.split()[1]) / 1024, "rows": n}))


def scale(sizes):
    """Rows/s and peak memory in MB of builds of several sizes, each in a process of its own."""
    results = {}
    for size in sizes:
        command = [sys.executable, __file__, "--build", str(size)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[size] = json.loads(output.splitlines()[-1])
        print(f"{size} questions: {results[size]}")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build_once(options.build)
        return
    loop, sent, distinct = segments_sent()
    print(f"segments: {loop} in a loop over sentences, {sent} sent, {distinct} distinct in the whole set")
    markdown = masks.installed_markdown()[: 100 if options.quick else None]
    intact = masks.fidelity(markdown, lambda text: segment(text, ".!?…"))
    print(f"masks: {intact}")
    sizes = (1_000, 5_000) if options.quick else (1_000, 10_000, 100_000)
    builds = scale(sizes)
    speeds = generation_speeds(32, 1, 64) if options.quick else generation_speeds(96, 2)
    print("generate: " + ", ".join(f"{name} {speed:.2f} rows/s" for name, speed in speeds.items()))
    ratios = {
        "generate_speedup_vs_naive": speeds["ours"] / speeds["naive"],
        "generate_speedup_vs_fixed_batches": speeds["ours"] / speeds["fixed"],
        "translate_segments_saved": 1 - sent / loop,
        "mask_fidelity": intact["masks"],
        "mask_fidelity_fence_only": intact["fences_only"],
        "rss_100k_vs_1k": builds[sizes[-1]]["peak"] / builds[sizes[0]]["peak"],
        "overhead_rows_per_s": builds[sizes[-1]]["rows"] / builds[sizes[-1]]["seconds"],
    }
    versions = {name: version(name) for name in ("torch", "transformers", "datasets")}
    ratios = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "builder", "ratios": ratios, "sizes": sizes, "versions": versions}))


if __name__ == "__main__":
    main()
