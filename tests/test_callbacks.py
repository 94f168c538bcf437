import json
import logging
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CannedGenerator, data_dir, make_tiny_model
from datasets import Dataset
from lm_eval import simple_evaluate
from peft import LoraConfig
from test_build import config as build_config
from test_trainer import rows
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from sdrrl_trl import ForgettingCallback, LMEvalCallback, SDRRLConfig, SDRRLError, SDRRLTrainer, build_transfer_set
from sdrrl_trl.cli import main
from sdrrl_trl.evaluation.suite import leaves, task_manager
from sdrrl_trl.evaluation.tasks import tasks_dir


TASKS = ["xnli_en", "sdrrl_pku_saferlhf"]


@pytest.fixture
def benchmarks(monkeypatch):
    """Real benchmark data."""
    if data_dir() is None:
        pytest.skip("needs the data of the benchmarks")
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))


@pytest.fixture
def lines(caplog):
    """Warnings of the callbacks."""
    caplog.set_level(logging.WARNING, "sdrrl_trl.trainer.callbacks")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "sdrrl_trl.trainer.callbacks"]


def make_trainer(model, folder, cls=SFTTrainer, peft_config=None, train_dataset=None, **options):
    args = (SDRRLConfig if cls is SDRRLTrainer else SFTConfig)(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        logging_steps=2,
        disable_tqdm=True,
        save_strategy="steps" if "save_steps" in options else "no",
        **{"report_to": "none", "learning_rate": 1e-2, "max_steps": 4, "max_length": 512, **options},
    )
    return cls(model, args, train_dataset=train_dataset or rows(), peft_config=peft_config)


def logged(trainer, name):
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": False, "peft_config": LoraConfig(target_modules=["q_proj"], lora_dropout=0.3)},
        {"cls": SDRRLTrainer, "kl_coef": 0.1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {
            "cls": SDRRLTrainer,
            "packing": True,
            "max_length": 128,
            "peft_config": LoraConfig(target_modules=["v_proj"], lora_dropout=0.3),
        },
    ],
)
def test_a_run_with_the_callbacks_is_bit_for_bit_the_run_without(benchmarks, tiny_model, tmp_path, options):
    dropout = {"model_init_kwargs": {"attention_dropout": 0.2}}  # so that a changed random state changes the losses
    runs = []
    for watched in (False, True):
        trainer = make_trainer(tiny_model, tmp_path, **dropout, **options)
        if watched:
            trainer.add_callback(LMEvalCallback(trainer, TASKS, steps=1, limit=2, at_start=True))
            trainer.add_callback(ForgettingCallback(trainer, rows=rows(), steps=1))
        trainer.train()
        runs.append(trainer)
    for p, q in zip(*(trainer.model.parameters() for trainer in runs), strict=True):
        assert torch.equal(p, q)
    # Not only the losses: TRL and transformers forget what they have gathered when something else is logged
    entries = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in runs]
    assert [entry["step"] for entry in entries[0]] == [2, 4]
    assert entries[0] == entries[1]
    assert list(logged(runs[1], "lm_eval/xnli_en/acc")) == [0, 1, 2, 3, 4]
    assert list(logged(runs[1], "forgetting/bpb")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("tasks", [TASKS, ["sdrrl_xnli_gen_en"]])
@pytest.mark.parametrize("training", ["full", "lora"])
def test_everything_is_afterwards_as_before(benchmarks, tmp_path, tasks, training):
    make_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]) if training == "lora" else None
    trainer = make_trainer(str(tmp_path / "model"), tmp_path / "out", peft_config=lora)
    callback = LMEvalCallback(trainer, tasks, limit=2)
    trainer.add_callback(callback)
    trainer.train()
    model, tokenizer = trainer.model, trainer.processing_class
    model.train()
    next(model.children()).eval()  # modes are not all the same

    def draw(*_):  # as tasks with sampling or random examples do
        random.random(), np.random.rand(), torch.rand(1)

    model.get_output_embeddings().register_forward_pre_hook(draw)

    def everything():
        return {
            "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
            "modes": [(name, module.training) for name, module in model.named_modules()],
            "parameters": [(n, id(p), p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)],
            "checkpointing": model.is_gradient_checkpointing,
            "configuration": (model.config.to_dict(), model.generation_config.to_dict()),
            "tokenizer": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.special_tokens_map),
            "hooks": [len(module._forward_hooks) for module in model.modules()],
            "control": vars(trainer.control).copy(),
            "gradients": torch.is_grad_enabled(),
        }

    for should_log in (False, True):
        trainer.control.should_log = should_log
        before = everything()
        callback._evaluate()
        after = everything()
        for name in before:
            assert after[name] == before[name], name


