"""`sdrrl train`: what it reads, checks before it begins, and leaves behind."""

import glob
import json
import math
import os
import re
import resource
import shutil
from fractions import Fraction

import pyarrow.parquet
import pytest
import torch
from conftest import CannedGenerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_build import config as build_config
from test_callbacks import TASKS
from test_trainer import CPU
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from sdrrl_trl import SDRRLConfig, SDRRLError, build_transfer_set
from sdrrl_trl.cli import main
from sdrrl_trl.evaluation.heldout import load_held_out
from sdrrl_trl.trainer.train import TrainArguments, in_a_line_if_full, make_trainer
from sdrrl_trl.utils import sha256_of, write_json


@pytest.fixture
def command(request, seeds, tiny_model, tmp_path):
    """`sdrrl train` of two steps on a transfer set, with more options."""
    options = {"test_size": 0.3} | getattr(request, "param", {})
    build_transfer_set(build_config(seeds, tmp_path / "set[1]", **options), CannedGenerator())
    start = ["train", "--transfer_set", str(tmp_path / "set[1]"), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    start += ["--bf16", "false", "--max_steps", "2", "--report_to", "none", "--model_name_or_path"]
    return lambda *options, model=tiny_model: main([*start, str(model), *options])


def test_sdrrl_train_adds_the_callbacks_on_demand(benchmarks, command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command("--eval_tasks", "sdrrl_quik")
    assert "Did you mean sdrrl_quick" in capsys.readouterr().err and not (tmp_path / "out").exists()
    command("--eval_tasks", *TASKS, "--forgetting_bound", "0.1", "--eval_steps", "1")
    log = json.loads((tmp_path / "out" / "training.json").read_text())["log"]
    for name in ("lm_eval/xnli_en/acc", "eval_bpb/source", "eval_drift/source"):
        assert [entry["step"] for entry in log if name in entry] == [0, 1, 2]
    shown = capsys.readouterr().err
    assert "train: 2/2 steps" in shown and "lm_eval/xnli_en/acc 0." in shown and "eval_drift/source 0.000" in shown


@pytest.mark.parametrize("command", [{"test_size": 0.0}], indirect=True)
def test_sdrrl_train_refuses_to_watch_a_set_without_held_out_questions(command, capsys):
    with pytest.raises(SystemExit):
        command("--forgetting_bound", "0.1")
    assert "`test_size` above 0" in capsys.readouterr().err


def test_what_is_read_is_what_lies_at_the_path_of_a_transfer_set(command, tiny_model, tmp_path):
    """Not what another path means as a pattern, nor what was there before with the same date and size."""
    other = shutil.copytree(tmp_path / "set[1]", tmp_path / "set1")
    paths = {name: tmp_path / "set[1]" / f"{name}.parquet" for name in ("train", "test")}
    for path in paths.values():
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 2), other / path.name)
    for _ in range(2):
        trainer = trainer_of(tmp_path / "set[1]", tiny_model, tmp_path)
        for path, data in ((paths["train"], trainer.train_dataset), (paths["test"], trainer.eval_dataset)):
            table, date = pyarrow.parquet.read_table(path), path.stat().st_mtime_ns
            answers = [row["completion"][0]["content"] for row in table.to_pylist()]
            assert len(data) == len(answers) > 2 and answers[0] != answers[-1]
            assert answers[0] in trainer.processing_class.decode(data[0]["input_ids"])
            pyarrow.parquet.write_table(table.take(list(reversed(range(len(table))))), path)
            os.utime(path, ns=(date, date))
        with pytest.raises(SDRRLError, match="train.parquet is missing or was changed"):
            trainer_of(tmp_path / "set[1]", tiny_model, tmp_path)
        edit_manifest(tmp_path / "set[1]", sha256={path.name: sha256_of(path) for path in paths.values()})
    assert len(load_held_out(str(paths["test"]), "target", "pt")["test"]) > 2


def trainer_of(transfer_set, model, folder, **options):
    arguments = TrainArguments(str(transfer_set), forgetting_bound=0.1), SDRRLConfig(str(folder), **CPU, **options)
    return make_trainer(*arguments, ModelConfig(str(model)))


def edit_manifest(transfer_set, **changes):
    path = transfer_set / "manifest.json"
    write_json(path, json.loads(path.read_text()) | changes)


# Thinks unless it is told not to, and may refuse system messages
TEMPLATE = """\
{% if messages[0].role == 'system' and strict is defined %}{{ raise_exception('No system role') }}{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think>{{ '' if think is false else 'Hm.' }}</think>{% endif -%}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if think is false %}<think></think>{% endif %}{% endif %}"""


@pytest.fixture
def thinker(tiny_model, tmp_path):
    """The tiny model with another template."""
    folder = shutil.copytree(tiny_model, tmp_path / "thinker")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def with_arguments(transfer_set, **arguments):
    """Has a set's answers given with arguments of the template."""
    options = json.loads((transfer_set / "manifest.json").read_text())["options"]
    edit_manifest(transfer_set, options=options | {"chat_template_kwargs": arguments or None})


