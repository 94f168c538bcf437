"""`sdrrl train`: what it reads, checks before it begins, and leaves behind."""

import ast
import json
import math
import os
import re
import resource
import shutil
import signal
from fractions import Fraction

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_callbacks import TASKS
from test_trainer import CPU, rows
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import ModelConfig

from sdrrl_trl import SDRRLConfig, SDRRLError
from sdrrl_trl.cli import main
from sdrrl_trl.engines.transformers import load_tokenizer
from sdrrl_trl.evaluation.heldout import load_held_out
from sdrrl_trl.evaluation.weights import merge
from sdrrl_trl.trainer.callbacks import ProgressLines
from sdrrl_trl.trainer.train import TrainArguments, in_a_line_if_full, make_trainer
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import fingerprint, sha256_of, write_json


def write_set(folder, train, test=None, licences=None, **options):
    """A transfer set of two data sets."""
    folder.mkdir(exist_ok=True)
    hashes = {}
    for name, data in {"train.parquet": train, "test.parquet": test}.items():
        if data is not None:
            data.to_parquet(folder / name)
            os.utime(folder / name, (0, 0))
            hashes[name] = sha256_of(folder / name)
    manifest = {"options": {"source_language": "en", "target_languages": ["pt"]} | options, "sha256": hashes}
    counts = {"train": {"source en-en": 8}, "test": {"target pt-pt": 8}}
    manifest |= {"engines": {}, "licences": licences or {}, "counts": counts, "inputs": {}}
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def transfer_set(tmp_path):
    return write_set(tmp_path / "set[1]", rows(), rows(8))


