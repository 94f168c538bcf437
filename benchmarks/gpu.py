"""
What only a GPU can tell: parity with TRL, time and memory, the launchers, and that nothing is on the wrong device.

    python benchmarks/gpu.py [--quick] [--only NAME ...]    # needs `pip install -e '.[test]'`, no network, no weights

Models are random, of the shapes and sizes of real ones. A section that fails does not stop the others; its error is
printed at the end, and the exit status is 1. The last line is one JSON object. `--quick` is for a computer without a
GPU: tiny sizes, whose times mean nothing, and runs that must be equal to the bit. ZeRO-3 needs `deepspeed`. Packed
rows are timed with FlashAttention 2 where `flash_attn` is installed, else with `sdpa`. The sections most worth having
come first. Made for 24 GB, and less than 8 minutes there. `gpu_h200.txt` is what an H200 has printed.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from gpu_shared import FULL, HAS_GPU, QUICK  # first: it sets what the libraries read when they are imported


from gpu_serving import commands, generation, translation  # isort: skip
from gpu_training import callbacks, kl, parity, speed  # isort: skip


SECTIONS = (parity, speed, kl, commands, callbacks, generation, translation)


def main():
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a CPU, about two minutes")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="sections (default: all)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of what is not deterministic, among others
    device = torch.cuda.get_device_name() if HAS_GPU else "CPU"
    results, errors = {}, {}
    for section in SECTIONS:
        if section.__name__ not in options.only:
            continue
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = results[section.__name__] = section(QUICK if options.quick else FULL, Path(folder))
            except Exception:  # of whatever kind: the other sections shall run
                found, errors[section.__name__] = {"FAILED": "see below"}, traceback.format_exc()
        gc.collect()
        torch.cuda.empty_cache()  # the commands need some, too
        print(f"{section.__name__} ({time.perf_counter() - begin:.0f} s): {section.__doc__}", flush=True)
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
