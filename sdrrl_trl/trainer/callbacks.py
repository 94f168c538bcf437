import copy
import logging
import math
import random
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback, TrainerState
from trl import SFTTrainer

from sdrrl_trl.evaluation.ask import ask, prepare_tasks
from sdrrl_trl.evaluation.models import wrap
from sdrrl_trl.evaluation.suite import select
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.trainer.model_card import anchor_drifts, why_ruined
from sdrrl_trl.trainer.sdrrl_trainer import SDRRLTrainer
from sdrrl_trl.trainer.teacher import base_of, evaluation_mode
from sdrrl_trl.utils import RUINED, SDRRLError, rate_and_rest


logger = logging.getLogger(__name__)


class ProgressLines(TrainerCallback):
    """
    A plain line with rate, time left and figures at every log, and without figures where a log is half a minute away:
    in a file, a progress bar is a mess.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = self._last = time.monotonic()
        self._first_step, self._ruined = state.global_step, False

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() - self._last > 30 and not control.should_log:
            self._print(state, [])

    def on_log(self, args, state, control, logs, **kwargs):
        shown = {"loss", "eval_loss", "eval_drift/source"}
        shown |= {f"{name}/{tag}" for name in ("nll", "eval_bpb") for tag in LANGUAGES}
        # Elsewhere the model is meant to move
        shown |= {*(anchor_drifts(args) or (f"drift/{tag}" for tag in LANGUAGES))}
        drifts = [logs[name] for name in anchor_drifts(args) if name in logs]
        if drifts and max(drifts) > RUINED and not self._ruined and state.is_world_process_zero:
            self._ruined = True
            print(
                f"warning: at step {state.global_step} the model's own answers take {max(drifts):.2f} bits per byte "
                "more than before, where 0.1 is much: it is being ruined. Lower `learning_rate`",
                file=sys.stderr,
                flush=True,
            )
        names = [name for name in logs if name in shown or name.startswith("lm_eval/")]
        figures = [f"{name} {float(logs[name]):.3f}" for name in names]
        if figures:
            self._print(state, figures)

    def on_train_end(self, args, state, control, **kwargs):
        why = why_ruined(args, state.log_history)
        if why and state.is_world_process_zero:
            print(f"warning: the model is probably ruined: {why}. Lower `learning_rate`", file=sys.stderr, flush=True)

    def _print(self, state: TrainerState, figures: list[str]) -> None:
        if not state.is_world_process_zero:
            return
        self._last = time.monotonic()
        line = f"train: {state.global_step}/{state.max_steps} steps"
        if done := state.global_step - self._first_step:
            line += f", {rate_and_rest(done, state.max_steps - state.global_step, self._last - self._start)}"
        print(", ".join([line, *figures]), file=sys.stderr, flush=True)


class StopIfDiverged(TrainerCallback):
    """
    Ends a training whose weights are no finite numbers any more, when it would log or save: none comes back from that,
    and a checkpoint of them would be gone on from.
    """

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_log or control.should_save:
            check_finite((weight for weight in model.parameters() if weight.requires_grad), state.global_step)


def check_finite(parameters: Iterable[torch.nn.Parameter], step: int) -> None:
    """Raises [`SDRRLError`] on all processes, each of which holds all weights or a part, if some are no numbers."""
    # ZeRO-3 keeps the part of a process there, and leaves the parameter itself empty
    parts = (getattr(parameter, "ds_tensor", parameter) for parameter in parameters)
    if not all(gather_object([all(bool(part.isfinite().all()) for part in parts)])):
        raise SDRRLError(
            f"The model's weights are no longer finite numbers at step {step}: the training has diverged, or the "
            "model came so. They are not saved. Lower `learning_rate`, or choose another `dtype`, in another "
            "`output_dir`."
        )


class LMEvalCallback(TrainerCallback):
    r"""
    Evaluates the model in training on lm-eval tasks: before the first step, every `eval_steps` steps of the trainer's
    configuration (500 unless set) and after the last. It changes nothing in the training: losses and weights are bit
    for bit those of a run without it.

    Each score goes to the trainer's log, and so to TensorBoard, Weights & Biases and the like, as
    `lm_eval/<task>/<metric>`, the time that it took as `lm_eval/seconds`. The tasks, with their data, are loaded once,
    when the training begins, and asked through the tokenizer's chat template, if it has one, in batches of
    `per_device_eval_batch_size`. With several processes each takes its part of the items.

    Args:
        trainer ([`~trl.SFTTrainer`]):
            Trainer that the callback is added to: an [`SDRRLTrainer`], or any other trainer of a causal language
            model.
        tasks (`list[str]`):
            Tasks, groups or tags, of ours or of lm-eval. Groups and tags stand for all tasks in them, whose data must
            be there: `sdrrl doctor` shows which are.
        limit (`int`, *optional*, defaults to `64`):
            Use only the first so many items of each task. `None` for all.
        languages (`list[str]`, *optional*):
            Only the tasks about these languages. Name the source language, too, to watch it. Default: all.

    Raises:
        `SDRRLError`: when it is made, for models that are split over processes; when the training begins, for unknown
            tasks and tasks whose data are missing.

    Example:

    ```python
    from sdrrl_trl import LMEvalCallback

    trainer.add_callback(LMEvalCallback(trainer, ["sdrrl_xnli", "sdrrl_pku_saferlhf"], languages=["en", "th"]))
    trainer.train()
    ```
    """

    def __init__(
        self, trainer: SFTTrainer, tasks: list[str], limit: int | None = 64, languages: list[str] | None = None
    ):
        state, parallelism = trainer.accelerator.state, trainer.accelerator.parallelism_config
        zero_stage = 0 if state.deepspeed_plugin is None else state.deepspeed_plugin.zero_stage
        n_parts = 1 if parallelism is None else parallelism.non_data_parallel_size
        if state.distributed_type == DistributedType.FSDP or zero_stage == 3 or n_parts > 1:
            raise SDRRLError(
                "LMEvalCallback needs the whole model on each process, and this one is split over them. Use data "
                "parallelism or ZeRO-2, or run `sdrrl evaluate` on the checkpoints."
            )
        self.trainer, self.task_names, self.limit, self.languages = trainer, tasks, limit, languages

    def on_train_begin(self, args, state, control, **kwargs):
        with _undisturbed(self.trainer):  # lm-eval draws random numbers when it loads tasks
            self._tasks = select(self.task_names, self.languages)
        prepare_tasks(self._tasks, self.limit, self.trainer.accelerator.num_processes)
        if state.global_step == 0:  # not when resumed
            self._evaluate()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % state.eval_steps == 0 or control.should_training_stop:
            self._evaluate()

    def _evaluate(self) -> None:
        start = time.monotonic()
        accelerator = self.trainer.accelerator
        tokenizer = copy.deepcopy(self.trainer.processing_class)  # lm-eval may give it a padding token
        batch_size = self.trainer.args.per_device_eval_batch_size
        with _undisturbed(self.trainer):
            lm = wrap(self.trainer.model, tokenizer, accelerator, batch_size=batch_size)
            result, found_nan = ask(lm, self._tasks, self.limit, tokenizer.chat_template is not None)
            # The main process alone has the result, but all must log together
            scores = broadcast_object_list([_scores(result) if accelerator.is_main_process else None])[0]
            if found_nan:
                # lm-eval takes the first choice if it cannot compare them, which looks like a score
                scores = dict.fromkeys(scores, math.nan)
                if accelerator.is_main_process:
                    logger.warning(
                        f"At step {self.trainer.state.global_step} the model's logits are NaN, so its scores are "
                        "logged as NaN. The training has diverged: lower `learning_rate`."
                    )
            should_log = self.trainer.control.should_log
            # In evaluation mode, else the trainers of TRL log what they have gathered for the next log along with it
            self.trainer.log(scores | {"lm_eval/seconds": time.monotonic() - start})
            self.trainer.control.should_log = should_log  # transformers takes it that the log of this step is done


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """`lm_eval/<task>/<metric>`, with the name of the filter behind it if there is one."""
    return {
        f"lm_eval/{task}/{key.removesuffix(',none').replace(',', '_')}": float(value)
        for task, values in result["results"].items()
        for key, value in values.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }


@contextmanager
def _undisturbed(trainer: SFTTrainer) -> Iterator[None]:
    """Model in evaluation mode, no gradients; random states, modes, ends of answers are afterwards as before."""
    device, model, whole = trainer.accelerator.device, base_of(trainer.model), trainer.model
    devices = [device] if device.type == "cuda" else []
    generation_config = copy.deepcopy(model.generation_config)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), trainer.accelerator.autocast(), evaluation_mode(whole):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        model.generation_config = generation_config


class ForgettingCallback(TrainerCallback):
    r"""
    Watches how far the model drifts from the initial one where that answered in its source language, and warns once,
    or stops the training, if it drifts too far.

    The drift is KL(initial || model) in bits per UTF-8 byte on held-out records of kind `source`, the initial model's
    own answers: `eval_drift/source` in the trainer's own evaluations, beside the drift of every other kind and
    language. Only the initial model has a drift of 0, and none is below, but for rounding: a model that finds these
    answers *more* likely than the initial one, because it has been sharpened, has drifted, too. On answers sampled at
    temperature 1 it estimates the divergence of whole answers. The initial model is the teacher of `kl_coef`: the
    model with its adapter turned off, or `ref_model`.

    Args:
        trainer ([`SDRRLTrainer`]):
            Trainer that the callback is added to, with `eval_strategy` set and held-out records as `eval_dataset`.
        bound (`float`, *optional*, defaults to `0.05`):
            Largest drift in bits per byte that is put up with. NaN is beyond any bound.
        stop (`bool`, *optional*, defaults to `False`):
            Beyond the bound, stop the training.

    Raises:
        `SDRRLError`: when it is made, for a bound below 0, without evaluations on records of kind `source`, and if
            nothing says what the initial model was.

    Example:

    ```python
    from sdrrl_trl import ForgettingCallback

    trainer.add_callback(ForgettingCallback(trainer, stop=True))
    trainer.train()
    ```
    """

    def __init__(self, trainer: SDRRLTrainer, bound: float = 0.05, stop: bool = False):
        if not bound >= 0:
            raise SDRRLError(f"`bound` must be at least 0, got {bound}: the initial model itself would be beyond it.")
        if trainer.args.eval_strategy == "no" or "source" not in trainer.eval_kinds:
            raise SDRRLError("Forgetting needs `eval_strategy`, and records of kind `source` in `eval_dataset`.")
        trainer.watch_drift()
        self.bound, self.stop = bound, stop
        self._warned = False

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # Of several evaluation sets, some may have no such records
        drifts = [value for name, value in metrics.items() if name.endswith("drift/source")]
        if all(drift <= self.bound for drift in drifts):  # never so for NaN
            return
        control.should_training_stop |= self.stop
        if not self._warned and state.is_world_process_zero:
            logger.warning(
                f"The model forgets: at step {state.global_step} its drift on held-out answers in the source language "
                f"is {drifts[0]:.3f} bits per byte, beyond `bound={self.bound}`"
                + (", so the training stops." if self.stop else ".")
                + " Anchor the source language (`anchor_languages`, a larger `kl_coef`), train on more records of "
                "kind `source`, or lower `learning_rate`."
            )
        self._warned = True
