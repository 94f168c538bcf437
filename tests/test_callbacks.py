import logging
import math
import random

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig
from test_trainer import CPU, LORA, make, rows
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState
from trl import SFTTrainer

from sdrrl_trl import ForgettingCallback, LMEvalCallback, SDRRLConfig, SDRRLError
from sdrrl_trl.evaluation.suite import select
from sdrrl_trl.trainer.callbacks import ProgressLines


TASKS = ["xnli_en", "sdrrl_pku_saferlhf"]
STEPS = {"max_steps": 4, "logging_steps": 2, "max_length": 512, "eval_steps": 1}


@pytest.fixture
def lines(caplog):
    """Warnings of the callbacks."""
    caplog.set_level(logging.WARNING, "sdrrl_trl.trainer.callbacks")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "sdrrl_trl.trainer.callbacks"]


def logged(trainer, name):
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def state(trainer):
    """All that a training changes, or lm-eval might."""
    model, tokenizer = trainer.model, trainer.processing_class
    return {
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "trainable": [(n, p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)],
        "configuration": (model.is_gradient_checkpointing, model.generation_config.to_dict()),
        "tokenizer": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.special_tokens_map),
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        # Not only the losses: TRL and transformers forget what they have gathered when something else is logged
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


HEAD = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    "options",
    [
        {"cls": SFTTrainer},
        {"cls": SFTTrainer, "gradient_checkpointing": False, "peft_config": HEAD},
        {"kl_coef": 0.1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"packing": True, "max_length": 128, "peft_config": LoraConfig(lora_dropout=0.3)},
    ],
)
def test_a_run_with_lm_eval_is_bit_for_bit_the_run_without(benchmarks, tmp_path, options):
    """In what it learns and logs, and in the state that it leaves, random numbers among it."""
    make_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    dropout = {"model_init_kwargs": {"attention_dropout": 0.2}}  # so that a changed random state changes the losses
    runs, ends = [], []
    for watched in (False, True):
        trainer = make(str(tmp_path / "model"), tmp_path, **{**STEPS, **dropout, **options})
        next(trainer.model.children()).register_forward_pre_hook(draw)
        if watched:
            trainer.add_callback(LMEvalCallback(trainer, [*TASKS, "sdrrl_xnli_gen_en"], limit=2))
        trainer.train()
        runs.append(trainer)
        ends.append(state(trainer))
    for p, q in zip(*(trainer.model.parameters() for trainer in runs), strict=True):
        assert torch.equal(p, q)
    for name in ends[0]:
        assert ends[0][name] == ends[1][name], name
    assert [entry["step"] for entry in ends[0]["log"]] == [2, 4]
    assert list(logged(runs[1], "lm_eval/xnli_en/acc")) == [0, 1, 2, 3, 4]


def draw(*_):
    """Random numbers where tasks with sampling or random examples draw them."""
    random.random(), np.random.rand(), torch.rand(1)


def test_the_scores_are_those_of_lm_eval_on_the_saved_model(benchmarks, tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, **STEPS | {"learning_rate": 3e-2, "eval_steps": 100})
    trainer.add_callback(LMEvalCallback(trainer, TASKS, limit=24))
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    changed = False
    for step, path in ((0, tiny_model), (4, tmp_path / "trained")):
        lm = HFLM(pretrained=str(path), dtype="float32", device="cpu", batch_size=8)
        options = {"limit": 24, "bootstrap_iters": 0, "apply_chat_template": True}
        result = evaluate(lm, {"tasks": select(TASKS)}, **options)["results"]
        for task, metric in ((TASKS[0], "acc"), (TASKS[1], "acc_norm")):
            scores = logged(trainer, f"lm_eval/{task}/{metric}")
            assert scores[step] == result[task][f"{metric},none"]
            changed |= scores[0] != scores[4]
    assert changed
    assert logged(trainer, "lm_eval/seconds")[4] > 0
    assert "stderr" not in str(trainer.state.log_history)


class Poison(TrainerCallback):
    """Makes the weights NaN, as a diverged training does."""

    def on_step_end(self, args, state, control, model, **kwargs):
        next(model.parameters()).data.fill_(math.nan)


@pytest.mark.parametrize(("tasks", "match"), [(["sdrrl_quik"], "sdrrl_quick"), (["sdrrl_quick"], "sdrrl doctor")])
def test_unknown_tasks_and_missing_data_fail_before_the_first_step(benchmarks, tiny_model, tmp_path, tasks, match):
    trainer = make(tiny_model, tmp_path)
    trainer.add_callback(LMEvalCallback(trainer, tasks))
    with pytest.raises(SDRRLError, match=match):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_group_is_evaluated_in_the_languages_asked_for(benchmarks, tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, max_steps=1)
    trainer.add_callback(LMEvalCallback(trainer, ["sdrrl_quick"], limit=1, languages=["en"]))
    trainer.train()
    names = {name.split("/")[1] for name in trainer.state.log_history[0] if name.startswith("lm_eval/")}
    assert names == {"sdrrl_pku_saferlhf", "xnli_en", "xstorycloze_en", "belebele_eng_Latn", "seconds"}


@pytest.mark.parametrize(("tasks", "metric"), [(TASKS, "acc"), (["sdrrl_xnli_gen_en"], "accuracy")])
def test_scores_of_a_model_that_gives_nan_are_nan(benchmarks, tiny_model, tmp_path, lines, tasks, metric):
    trainer = make(tiny_model, tmp_path, max_steps=1)
    trainer.add_callback(Poison())
    trainer.add_callback(LMEvalCallback(trainer, tasks, limit=2))
    trainer.train()
    scores = logged(trainer, f"lm_eval/{tasks[0]}/{metric}")
    assert not math.isnan(scores[0]) and math.isnan(scores[1])
    assert len(lines()) == 1 and "NaN" in lines()[0]


