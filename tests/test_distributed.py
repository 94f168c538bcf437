"""Two processes against one, each started once for all that is asked of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import data_dir
from distributed_training import CASES, run


@pytest.fixture(scope="module")
def found(tiny_model, tmp_path_factory):
    """What one process finds, which is this one, and what two find."""
    folder, tests = tmp_path_factory.mktemp("distributed"), Path(__file__).parent
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(tests / "distributed_training.py"), tiny_model, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}:{tests}"}
    environment["SDRRL_DATA_DIR"] = str(data_dir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDRRL_DATA_DIR", str(data_dir()))
        one = json.loads(json.dumps(run(tiny_model, folder)))
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    return one, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_and_log_as_one_does(found, case):
    """That they prepare data once and are right under FSDP2 is checked there: `prepare_once`, `compare_fsdp2`."""
    one, two = (results[case] for results in found)
    zero3 = case.startswith("ZeRO-3")  # whose optimizer and clipping are its own
    tolerance = {"abs": 1e-3, "rel": 1e-3} if zero3 else {"abs": 1e-5, "rel": 1e-5}
    for first, second in zip(one["logs"], two["logs"], strict=True):
        assert first.keys() == second.keys()
        assert len([name for name in first if "nll/" in name]) >= 4
        for name in first:
            assert second[name] == pytest.approx(first[name], **tolerance), name
    if zero3:  # each process has a part of the parameters
        return
    assert one["parameters"].keys() == two["parameters"].keys()
    for name, value in one["parameters"].items():
        assert two["parameters"][name] == pytest.approx(value, abs=2e-3), name


@pytest.mark.skipif(data_dir() is None, reason="needs the data of the benchmarks")
@pytest.mark.parametrize("case", ["SFT", "SDRRL, LoRA"])
def test_two_processes_share_the_items_of_lm_eval_and_find_the_scores_of_one(found, case):
    one, two = (results[case] for results in found)
    assert len(one) == len(two) == 5  # two losses, lm_eval at 0, 2 and 4
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            exact = name.startswith("lm_eval/")
            assert second[name] == pytest.approx(first[name], abs=0 if exact else 1e-4), name
