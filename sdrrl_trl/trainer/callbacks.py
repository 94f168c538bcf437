import copy
import logging
import math
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import DistributedType
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from sdrrl_trl.evaluation.evaluate import prepare_tasks
from sdrrl_trl.evaluation.models import no_tying, watch_for_nan
from sdrrl_trl.evaluation.suite import select
from sdrrl_trl.trainer.teacher import evaluation_mode
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import SDRRLError


if TYPE_CHECKING:
    from trl import SFTTrainer

logger = logging.getLogger(__name__)


class ProgressLines(TrainerCallback):
    """Plain lines with rate, ETA and loss at every logging step, for log files, where a progress bar is a mess."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs, **kwargs):
        if not state.is_world_process_zero:
            return
        figures = {name: logs[name] for name in logs if name.startswith(("lm_eval/", "forgetting/"))}
        if figures:  # of the callbacks below
            line = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"train: {state.global_step}/{state.max_steps} steps, {line}", file=sys.stderr, flush=True)
        if "loss" not in logs:
            return
        rate = (state.global_step - self._first_step) / (time.monotonic() - self._start)
        left = (state.max_steps - state.global_step) / rate
        losses = [f"{name} {float(logs[name]):.3f}" for name in logs if name == "loss" or name.startswith("nll/")]
        print(
            f"train: {state.global_step}/{state.max_steps} steps, {rate:.2f}/s, {left:.0f} s left, "
            + ", ".join(losses),
            file=sys.stderr,
            flush=True,
        )


class LMEvalCallback(TrainerCallback):
    r"""
    Evaluates the model in training on lm-eval tasks, and changes nothing in the training: losses and weights are bit
    for bit those of a run without it.

    Each score goes to the trainer's log, and so to TensorBoard, Weights & Biases and the like, as
    `lm_eval/<task>/<metric>`, the time that it took as `lm_eval/seconds`. The tasks, with their data, are loaded once,
    when the training begins. With several processes each takes its part of the items.

    Args:
        trainer ([`~trl.SFTTrainer`]):
            Trainer that the callback is added to: an [`SDRRLTrainer`], or any other trainer of a causal language
            model.
        tasks (`str` or `list[str]`, *optional*, defaults to `"sdrrl_quick"`):
            Tasks, groups or tags, of ours or of lm-eval. Groups and tags stand for all tasks in them, whose data must
            be there: `sdrrl doctor` shows which are.
        steps (`int`, *optional*, defaults to `500`):
            Evaluate whenever so many optimiser steps are done.
        limit (`int`, *optional*, defaults to `64`):
            Use only the first so many items of each task. `None` for all.
        batch_size (`int`, *optional*, defaults to `8`):
            Items per batch and process.
        max_length (`int`, *optional*):
            Longest input in tokens, longer ones lose their beginning. Default: what the model's configuration says.
        apply_chat_template (`bool`, *optional*, defaults to `True`):
            Ask through the tokenizer's chat template.
        languages (`list[str]`, *optional*):
            Only the tasks about these languages. Name the source language, too, to watch it. Default: all.
        at_start (`bool`, *optional*, defaults to `False`):
            Evaluate the initial model, too.
        at_end (`bool`, *optional*, defaults to `True`):
            Evaluate after the last step, too, whatever its number.

    Raises:
        `SDRRLError`: when it is made, for options that cannot work; when the training begins, for unknown tasks and
            tasks whose data are missing.

    Example:

    ```python
    from sdrrl_trl import LMEvalCallback

    trainer.add_callback(LMEvalCallback(trainer, ["sdrrl_xnli", "sdrrl_pku_saferlhf"], languages=["en", "th"]))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: "SFTTrainer",
        tasks: str | list[str] = "sdrrl_quick",
        steps: int = 500,
        limit: int | None = 64,
        batch_size: int = 8,
        max_length: int | None = None,
        apply_chat_template: bool = True,
        languages: list[str] | None = None,
        at_start: bool = False,
        at_end: bool = True,
    ):
        _check_positive(steps=steps, limit=limit, batch_size=batch_size, max_length=max_length)
        _check_parallelism(trainer, "LMEvalCallback")
        if not tasks:
            raise SDRRLError("`tasks` is empty: there would be nothing to evaluate. Name a task, as `sdrrl_quick`.")
        if apply_chat_template and trainer.processing_class.chat_template is None:
            raise SDRRLError("The tokenizer has no chat template to ask through. Set `apply_chat_template=False`.")
        self.trainer = trainer
        self.task_names = [tasks] if isinstance(tasks, str) else tasks
        self.steps = steps
        self.limit = limit
        self.batch_size = batch_size
        self.max_length = max_length
        self.apply_chat_template = apply_chat_template
        self.languages = languages
        self.at_start = at_start
        self.at_end = at_end
        self._tasks: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        with _undisturbed(self.trainer):
            self._tasks = select(self.task_names, self.languages)
        prepare_tasks(self._tasks, self.limit, self.trainer.accelerator.num_processes)
        if self.at_start and state.global_step == 0:
            self._evaluate()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or (self.at_end and control.should_training_stop):
            self._evaluate()

    def _evaluate(self) -> None:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        start = time.monotonic()
        accelerator = self.trainer.accelerator
        with _undisturbed(self.trainer), watch_for_nan(self.trainer.model) as found_nan:
            with no_tying(self.trainer.model):
                lm = HFLM(
                    pretrained=self.trainer.model,
                    tokenizer=copy.deepcopy(self.trainer.processing_class),  # lm-eval may give it a padding token
                    batch_size=self.batch_size,
                    max_length=self.max_length,
                )
            if accelerator.num_processes > 1:  # of a model that is already loaded, each process would do all items
                lm.accelerator, lm._device = accelerator, accelerator.device
                lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
            quiet = self.trainer.args.disable_tqdm
            lm.loglikelihood = partial(lm.loglikelihood, disable_tqdm=quiet)
            lm.generate_until = partial(lm.generate_until, disable_tqdm=quiet)
            for task in self._tasks.values():
                task.set_fewshot_seed(seed=1234)
            result = evaluate(
                lm,
                {"tasks": self._tasks, "groups": {}, "group_map": {}},
                limit=self.limit,
                bootstrap_iters=0,  # else lm-eval starts processes, in the midst of CUDA
                log_samples=False,
                apply_chat_template=self.apply_chat_template,
            )
            # The main process alone has the result, but all must log together
            scores = broadcast_object_list([_scores(result) if accelerator.is_main_process else None])[0]
            if any(gather_object([bool(found_nan)])):
                # lm-eval takes the first choice if it cannot compare them, which looks like a score
                scores = dict.fromkeys(scores, math.nan)
                if accelerator.is_main_process:
                    logger.warning(
                        f"At step {self.trainer.state.global_step} the model's logits are NaN, so its scores are "
                        "logged as NaN. The training has diverged: lower `learning_rate`."
                    )
            _log(self.trainer, scores | {"lm_eval/seconds": time.monotonic() - start})


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """`lm_eval/<task>/<metric>`, with the name of the filter behind it if there is one."""
    scores = {}
    for task, values in result["results"].items():
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if filter_name and not metric.endswith("_stderr") and isinstance(value, int | float):
                name = f"lm_eval/{task}/{metric}" + ("" if filter_name == "none" else f"_{filter_name}")
                scores[name] = float(value)
    return scores


class ForgettingCallback(TrainerCallback):
    r"""
    Watches whether the model forgets how it answered in its source language, and warns or stops the training if it
    does. It changes nothing else in the training.

    The measure is the bits per byte of the initial model's own held-out answers: their negative log-likelihood in
    bits, over their length in UTF-8 bytes. At the start of the training it is that of the initial model. It goes to
    the trainer's log as `forgetting/bpb`, and what it has risen since as `forgetting/increase`.

    Args:
        trainer ([`~trl.SFTTrainer`]):
            Trainer that the callback is added to: an [`SDRRLTrainer`] or [`~trl.SFTTrainer`], whose models give
            likelihoods without the logits of the whole vocabulary.
        transfer_set (`str`, *optional*):
            Folder made by `sdrrl build`, of which the held-out rows of kind `source` are taken.
        rows ([`~datasets.Dataset`] or `list[dict]`, *optional*):
            In place of a transfer set: conversations with `prompt` and `completion`. If they have a `kind`, only those
            of kind `source` are taken.
        bound (`float`, *optional*, defaults to `0.05`):
            Largest increase in bits per byte that is put up with.
        steps (`int`, *optional*, defaults to `100`):
            Measure whenever so many optimiser steps are done, and after the last.
        action (`str`, *optional*, defaults to `"warn"`):
            What to do beyond the bound: `"warn"` (once) or `"stop"` the training. NaN is beyond any bound.
        limit (`int`, *optional*, defaults to `64`):
            Use only the first so many rows. `None` for all.
        batch_size (`int`, *optional*, defaults to `4`):
            Rows per batch and process.
        max_length (`int`, *optional*):
            Leave out rows of more tokens. Default: `max_length` of the trainer's configuration.

    Raises:
        `SDRRLError`: when it is made, for options that cannot work and rows that cannot be used; when the training
            begins, if the initial model gives NaN.

    Example:

    ```python
    from sdrrl_trl import ForgettingCallback

    trainer.add_callback(ForgettingCallback(trainer, transfer_set="transfer_set", action="stop"))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: "SFTTrainer",
        transfer_set: str | None = None,
        rows: Dataset | list[dict[str, Any]] | None = None,
        bound: float = 0.05,
        steps: int = 100,
        action: Literal["warn", "stop"] = "warn",
        limit: int | None = 64,
        batch_size: int = 4,
        max_length: int | None = None,
    ):
        _check_positive(steps=steps, limit=limit, batch_size=batch_size, max_length=max_length)
        _check_parallelism(trainer, "ForgettingCallback")
        if (transfer_set is None) == (rows is None):
            raise SDRRLError("Give either `transfer_set` or `rows`: one of them says what must not be forgotten.")
        if not bound >= 0:
            raise SDRRLError(f"`bound` must be at least 0, got {bound}: the initial model itself would be beyond it.")
        if action not in ("warn", "stop"):
            raise SDRRLError(f"`action` must be 'warn' or 'stop', got {action!r}.")
        if trainer.processing_class.chat_template is None:
            raise SDRRLError("The tokenizer has no chat template, so conversations cannot be measured. Give it one.")
        self.trainer = trainer
        self.bound = bound
        self.steps = steps
        self.action = action
        self.batch_size = batch_size
        rows = _held_out(transfer_set) if rows is None else rows
        self._answers = self._tokenize(rows, limit, max_length or trainer.args.max_length or math.inf)
        self._initial = math.nan
        self._warned = False

    def _tokenize(
        self, rows: Iterable[dict[str, Any]], limit: int | None, max_length: float
    ) -> list[tuple[list[int], int, int]]:
        """Token ids, number of them before the answer, and bytes of the answer, the shortest first."""
        tokenizer, answers = self.trainer.processing_class, []
        rows = [row for row in rows if row.get("kind", "source") == "source"][:limit]
        for row in rows:
            if isinstance(row["prompt"], str):
                raise SDRRLError("`rows` hold plain text. Give lists of messages, as a transfer set has.")
            asked = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
            answer = row["completion"][-1]["content"].strip()
            # What the template itself puts before the answer, as an empty thought, is part of the question
            start = whole.find(answer, len(os.path.commonprefix([asked, whole])))
            if start == -1 or not answer:
                raise SDRRLError(f"An answer is empty or changed by the chat template: {answer!r:.60}. Leave it out.")
            ids = tokenizer(whole[: start + len(answer)], add_special_tokens=False)["input_ids"]
            n_before = len(tokenizer(whole[:start], add_special_tokens=False)["input_ids"])
            if len(ids) <= max_length:
                answers.append((ids, n_before, len(answer.encode())))
        n_left_out = len(rows) - len(answers)
        if 0 < n_left_out < len(rows) and self.trainer.accelerator.is_main_process:
            logger.warning(f"{n_left_out} of {len(rows)} rows are longer than {max_length} tokens: left out.")
        if not answers:
            raise SDRRLError(
                "There is no row of kind `source` to measure forgetting on"
                + (f", of at most `max_length={max_length}` tokens. Raise it." if rows else ". Give others.")
            )
        return sorted(answers, key=lambda answer: len(answer[0]))

    def on_train_begin(self, args, state, control, **kwargs):
        self._initial, self._warned = math.nan, False
        logged = [entry for entry in state.log_history if "forgetting/bpb" in entry]
        if state.global_step > 0 and logged:  # resumed: the initial model is no longer here, but its figure is
            self._initial = logged[0]["forgetting/bpb"] - logged[0]["forgetting/increase"]
            return
        if state.global_step > 0 and state.is_world_process_zero:
            logger.warning(
                f"The checkpoint comes from a run without ForgettingCallback: the increase counts from step "
                f"{state.global_step}, not from the initial model."
            )
        self._initial = self._measure()
        if math.isnan(self._initial):
            raise SDRRLError("The model gives NaN before the first step. Try another `dtype`, or check its weights.")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps != 0 and not control.should_training_stop:
            return
        bpb = self._measure()
        if bpb - self._initial <= self.bound:  # never so for NaN
            return
        if self.action == "stop":
            control.should_training_stop = True
        if not self._warned and state.is_world_process_zero:
            logger.warning(
                f"The model forgets: at step {state.global_step} its own held-out answers take {bpb:.3f} bits per "
                f"byte, {self._initial:.3f} at the start. The increase of {bpb - self._initial:.3f} is beyond "
                f"`bound={self.bound}`" + (", so the training stops." if self.action == "stop" else ".") + " Train "
                "on more rows of kind `source`, lower `learning_rate`, or set `kl_coef`."
            )
        self._warned = True

    def _measure(self) -> float:
        """Bits per byte, logged."""
        accelerator = self.trainer.accelerator
        mine = self._answers[accelerator.process_index :: accelerator.num_processes]
        nll, n_bytes = 0.0, sum(answer[2] for answer in mine)
        with _undisturbed(self.trainer):
            for start in range(0, len(mine), self.batch_size):
                batch = mine[start : start + self.batch_size]
                ids = [torch.tensor(ids) for ids, _, _ in batch]
                labels = [torch.tensor([-100] * n + ids[n:]) for ids, n, _ in batch]
                mask = [torch.ones(len(ids), dtype=torch.long) for ids, _, _ in batch]
                outputs = self.trainer.model(
                    input_ids=pad_sequence(ids, True).to(accelerator.device),
                    attention_mask=pad_sequence(mask, True).to(accelerator.device),
                    labels=pad_sequence(labels, True, -100).to(accelerator.device),
                    fused_lm_head=True,  # of TRL: the logits are never there as a whole
                )
                nll -= outputs.log_probs.float().sum().item()
            sums = gather_object([(nll, n_bytes)])
            bpb = sum(part[0] for part in sums) / math.log(2) / sum(part[1] for part in sums)
            initial = bpb if math.isnan(self._initial) else self._initial
            _log(self.trainer, {"forgetting/bpb": bpb, "forgetting/increase": bpb - initial})
        return bpb


