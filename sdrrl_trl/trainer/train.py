"""`sdrrl train`: fine-tunes a model on a transfer set."""

import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from sdrrl_trl.engines.transformers import check_model
from sdrrl_trl.evaluation.suite import select
from sdrrl_trl.stages import check_options, clear_stage, record_options
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import SDRRLError, check_output_dir, fingerprint, locked, timed, write_json


if TYPE_CHECKING:
    from trl import ModelConfig

    from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig


# Options that the trained model does not depend on: they may change between an interrupted run and the next
_FREE_OPTIONS = re.compile(
    "output_dir|logging_.*|log_.*|save_.*|eval_.*|per_device_eval_.*|report_to|run_name|disable_tqdm|push_to_hub|hub_.*|"
    "dataloader_.*|resume_.*|.*_token|project|trackio_.*|do_.*|load_best_.*|metric_for_.*|greater_.*|deepspeed_plugin|"
    "overwrite_.*|model_init_kwargs|gradient_checkpointing.*|activation_.*|torch_compile.*|ddp_.*|use_cpu|no_cuda|local_rank"
)


@dataclass
class TrainArguments:
    """
    Arguments of `sdrrl train` beside those of [`SDRRLConfig`] and [`~trl.ModelConfig`].

    Parameters:
        transfer_set (`str`):
            Folder made by `sdrrl build`.
        overwrite_stage (`str`, *optional*):
            `"train"` throws away what an earlier run has left in `output_dir`.
        eval_tasks (`list[str]`, *optional*):
            lm-eval tasks, groups or tags on which the model is evaluated in the course of the training, see
            [`LMEvalCallback`].
        eval_tasks_languages (`list[str]`, *optional*):
            Only tasks about these languages.
        eval_tasks_steps (`int`, *optional*, defaults to `500`):
            Optimiser steps from one such evaluation to the next.
        forgetting_bound (`float`, *optional*):
            Watch the bits per byte of the held-out answers in the source language, and warn if they rise by more, see
            [`ForgettingCallback`].
    """

    transfer_set: str = field(metadata={"help": "Folder made by `sdrrl build`."})
    overwrite_stage: str | None = field(
        default=None,
        metadata={"help": "`train` throws away what an earlier run has left in `output_dir`.", "choices": ["train"]},
    )
    eval_tasks: list[str] | None = field(
        default=None, metadata={"help": "lm-eval tasks, groups or tags to evaluate on in the course of the training."}
    )
    eval_tasks_languages: list[str] | None = field(
        default=None, metadata={"help": "Only tasks about these languages."}
    )
    eval_tasks_steps: int = field(default=500, metadata={"help": "Steps from one such evaluation to the next."})
    forgetting_bound: float | None = field(
        default=None,
        metadata={"help": "Warn if the bits per byte of the held-out source-language answers rise by more."},
    )


def train(script_args: TrainArguments, training_args: "SDRRLConfig", model_args: "ModelConfig") -> Path:
    """
    Trains, or goes on from the last checkpoint in `output_dir`.

    Returns:
        `Path`: `output_dir`, with the model or adapter, its card, and `training.json` (the log).
    """
    plan = check(script_args, training_args, model_args)
    folder = Path(training_args.output_dir)
    transfer_set = Path(script_args.transfer_set)
    options = plan | {"transfer_set": load_manifest(transfer_set)["sha256"]["train.parquet"]}
    again = script_args.overwrite_stage == "train"
    if not again:
        check_options(folder, options, "train")
        if (folder / "training.json").exists():
            print(f"train: {folder} is complete, nothing to do", file=sys.stderr)
            return folder
    with locked(folder) if PartialState().is_main_process else nullcontext():
        if again and PartialState().is_main_process:
            clear_stage(folder, "train")
        PartialState().wait_for_everyone()
        _train(folder, options, script_args, training_args, model_args)
    return folder


def check(script_args: TrainArguments, training_args: "SDRRLConfig", model_args: "ModelConfig") -> dict[str, Any]:
    """
    Finds mistakes in the options before anything is loaded or written.

    Returns:
        `dict[str, Any]`: the options that the trained model depends on.

    Raises:
        `SDRRLError`: for a mistake.
    """
    if model_args.model_name_or_path is None:
        raise SDRRLError("`model_name_or_path` is missing: the model to train. Set it.")
    if training_args.num_train_epochs <= 0 and training_args.max_steps <= 0:
        raise SDRRLError(f"`num_train_epochs` must be above 0, got {training_args.num_train_epochs}.")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length"):
        value = vars(training_args)[name]
        if value is not None and value < 1:
            raise SDRRLError(f"`{name}` must be at least 1, got {value}.")
    if not training_args.learning_rate > 0:
        raise SDRRLError(f"`learning_rate` must be above 0, got {training_args.learning_rate}.")
    if script_args.eval_tasks_steps < 1:
        raise SDRRLError(f"`eval_tasks_steps` must be at least 1, got {script_args.eval_tasks_steps}.")
    if script_args.eval_tasks:
        select(script_args.eval_tasks, script_args.eval_tasks_languages)
    check_model(model_args.model_name_or_path, True, model_args.model_revision)
    check_output_dir(Path(training_args.output_dir), needed_bytes=2_000_000_000)
    given = training_args.to_dict() | vars(model_args) | {"model": fingerprint(model_args.model_name_or_path)}
    return {name: value for name, value in given.items() if not _FREE_OPTIONS.fullmatch(name)}


def _train(
    folder: Path,
    options: dict[str, Any],
    script_args: TrainArguments,
    training_args: "SDRRLConfig",
    model_args: "ModelConfig",
) -> None:
    from datasets import load_dataset
    from transformers import PrinterCallback
    from trl import get_peft_config, get_quantization_config

    from sdrrl_trl.trainer.callbacks import ForgettingCallback, LMEvalCallback, ProgressLines
    from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint
    from sdrrl_trl.trainer.sdrrl_trainer import SDRRLTrainer

    training_args.disable_tqdm = training_args.disable_tqdm or not sys.stderr.isatty()
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    splits = ["train"] if training_args.eval_strategy == "no" else ["train", "test"]
    data = load_dataset("parquet", data_files={name: f"{script_args.transfer_set}/{name}.parquet" for name in splits})
    try:
        trainer = SDRRLTrainer(
            model_args.model_name_or_path,
            training_args,
            train_dataset=data["train"],
            eval_dataset=data.get("test"),
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    except SDRRLError:
        raise
    except (OSError, ValueError, ImportError) as error:  # of transformers, peft, trl: mistakes in their options
        raise SDRRLError(str(error)) from error
    if training_args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressLines())
    if script_args.eval_tasks:
        tasks, languages = script_args.eval_tasks, script_args.eval_tasks_languages
        trainer.add_callback(LMEvalCallback(trainer, tasks, script_args.eval_tasks_steps, languages=languages))
    if script_args.forgetting_bound is not None:
        trainer.add_callback(ForgettingCallback(trainer, script_args.transfer_set, bound=script_args.forgetting_bound))
    if trainer.accelerator.is_main_process:
        record_options(folder, options, "train")
    with timed(folder / "timings.json", "train") if trainer.accelerator.is_main_process else nullcontext():
        result = trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        trainer.save_model()
    if trainer.accelerator.is_main_process:
        write_json(folder / "training.json", {"metrics": result.metrics, "log": trainer.state.log_history})
    trainer.accelerator.wait_for_everyone()