def test_the_scores_are_those_of_lm_eval_on_the_saved_model(benchmarks, tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path / "out", learning_rate=3e-2, max_steps=6)
    trainer.add_callback(LMEvalCallback(trainer, TASKS, steps=100, limit=24, at_start=True))
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    found = leaves(tasks_dir())
    changed = False
    for step, path in ((0, tiny_model), (6, tmp_path / "trained")):
        result = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(path), "dtype": "float32"},
            tasks=[found[task] for task in TASKS],
            task_manager=task_manager(),
            device="cpu",
            batch_size=8,
            limit=24,
            bootstrap_iters=0,
            apply_chat_template=True,
        )["results"]
        for task, metric in ((TASKS[0], "acc"), (TASKS[1], "acc_norm")):
            scores = logged(trainer, f"lm_eval/{task}/{metric}")
            assert scores[step] == result[task][f"{metric},none"]
            changed |= scores[0] != scores[6]
    assert changed
    assert logged(trainer, "lm_eval/seconds")[6] > 0
    assert not any("stderr" in name or "alias" in name for entry in trainer.state.log_history for name in entry)


class Poison(TrainerCallback):
    """Makes the weights NaN, as a diverged training does."""

    def on_step_end(self, args, state, control, model, **kwargs):
        next(model.parameters()).data.fill_(math.nan)


class StepCounter(TrainerCallback):
    steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps += 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tasks": "sdrrl_quik"}, "sdrrl_quick"),
        ({"tasks": "sdrrl_quick"}, "sdrrl doctor"),  # not all of its languages are there
        ({"languages": ["xx"]}, "xx"),
        ({"tasks": "sdrrl_xnli", "languages": ["pt"]}, "pt"),
    ],
)
def test_unknown_tasks_and_missing_data_fail_before_the_first_step(benchmarks, tiny_model, tmp_path, options, match):
    trainer = make_trainer(tiny_model, tmp_path)
    counter = StepCounter()
    trainer.add_callback(counter)
    trainer.add_callback(LMEvalCallback(trainer, **options))
    with pytest.raises(SDRRLError, match=match):
        trainer.train()
    assert counter.steps == 0


def test_a_group_is_evaluated_in_the_languages_asked_for(benchmarks, tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path, max_steps=1)
    trainer.add_callback(LMEvalCallback(trainer, languages=["en"], limit=1))
    trainer.train()
    names = {name.split("/")[1] for name in trainer.state.log_history[0] if name.startswith("lm_eval/")}
    assert names == {"sdrrl_pku_saferlhf", "xnli_en", "xstorycloze_en", "belebele_eng_Latn", "seconds"}


@pytest.mark.parametrize("tasks", [TASKS, ["sdrrl_xnli_gen_en"]])
def test_scores_of_a_model_that_gives_nan_are_nan(benchmarks, tiny_model, tmp_path, lines, tasks):
    trainer = make_trainer(tiny_model, tmp_path, max_steps=1)
    trainer.add_callback(Poison())
    trainer.add_callback(LMEvalCallback(trainer, tasks, limit=2, at_start=True))
    trainer.train()
    scores = logged(trainer, f"lm_eval/{tasks[0]}/acc")
    assert not math.isnan(scores[0]) and math.isnan(scores[1])
    assert len(lines()) == 1 and "NaN" in lines()[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps"),
        ({"limit": 0}, "limit"),
        ({"tasks": []}, "tasks"),
    ],
)
def test_options_of_the_evaluation_that_cannot_work_are_refused(tiny_model, tmp_path, options, match):
    with pytest.raises(SDRRLError, match=f"`{match}`"):
        LMEvalCallback(make_trainer(tiny_model, tmp_path), **options)