def _held_out(transfer_set: str) -> list[dict[str, Any]]:
    file = Path(transfer_set) / "test.parquet"
    if file.name not in load_manifest(Path(transfer_set))["sha256"]:
        raise SDRRLError(f"{transfer_set} holds no questions out. Build it with a `test_size` above 0.")
    return Dataset.from_parquet(str(file)).to_list()


def _check_positive(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise SDRRLError(f"`{name}` must be at least 1, got {value}.")


def _check_parallelism(trainer: "SFTTrainer", name: str) -> None:
    accelerator = trainer.accelerator
    deepspeed, parallelism = accelerator.state.deepspeed_plugin, accelerator.parallelism_config
    if (
        accelerator.distributed_type == DistributedType.FSDP
        or (deepspeed is not None and deepspeed.zero_stage == 3)
        or (parallelism is not None and (parallelism.tp_enabled or parallelism.cp_enabled or parallelism.sp_enabled))
    ):
        raise SDRRLError(
            f"{name} evaluates on each process alone, which needs the whole model there, but this one is split over "
            "them. Use data parallelism or ZeRO-2, or run `sdrrl evaluate` on the checkpoints."
        )


@contextmanager
def _undisturbed(trainer: "SFTTrainer") -> Iterator[None]:
    """Model in evaluation mode, no gradients; random states and the mode of each module are afterwards as before."""
    device = trainer.accelerator.device
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.no_grad(),
            trainer.accelerator.autocast(),
            evaluation_mode(trainer.model),
        ):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _log(trainer: "SFTTrainer", figures: dict[str, float]) -> None:
    """
    Logs figures from within the training loop, on all processes together.

    The model must be in evaluation mode: in training mode the trainers of TRL would log what they have gathered since
    the last log along with it, and forget it.
    """
    should_log = trainer.control.should_log
    trainer.log(figures)
    trainer.control.should_log = should_log  # transformers takes it that the log of this step is done
