import json
import os
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, CannedGenerator
from nbclient import NotebookClient
from test_build import build_transfer_set, config


LAUNCHERS = {
    "python": ([], 1),
    "accelerate": (["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"], 1),
    "torchrun": (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], 2),
}


@pytest.fixture(scope="session")
def transfer_set(tmp_path_factory):
    from conftest import DEMO, write_json_lines

    folder = tmp_path_factory.mktemp("examples")
    rows = [json.loads(line) for line in (DEMO / "seeds.jsonl").read_text(encoding="utf-8").splitlines()[:16]]
    seeds = write_json_lines(folder / "seeds.jsonl", rows)
    return build_transfer_set(config(seeds, folder / "set"), CannedGenerator())


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_script_trains_under_each_launcher(launcher, transfer_set, tiny_model, tmp_path):
    prefix, processes = LAUNCHERS[launcher]
    arguments = {
        "model_name_or_path": tiny_model,
        "dataset_name": transfer_set,
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 2 // processes,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "max_length": 256,
    }
    options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    flags = ["--use_cpu", "--bf16", "False", "--packing", "--use_peft", "--lora_target_modules", "all-linear"]
    script = str(ROOT / "examples" / "scripts" / "sdrrl.py")
    command = [sys.executable, *prefix, script, *options, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    log = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert any(name.startswith("nll/") for name in log[0])
    # one random state file a process: proves how many took part
    assert len(list((tmp_path / "out" / "checkpoint-2").glob("rng_state*.pth"))) == processes


@pytest.mark.real
def test_the_notebook_runs(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for its kernel
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(ROOT / "examples" / "sdrrl.ipynb", as_version=4)
    NotebookClient(notebook, timeout=500, kernel_name="python3").execute()
    report = (tmp_path / "sdrrl_notebook" / "report" / "report.json").read_text()
    assert {row["role"] for row in json.loads(report)["rows"]} == {"target", "drift"}