@pytest.fixture
def command(transfer_set, tiny_model, tmp_path):
    """`sdrrl train` of two steps, with more options."""
    start = ["train", "--transfer_set", str(transfer_set), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    start += ["--bf16", "false", "--max_steps", "2", "--report_to", "none", "--model_name_or_path"]
    return lambda *options, model=tiny_model: main([*start, str(model), *options])


def refused(command, capsys, *options, **kwargs):
    """What is said of a mistake."""
    with pytest.raises(SystemExit) as exit_info:
        command(*options, **kwargs)
    assert exit_info.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def trainer_of(transfer_set, model, folder):
    arguments = TrainArguments(str(transfer_set), forgetting_bound=0.1), SDRRLConfig(str(folder), **CPU)
    return make_trainer(*arguments, ModelConfig(str(model)), load_manifest(transfer_set))


def test_a_dry_run_tells_tokens_and_time_and_leaves_nothing(command, transfer_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sdrrl_trl.plan._rate", lambda *_: 8e6)  # so slow that there is something to tell
    command("--dry_run", "--max_length", "256", "--push_to_hub", "--output_dir", str(tmp_path / "out" / "model"))
    said = capsys.readouterr().out
    time = r"about (\d+) s \(\d+ s to \d+ s\)"
    expected = rf"^train: 2 steps of 8 rows at a learning rate of 2e-05, [\d,]+ tokens, {time}$"
    assert (
        re.search(expected, said, re.MULTILINE)
        and "train: model (0 M parameters, licence: not stated), no anchor\n" in said
    )
    assert re.search(f"slow on a CPU; {time} with: --gradient_checkpointing false\n", said)
    last = "so few steps teach a model little, and can harm it. Take more questions\n"
    assert said.endswith(f"{last}It was a dry run: nothing was written.\n")
    manifest = json.loads((transfer_set / "manifest.json").read_text())
    manifest["options"] |= {"answer_source": "own", "temperature": 1.0}
    write_json(transfer_set / "manifest.json", manifest)
    command("--dry_run", "--output_dir", str(tmp_path / "out"))
    assert "no anchor, though the answers are the model's own: --recipe anchored sets one\n" in capsys.readouterr().out
    command("--dry_run", "--output_dir", str(tmp_path / "out"), "--anchor_languages", "en", "--kl_coef", "2")
    assert ", anchored in en (kl_coef 2)\n" in capsys.readouterr().out
    # Four passes become three, beside the start
    slow, fast = (int(seconds) - 10 for seconds in re.findall(time, said))
    assert fast == pytest.approx(slow * 3 / 4, abs=1)
    assert not (tmp_path / "out").exists()
    command("--dry_run", "--use_peft")
    said = capsys.readouterr().out
    smaller = "--per_device_train_batch_size 1 --max_length 256"
    assert f"Smaller ones: {smaller} --gradient_checkpointing false --lora_dropout 0\n" in said
    assert f"or smaller batches: {smaller}, if answers are short" in said
    command("--dry_run", "--max_steps", "20", "--gradient_checkpointing", "false")
    assert f"take much memory. Smaller ones: {smaller}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, told",
    [
        (
            ["--use_peft", "--learning_rate", "1"],
            "a learning rate of 1 can ruin the model: an adapter takes some 1e-3",
        ),
        (["--learning_rate", "1e-3"], "of 0.001 can ruin the model: all weights take 1e-5 to 1e-4"),
        (["--use_peft", "--learning_rate", "3e-3"], None),
        (
            ["--use_peft", "--learning_rate", "1e-3", "--max_steps", "-1", "--num_train_epochs", "3"],
            "can learn by heart what it sees 3.0 times, and get worse: --num_train_epochs 1",
        ),
        (["--learning_rate", "1e-4"], None),
        (["--use_peft"], "a learning rate of 2e-05 hardly changes a model: an adapter takes some 1e-3"),
        (["--anchor_languages", "pt", "--kl_coef", "1"], "`anchor_languages` has pt, a target language"),
    ],
)
def test_options_that_ruin_a_model_or_teach_nothing_are_told_before_it_is_trained(command, capsys, options, told):
    command("--dry_run", *options)
    said = capsys.readouterr().out
    assert told in said if told else "ruin" not in said and "hardly" not in said


@pytest.mark.parametrize("use_kl", [True, False])
def test_a_training_that_ruined_the_model_says_so_at_its_end(command, tmp_path, capsys, use_kl):
    steps = ["--max_steps", "24", "--logging_steps", "1", "--output_dir"]
    kl = ["--anchor_languages", "en", "--kl_coef", "1"] if use_kl else []
    command(*steps, f"{tmp_path}/good", "--learning_rate", "1e-4", *kl)
    assert "ruined" not in capsys.readouterr().err
    command(*steps, f"{tmp_path}/bad", "--learning_rate", "0.3" if use_kl else "3", *kl)
    said = capsys.readouterr().err
    assert f"is probably ruined: {'its own answers took' if use_kl else 'the loss rose from'}" in said
    assert said.count("it is being ruined") == use_kl  # once, long before the end
    cards = [(tmp_path / name / "README.md").read_text() for name in ("good", "bad")]
    assert ["probably ruined it" in card for card in cards] == [False, True]


def test_a_transfer_set_of_another_model_is_told(command, transfer_set, tiny_model, capsys):
    for known, told in [("0" * 16, True), (fingerprint(tiny_model), False), ("org/on-the-hub", False)]:
        manifest = json.loads((transfer_set / "manifest.json").read_text())
        manifest["options"] |= {"model_name_or_path": "org/other"}
        write_json(transfer_set / "manifest.json", manifest | {"inputs": {"model": known}})
        command("--dry_run")
        said = "warning: the transfer set holds answers of another model, org/other" in capsys.readouterr().out
        assert said == told


def test_sdrrl_train_adds_the_callbacks_on_demand(benchmarks, command, tmp_path, capsys):
    assert "Did you mean sdrrl_quick" in refused(command, capsys, "--eval_tasks", "sdrrl_quik")
    assert not (tmp_path / "out").exists()
    command("--eval_tasks", *TASKS, "--forgetting_bound", "0.1", "--eval_steps", "1")
    log = json.loads((tmp_path / "out" / "training.json").read_text())["log"]
    for name in ("lm_eval/xnli_en/acc", "eval_bpb/source", "eval_drift/source"):
        assert [entry["step"] for entry in log if name in entry] == [0, 1, 2]
    out, shown = capsys.readouterr()
    assert "train: 2/2 steps" in shown and "lm_eval/xnli_en/acc 0." in shown and "eval_drift/source 0.000" in shown
    # The next command, as a shell takes it
    tasks = f"sdrrl_heldout_bpb --transfer_set '{tmp_path}/set[1]' --output_dir {tmp_path}/results"
    assert f"tuned={tmp_path}/out --tasks {tasks}" in out
    assert "| records, if not too long | 8 source en-en |" in (tmp_path / "out" / "README.md").read_text()


def test_sdrrl_train_refuses_to_watch_a_set_without_held_out_questions(command, transfer_set, capsys):
    write_set(transfer_set, rows())
    assert "`test_size` above 0" in refused(command, capsys, "--forgetting_bound", "0.1")


def test_what_is_read_is_what_lies_at_the_path_of_a_transfer_set(transfer_set, tiny_model, tmp_path):
    """Not what another path means as a pattern, nor what was there before with the same date and size."""
    write_set(tmp_path / "set1", rows(4), rows(4))
    for last in (7, 6):
        held_out = rows().select([*range(1, 6), last])
        write_set(transfer_set, held_out, held_out)
        trainer = trainer_of(transfer_set, tiny_model, tmp_path)
        for data in (trainer.train_dataset, trainer.eval_dataset):
            assert len(data) == 6
            assert held_out[-1]["prompt"][0]["content"] in trainer.processing_class.decode(data[-1]["input_ids"])
    assert len(load_held_out(str(transfer_set / "test.parquet"), "target", "pt")["test"]) == 2
    (transfer_set / "train.parquet").write_bytes((tmp_path / "set1" / "train.parquet").read_bytes())
    with pytest.raises(SDRRLError, match="train.parquet is missing or was changed"):
        trainer_of(transfer_set, tiny_model, tmp_path)


def test_a_training_is_evaluated_on_the_kinds_that_it_trains_and_on_source(tiny_model, tmp_path):
    folder = write_set(tmp_path / "set", rows().filter(lambda row: row["kind"] == "target"), rows())
    assert trainer_of(folder, tiny_model, tmp_path).eval_kinds == {"source", "target"}


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


def test_arguments_of_the_chat_template_are_those_of_the_answers(command, thinker, transfer_set, tmp_path):
    for arguments, thought in ((None, "<think>Hm.</think>"), ({"think": False}, "")):
        write_set(transfer_set, rows(), rows(8), chat_template_kwargs=arguments)
        trainer = trainer_of(transfer_set, thinker, tmp_path)
        made, answer = trainer.train_dataset[0], rows()[0]["completion"][0]["content"]
        text = trainer.processing_class.decode([label for label in made["labels"] if label != -100])
        assert text == thought + answer + "<|im_end|>\n"
        assert ("<think></think>" in trainer.processing_class.decode(made["input_ids"])) == bool(arguments)
    command(model=thinker)
    options = json.loads((tmp_path / "out" / "options.json").read_text())["options"]
    assert options["chat_template_kwargs"] == {"think": False}


def test_a_trained_base_model_ends_its_answers_as_the_template_does(command, thinker, tmp_path):
    for file in ("config.json", "generation_config.json"):
        edit(file, eos_token_id=1)(thinker)
    edit("tokenizer_config.json", eos_token="<|im_start|>")(thinker)
    command(model=thinker)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 2]  # <|im_start|>, <|im_end|>


