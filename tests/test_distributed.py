import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_training import CASES


def launch(what, model, folder, world_size):
    """What the script finds with so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if world_size == 2 else []
    script = str(Path(__file__).parent / "distributed_training.py")
    command = [sys.executable, *launcher, script, what, model, str(folder), str(world_size)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}",
    }
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((folder / f"{what}-{world_size}.json").read_text())


def test_two_processes_train_and_log_as_one_does_prepare_data_once_and_are_right_under_fsdp2(tiny_model, tmp_path):
    """The last two are compared in the script itself, `prepare_once` and `compare_fsdp2`."""
    results = [launch("trainer", tiny_model, tmp_path, world_size) for world_size in (1, 2)]
    for case in CASES:
        one, two = (result[case] for result in results)
        for first, second in zip(one["logs"], two["logs"], strict=True):
            assert first.keys() == second.keys()
            assert len([name for name in first if "nll/" in name]) >= 4
            for name in first:
                assert second[name] == pytest.approx(first[name], abs=1e-5, rel=1e-5), (case, name)
        assert one["parameters"].keys() == two["parameters"].keys()
        for name, value in one["parameters"].items():
            assert two["parameters"][name] == pytest.approx(value, abs=2e-3), (case, name)
