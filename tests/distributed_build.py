"""Run under torchrun by test_build_runs.py: one build shared by two processes."""

import os
import sys
from pathlib import Path

import torch.distributed as dist
from stub_engines import StubGenerator, StubTranslator, stub_config

from sdrrl_trl import build_transfer_set


if __name__ == "__main__":
    seeds, folder, logs, world_size = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    rank = int(os.environ["RANK"])
    generator, translator = StubGenerator(logs / f"asked-{rank}"), StubTranslator(logs / f"sent-{rank}")
    build_transfer_set(stub_config(seeds, folder), generator, translator)
    assert dist.get_world_size() == world_size
    dist.destroy_process_group()