def test_a_template_that_refuses_a_system_message_is_told_before_the_model_is_loaded(
    command, thinker, transfer_set, capsys
):
    (thinker / "model.safetensors").write_bytes(b"")
    system = [{"role": "system", "content": "Be kind."}]
    data = rows().map(lambda row, i: {"prompt": system * (i == 9) + row["prompt"]}, with_indices=True)
    write_set(transfer_set, data, chat_template_kwargs={"strict": True})
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
    assert "is complete, but model.safetensors is missing. Put it back. Or delete" in refused(command, capsys)
    (tmp_path / "out" / "training.json").unlink()
    command()
    assert "goes on from step 2" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("number, times, saved", [("SIGINT", 1, 2), ("SIGINT", 2, 0), ("SIGTERM", 1, 2)])
def test_ctrl_c_saves_a_checkpoint_and_says_what_is_kept(command, tmp_path, monkeypatch, capsys, number, times, saved):
    def press(self, args, state, control, **kwargs):
        for _ in range(times if state.global_step == 1 else 0):
            signal.raise_signal(signal.Signals[number])

    command("--max_steps", "4", "--output_dir", str(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(ProgressLines, "on_step_begin", press)
        command("--max_steps", "4")
    shown = capsys.readouterr().err
    assert exit_info.value.code == 130 and f", saved at step {saved}\n" in shown and "command goes on" in shown
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(SDRRLError, match="The training of .* is not finished. The same `sdrrl train` again goes on"):
        load_tokenizer(str(tmp_path / "out"))
    command("--max_steps", "4")
    assert ("goes on from step 2" in capsys.readouterr().err) == (saved == 2)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("options, library", [((), "transformers"), (("--use_peft",), "peft")])
def test_the_card_names_base_recipe_languages_and_licence_and_no_folder(
    command, tiny_model, tmp_path, monkeypatch, options, library
):
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n")
    monkeypatch.chdir(tmp_path)
    command("--kl_coef", "0.5", "--anchor_languages", "en", *options, model="base")
    if library == "peft":  # it is found from any other folder
        about_adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert about_adapter["base_model_name_or_path"] == str(folder)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    about = card.data.to_dict()
    assert (about["license"], about["language"], about["library_name"]) == ("mit", ["en", "pt"], library)
    assert (
        about["base_model"] == "a/b"
        and "`base` (made from `a/b`, with other weights), fine-tuned with SDRRL" in card.text
    )
    assert "Not measured yet" in card.text and "for Portuguese (source: English)." in card.text
    assert "| anchor_languages | en |" in card.text
    # A question as it was trained on, in the target language
    assert 'messages = [{"role": "user", "content": "Why is the sky blue 13 ? ? ?"}]' in card.text
    assert ("reads `base` from the folder" in card.text) == (library == "peft")
    assert "None" not in str(card) and str(tmp_path) not in str(card)


OTHER = {"license": "other", "license_name": "llama3.2", "license_link": "https://example.com/LICENSE"}
NON_COMMERCIAL = {"license": "other", "license_name": "non-commercial-parts"}


@pytest.mark.parametrize(
    "licence, front, expected",
    [
        ("MIT", "license: apache-2.0\nmodel-index: broken", {"license": "apache-2.0"}),
        ("MIT", yaml.safe_dump(OTHER), OTHER),
        ("MIT", "license: other\nlicense_link: LICENSE", {"license": "other"}),
        ("CC-BY-NC-4.0", "license: apache-2.0", NON_COMMERCIAL),
    ],
)
def test_the_licence_in_the_card_is_that_of_the_base_unless_parts_are_non_commercial(
    command, transfer_set, tiny_model, tmp_path, licence, front, expected
):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "README.md").write_text(f"---\n{front}\n---\n")
    options = {"answer_source": "reference", "system_prompt": 'Be "kind".'}
    system = [{"role": "system", "content": 'Be "kind": ```'}]
    asked = rows().map(lambda row: {"prompt": system + row["prompt"]})
    write_set(transfer_set, asked, licences={"translator": licence}, **options)
    command("--max_steps", "1", model=base)
    merge(str(tmp_path / "out"), tmp_path / "merged", str(base))
    for folder in ("out", "merged"):
        about = metadata_load(tmp_path / folder / "README.md")
        assert {name: value for name, value in about.items() if name.startswith("license")} == expected
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("non-commercial**: `translator (CC-BY-NC-4.0)`" in card) == (expected == NON_COMMERCIAL)
    for text in (card, (tmp_path / "merged" / "README.md").read_text()):
        assert f"Of what it was trained on: translator: {licence};" in text and "| steps | 1 |" in text
        assert "Not measured yet" in text and text.count("Why is the sky blue") == 1
    messages = re.search("^messages = (.*)$", card, re.MULTILINE)[1]  # no backtick ends the code
    assert "`" not in messages and ast.literal_eval(messages)[0]["content"] == 'Be "kind": ```'
    assert '| system_prompt | Be "kind". |' in card
    assert "fine-tuned on reference answers and their translations, the baseline of SDRRL" in card


def test_weights_that_are_no_numbers_are_an_error_and_not_saved(command, tiny_model, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    next(model.parameters()).data.fill_(math.nan)
    shutil.copytree(tiny_model, tmp_path / "nan")
    model.save_pretrained(tmp_path / "nan")
    assert "no longer finite" in refused(command, capsys, model=tmp_path / "nan")
    assert not {"model.safetensors", "training.json"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_a_training_that_diverges_ends_there_and_not_after_the_last_step(command, tmp_path, capsys):
    options = "--learning_rate 1e30 --max_steps 50 --logging_steps 1 --save_steps 1 --lr_scheduler_type constant"
    step = int(re.search(r"no longer finite numbers at step (\d+):", refused(command, capsys, *options.split()))[1])
    assert 1 < step < 10
    saved = {int(path.name.rpartition("-")[2]) for path in (tmp_path / "out").glob("checkpoint-*")}
    assert max(saved) == step - 1  # of finite weights