EVALUATIONS = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "eval_dataset": rows()}


def watch(model, folder, bound=0.05, stop=False, poison=False, **options):
    """A training whose drift is watched."""
    trainer = make(model, folder, **{**EVALUATIONS, "max_steps": 6, "learning_rate": 3e-2, **options})
    if poison:
        trainer.add_callback(Poison())
    trainer.add_callback(ForgettingCallback(trainer, bound, stop))
    return trainer


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("peft_config", [None, LORA])
def test_beyond_the_bound_it_warns_once_or_stops(tiny_model, tmp_path, lines, peft_config, stop):
    trainer = watch(tiny_model, tmp_path, 1e-3, stop, peft_config=peft_config)
    trainer.train()
    drift, bpb = logged(trainer, "eval_drift/source"), logged(trainer, "eval_bpb/source")
    # The same rows are trained on, so they get likelier than the initial model finds them: that is drift, too
    assert drift[0] == 0 and drift[2] > 1e-3 and bpb[2] < bpb[0]
    assert list(drift) == ([0, 2] if stop else [0, 2, 4, 6])
    assert trainer.state.global_step == (2 if stop else 6)
    (line,) = lines()
    assert "at step 2" in line and f"{drift[2]:.3f} bits per byte" in line and "bound=0.001" in line


def test_within_the_bound_nothing_happens_and_nan_is_beyond_any_bound(tiny_model, tmp_path, lines):
    trainer = watch(tiny_model, tmp_path, stop=True, learning_rate=1e-6)
    trainer.train()
    assert trainer.state.global_step == 6 and lines() == []
    trainer = watch(tiny_model, tmp_path, 1e9, stop=True, poison=True)
    trainer.train()
    assert trainer.state.global_step == 2 and len(lines()) == 1


def test_a_watched_run_trains_bit_for_bit_as_one_that_only_evaluates(tiny_model, tmp_path):
    options = {"learning_rate": 3e-2, "model_init_kwargs": {"attention_dropout": 0.2}}
    evaluated = make(tiny_model, tmp_path, **EVALUATIONS, **options, max_steps=6)
    evaluated.train()
    watched = watch(tiny_model, tmp_path, **options)
    watched.train()
    for p, q in zip(evaluated.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert logged(evaluated, "loss") == logged(watched, "loss")
    assert logged(evaluated, "eval_loss") == pytest.approx(logged(watched, "eval_loss"), rel=1e-5)


def test_a_resumed_run_is_compared_with_the_initial_model(tiny_model, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = watch(tiny_model, tmp_path, **options)
    whole.train()
    resumed = watch(tiny_model, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert logged(resumed, "eval_drift/source") == logged(whole, "eval_drift/source")


def test_what_cannot_be_watched_is_refused_when_the_callback_is_made(tiny_model, tmp_path):
    for bound in (-0.1, math.nan):
        with pytest.raises(SDRRLError, match="`bound`"):
            watch(tiny_model, tmp_path, bound)
    for options in ({"eval_dataset": rows().filter(lambda row: row["kind"] == "target")}, {"eval_strategy": "no"}):
        with pytest.raises(SDRRLError, match="records of kind `source`"):
            watch(tiny_model, tmp_path, **options)
    with pytest.raises(SDRRLError, match="needs the frozen initial model"):
        watch(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path)


@pytest.mark.parametrize("metric", ["eval_bpb/pt", "nll/source", "eval_all_kl/pt", "eval_drift/source"])
def test_the_best_model_is_the_one_with_the_least_of_a_loss(tiny_model, tmp_path, metric):
    assert make(tiny_model, tmp_path, metric_for_best_model=metric).args.greater_is_better is False
    assert make(tiny_model, tmp_path, metric_for_best_model="eval_accuracy").args.greater_is_better is True


def test_a_line_comes_every_half_minute_even_without_a_log(monkeypatch, capsys):
    now = iter([0.0, 20.0, 40.0, 40.0, 60.0])
    monkeypatch.setattr("sdrrl_trl.trainer.callbacks.time.monotonic", lambda: next(now))
    lines, state, control = ProgressLines(), TrainerState(global_step=0, max_steps=8), TrainerControl()
    lines.on_train_begin(None, state, control)
    for _ in range(3):
        state.global_step += 1
        lines.on_step_end(None, state, control)
    assert capsys.readouterr().err == "train: 2/8 steps, 3.0/min, 120 s left\n"


def test_a_line_has_the_drift_of_what_is_anchored_alone(capsys):
    logs = {"nll/en": 1.0, "drift/en": 0.25, "nll/pt": 2.0, "drift/pt": 0.5}
    for anchors, shown in ((["en"], "drift/en 0.250, nll/pt"), (None, "drift/en 0.250, nll/pt 2.000, drift/pt 0.500")):
        lines, state, control = ProgressLines(), TrainerState(global_step=0, max_steps=8), TrainerControl()
        lines.on_train_begin(None, state, control)
        lines.on_log(SDRRLConfig("out", anchor_languages=anchors, kl_coef=1.0, **CPU), state, control, logs)
        said = capsys.readouterr().err
        assert shown in said and ("drift/pt" in said) == (anchors is None)