def test_arguments_of_the_chat_template_are_those_of_the_answers(command, thinker, tmp_path):
    (row, *_) = Dataset.from_parquet(glob.escape(str(tmp_path / "set[1]" / "train.parquet")))
    for arguments, thought in (({}, "<think>Hm.</think>"), ({"think": False}, "")):
        with_arguments(tmp_path / "set[1]", **arguments)
        trainer = trainer_of(tmp_path / "set[1]", thinker, tmp_path)
        made = trainer.train_dataset[0]
        text = trainer.processing_class.decode([label for label in made["labels"] if label != -100])
        assert text == thought + row["completion"][0]["content"] + "<|im_end|>\n"
        assert ("<think></think>" in trainer.processing_class.decode(made["input_ids"])) == bool(arguments)
    command(model=thinker)
    options = json.loads((tmp_path / "out" / "options.json").read_text())["options"]
    assert options["chat_template_kwargs"] == {"think": False}


def refused(command, capsys, *options, **kwargs):
    """What is said of a mistake."""
    with pytest.raises(SystemExit) as exit_info:
        command(*options, **kwargs)
    assert exit_info.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", [{"system_prompt": "Be kind."}], indirect=True)
def test_a_template_that_refuses_a_system_message_is_told_before_the_model_is_loaded(
    command, thinker, tmp_path, capsys
):
    (thinker / "model.safetensors").write_bytes(b"")
    with_arguments(tmp_path / "set[1]", strict=True)
    assert "refuses conversations of system, user: No system role" in refused(command, capsys, model=thinker)


def unsafe(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Fraction(1)}, folder / "pytorch_model.bin")


def edit(name, **changes):
    def damage(folder):
        write_json(folder / name, json.loads((folder / name).read_text()) | changes)

    return damage


@pytest.mark.parametrize(
    "damage, named",
    [
        (unsafe, "Cannot start the training of .*: UnpicklingError: Weights only load failed"),
        (edit("config.json", hidden_size="big"), "Cannot load the model .* expected int, got str"),
        (edit("config.json", hidden_act="no"), "Cannot start the training of .*: KeyError: 'no'"),
        (edit("config.json", vocab_size=7), "Cannot start the training of "),
        (lambda folder: (folder / "tokenizer.json").write_text('{"a": 1}'), "Cannot load the tokenizer of "),
        (lambda folder: (folder / "generation_config.json").write_text("[1]"), "Cannot start the training of "),
    ],
    ids=["unsafe", "type", "function", "size", "tokenizer", "generation"],
)
def test_a_damaged_model_is_told_in_a_line(command, tiny_model, tmp_path, capsys, damage, named):
    folder = shutil.copytree(tiny_model, tmp_path / "damaged")
    damage(folder)
    assert re.search(named, refused(command, capsys, model=folder))


@pytest.mark.parametrize("limit", [260_000, 300_000], ids=["model", "optimizer"])
def test_a_full_disk_is_told_in_a_line(command, capsys, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # bytes of a file
    try:
        assert "Cannot write the model" in refused(command, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_too_little_memory_is_told_in_a_line():
    with pytest.raises(SDRRLError, match="The memory does not suffice"), in_a_line_if_full():
        torch.empty(10**15)


@pytest.mark.parametrize("kl", ["0", "0.5"])
def test_an_adapter_with_new_tokens_is_trained_on(command, tiny_model, tmp_path, kl):
    tokenizer, base = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<lang_th>", "<lang_km>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    base.resize_token_embeddings(len(tokenizer))
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    command("--kl_coef", kl, "--logging_steps", "1", "--learning_rate", "1e-2", model=tmp_path / "adapter")
    log = json.loads((tmp_path / "out" / "training.json").read_text())["log"]
    assert log[1]["loss"] < log[0]["loss"]
    assert kl == "0" or abs(log[0]["kl/pt"]) < 1e-5 < log[1]["kl/pt"]
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "out"))
    assert before.keys() == after.keys() and len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(tokenizer)
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert all("original_module" in name for name in unchanged)


def test_a_training_that_lost_its_model_or_was_killed_after_its_last_step_trains_no_further(command, tmp_path, capsys):
    command()
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    command()
    assert "complete, nothing to do" in capsys.readouterr().err
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(SystemExit):
        command()
    assert "is complete, but model.safetensors is missing. Put it back. Or delete" in capsys.readouterr().err
    (tmp_path / "out" / "training.json").unlink()
    command()
    assert "goes on from step 2" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_weights_that_are_no_numbers_are_an_error_and_not_saved(command, tiny_model, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    next(model.parameters()).data.fill_(math.nan)
    shutil.copytree(tiny_model, tmp_path / "nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(SystemExit) as exit_info:
        command(model=tmp_path / "nan")
    assert exit_info.value.code == 2 and "no longer finite" in capsys.readouterr().err
    assert not {"model.safetensors", "training.json"} & {path.name for path in (tmp_path / "out").iterdir()}
