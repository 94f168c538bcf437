import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_trainer import CASES


@pytest.fixture(scope="module")
def results(tiny_model, tmp_path_factory):
    """What one process and what two processes log, on the same rows."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    found = []
    for world_size in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if world_size == 2 else []
        script = str(Path(__file__).parent / "distributed_trainer.py")
        command = [sys.executable, *launcher, script, tiny_model, str(folder), str(world_size)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        found.append(json.loads((folder / f"{world_size}.json").read_text()))
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_and_log_as_one_does(results, case):
    one, two = (result[case] for result in results)
    for first, second in zip(one["logs"], two["logs"], strict=True):
        assert first.keys() == second.keys()
        assert len([name for name in first if "nll/" in name]) >= 4
        for name in first:
            assert second[name] == pytest.approx(first[name], abs=1e-5, rel=1e-5), name
    assert one["parameters"].keys() == two["parameters"].keys()
    for name, value in one["parameters"].items():
        assert two["parameters"][name] == pytest.approx(value, abs=2e-3), name


@pytest.mark.parametrize("training", ["full", "lora"])
def test_the_divergence_is_the_same_on_models_sharded_by_fsdp2(tiny_model, training):
    script = str(Path(__file__).parent / "distributed_fsdp2.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, script, tiny_model, training]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("equal") == 2