def test_a_chat_template_must_be_there_to_ask_through_it(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.processing_class.chat_template = None
    with pytest.raises(SDRRLError, match="apply_chat_template=False"):
        LMEvalCallback(trainer)
    with pytest.raises(SDRRLError, match="chat template"):
        ForgettingCallback(trainer, rows=rows())
    LMEvalCallback(trainer, apply_chat_template=False)


def own_answers(n=9):
    """Answers of very different lengths, for several languages' bytes."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Why is the sky blue {i}?"}],
            "completion": [{"role": "assistant", "content": "O céu é azul. 하늘 " * (1 + (5 * i) % 9) + str(i)}],
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("training", ["full", "lora", "bfloat16"])
def test_the_bits_per_byte_are_those_of_the_answers_alone(tiny_model, tmp_path, training):
    lora = LoraConfig(target_modules=["q_proj"]) if training == "lora" else None
    dtype = {"model_init_kwargs": {"dtype": "bfloat16"}} if training == "bfloat16" else {}
    trainer = make_trainer(tiny_model, tmp_path, cls=SDRRLTrainer, peft_config=lora, max_steps=2, **dtype)
    trainer.add_callback(ForgettingCallback(trainer, rows=own_answers(), batch_size=4))
    trainer.train()
    tokenizer, nll, n_bytes = trainer.processing_class, 0.0, 0
    trainer.model.eval()
    for row in own_answers():
        question = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        answer = row["completion"][0]["content"]
        ids = tokenizer(question + answer, return_tensors="pt")["input_ids"]
        n = len(tokenizer(question)["input_ids"])
        with torch.no_grad():
            log_probs = trainer.model(ids).logits[0, :-1].float().log_softmax(-1)
        nll -= log_probs.gather(-1, ids[0, 1:, None])[n - 1 :].sum().item()
        n_bytes += len(answer.encode())
    bpb, increase = logged(trainer, "forgetting/bpb"), logged(trainer, "forgetting/increase")
    exact = pytest.approx(nll / math.log(2) / n_bytes, rel=2e-2 if training == "bfloat16" else 1e-5)
    assert bpb[2] == exact
    assert increase == {0: 0.0, 2: bpb[2] - bpb[0]}
    assert bpb[0] != bpb[2]


def test_the_initial_models_own_held_out_answers_come_from_a_transfer_set(seeds, tiny_model, tmp_path):
    folder = build_transfer_set(build_config(seeds, tmp_path / "set", test_size=0.3), CannedGenerator())
    held_out = Dataset.from_parquet(str(folder / "test.parquet")).to_list()
    own = [row for row in held_out if row["kind"] == "source"]
    assert 0 < len(own) < len(held_out) or {row["kind"] for row in held_out} == {"source"}
    trainer = make_trainer(tiny_model, tmp_path / "out", max_steps=1)
    for options in ({"transfer_set": str(folder)}, {"rows": held_out}, {"rows": own}):
        trainer.add_callback(ForgettingCallback(trainer, **options))
    trainer.train()
    figures = [entry["forgetting/bpb"] for entry in trainer.state.log_history if "forgetting/bpb" in entry]
    assert len(figures) == 6 and len(set(figures)) == 2


def test_a_transfer_set_without_held_out_questions_is_refused(seeds, tiny_model, tmp_path):
    folder = build_transfer_set(build_config(seeds, tmp_path / "set", test_size=0.0), CannedGenerator())
    with pytest.raises(SDRRLError, match="test_size"):
        ForgettingCallback(make_trainer(tiny_model, tmp_path / "out"), str(folder))


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_beyond_the_bound_it_warns_once_or_stops(tiny_model, tmp_path, lines, action):
    trainer = make_trainer(tiny_model, tmp_path, max_steps=6, learning_rate=0.3)
    trainer.add_callback(ForgettingCallback(trainer, rows=own_answers(), steps=2, bound=0.01, action=action))
    trainer.train()
    increase = logged(trainer, "forgetting/increase")
    assert increase[2] > 0.01
    assert list(increase) == ([0, 2] if action == "stop" else [0, 2, 4, 6])
    assert trainer.state.global_step == (2 if action == "stop" else 6)
    assert len(lines()) == 1
    assert "at step 2" in lines()[0] and f"{increase[2]:.3f}" in lines()[0] and "bound=0.01" in lines()[0]


def test_rows_that_are_too_long_are_left_out_with_a_word(tiny_model, tmp_path, lines):
    callback = ForgettingCallback(make_trainer(tiny_model, tmp_path), rows=own_answers(), max_length=100)
    kept = [len(ids) for ids, _, _ in callback._answers]
    assert kept == sorted(kept) and max(kept) <= 100 and 0 < len(kept) < 9
    assert lines() == [f"{9 - len(kept)} of 9 rows are longer than 100 tokens: left out."]


def test_within_the_bound_nothing_happens(tiny_model, tmp_path, lines):
    trainer = make_trainer(tiny_model, tmp_path, learning_rate=1e-6)
    trainer.add_callback(ForgettingCallback(trainer, rows=own_answers(), steps=1, action="stop"))
    trainer.train()
    assert trainer.state.global_step == 4 and lines() == []


def test_nan_is_beyond_any_bound(tiny_model, tmp_path, lines):
    trainer = make_trainer(tiny_model, tmp_path)
    trainer.add_callback(Poison())
    trainer.add_callback(ForgettingCallback(trainer, rows=own_answers(), steps=1, bound=1e9, action="stop"))
    trainer.train()
    assert trainer.state.global_step == 1 and len(lines()) == 1
    with pytest.raises(SDRRLError, match="NaN before the first step"):
        trainer.train()


def test_a_resumed_run_is_compared_with_the_initial_model(tiny_model, tmp_path, lines):
    def run(resume, callback=True, **options):
        trainer = make_trainer(tiny_model, tmp_path, save_steps=2, **options)
        if callback:
            trainer.add_callback(ForgettingCallback(trainer, rows=own_answers(), steps=2, bound=1e9))
        trainer.train(resume_from_checkpoint=resume)
        return logged(trainer, "forgetting/increase")

    whole = run(None)
    assert list(whole) == [0, 2, 4]
    assert run(str(tmp_path / "checkpoint-2")) == whole
    run(None, callback=False)
    assert run(str(tmp_path / "checkpoint-2"))[2] == 0.0
    assert len(lines()) == 1 and "not from the initial model" in lines()[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "either `transfer_set` or `rows`"),
        ({"rows": own_answers(), "transfer_set": "set"}, "either `transfer_set` or `rows`"),
        ({"rows": own_answers(), "bound": -0.1}, "`bound`"),
        ({"rows": own_answers(), "bound": math.nan}, "`bound`"),
        ({"rows": own_answers(), "action": "abort"}, "`action`"),
        ({"rows": own_answers(), "batch_size": 0}, "`batch_size`"),
        ({"rows": own_answers(), "max_length": 3}, "`max_length=3`"),
        ({"rows": []}, "no row of kind `source`"),
        ({"rows": rows().filter(lambda row: row["kind"] == "target")}, "no row of kind `source`"),
        ({"rows": [{"prompt": "Why?", "completion": "Because."}]}, "plain text"),
        ({"rows": [{**own_answers()[0], "completion": [{"role": "assistant", "content": " "}]}]}, "empty"),
        ({"transfer_set": "/nowhere"}, "sdrrl build"),
    ],
)
def test_options_of_the_watch_that_cannot_work_are_refused(tiny_model, tmp_path, options, match):
    with pytest.raises(SDRRLError, match=match):
        ForgettingCallback(make_trainer(tiny_model, tmp_path), **options)


def test_tensorboard_gets_all_figures_under_stable_names(benchmarks, tiny_model, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(tiny_model, tmp_path / "out", cls=SDRRLTrainer, report_to="tensorboard", kl_coef=0.1)
    trainer.add_callback(LMEvalCallback(trainer, ["xnli_en"], steps=3, limit=2))
    trainer.add_callback(ForgettingCallback(trainer, rows=own_answers(), steps=3))
    trainer.train()
    trainer.evaluate(rows())
    scalars = {}
    for file in (tmp_path / "board").rglob("events*"):
        board = EventAccumulator(str(file)).Reload()
        for name in board.Tags()["scalars"]:
            scalars.setdefault(name, {}).update({event.step: event.value for event in board.Scalars(name)})
    by_language = [f"{figure}/{language}" for figure in ("nll", "bpb", "kl", "share") for language in ("en", "pt")]
    expected = {f"train/{name}": [2, 4] for name in ["loss", "nll/source", *by_language]}
    expected |= {f"eval/{name}": [4] for name in ["loss", *by_language]}
    expected |= {f"train/lm_eval/{name}": [3, 4] for name in ("xnli_en/acc", "seconds")}
    expected |= {f"train/forgetting/{name}": [0, 3, 4] for name in ("bpb", "increase")}
    for name, steps in expected.items():
        assert list(scalars[name]) == steps, name
    for name in ("nll/pt", "bpb/pt", "forgetting/bpb", "lm_eval/xnli_en/acc"):
        assert scalars[f"train/{name}"] == pytest.approx(logged(trainer, name), rel=1e-6)


def test_sdrrl_train_adds_the_callbacks_on_demand(benchmarks, seeds, tiny_model, tmp_path, capsys):
    folder = build_transfer_set(build_config(seeds, tmp_path / "set", test_size=0.3), CannedGenerator())
    command = ["train", "--transfer_set", str(folder), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    command += ["--model_name_or_path", tiny_model, "--max_steps", "2", "--report_to", "none", "--bf16", "false"]
    with pytest.raises(SystemExit):
        main([*command, "--eval_tasks", "sdrrl_quik"])
    assert "Did you mean sdrrl_quick" in capsys.readouterr().err and not (tmp_path / "out").exists()
    watch = ["--eval_tasks", *TASKS, "--eval_tasks_languages", "en", "--eval_tasks_steps", "2"]
    main([*command, *watch, "--forgetting_bound", "0.1"])
    log = json.loads((tmp_path / "out" / "training.json").read_text())["log"]
    assert [entry["step"] for entry in log if "lm_eval/xnli_en/acc" in entry] == [2]
    assert [entry["step"] for entry in log if "forgetting/bpb" in entry] == [0, 2]
    assert "lm_eval/xnli_en/acc 0." in capsys.readouterr().err


def test_two_processes_find_what_one_does(benchmarks, tiny_model, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    script = str(Path(__file__).parent / "distributed_callbacks.py")
    found = []
    for n in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if n == 2 else []
        command = [sys.executable, *launcher, script, tiny_model, str(tmp_path), str(n)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        found.append(json.loads((tmp_path / f"{n}.json").read_text()))
    for case, (first, second) in {name: (found[0][name], found[1][name]) for name in found[0]}.items():
        assert len(first) == len(second) == 9, case  # two losses, lm_eval at 0, 2 and 4, forgetting at 0, 2, 3 and 4
        for one, two in zip(first, second, strict=True):
            assert one.keys() == two.keys()
            for name in one:
                exact = name.startswith("lm_eval/")
                assert two[name] == pytest.approx(one[name], abs=0 if exact else 1e-4), (case, name)
