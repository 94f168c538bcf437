"""`sdrrl train`: fine-tunes a model on a transfer set."""

import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import IntervalStrategy, PrinterCallback, TrainerState
from trl import ModelConfig, get_peft_config, get_quantization_config

from sdrrl_trl.engines.transformers import check_model
from sdrrl_trl.evaluation.suite import select
from sdrrl_trl.stages import check_options, write_options
from sdrrl_trl.trainer.callbacks import ForgettingCallback, LMEvalCallback, ProgressLines
from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint
from sdrrl_trl.trainer.groups import check_can_carry_groups
from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.trainer.sdrrl_trainer import SDRRLTrainer
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import SDRRLError, check_output_dir, fingerprint, locked, timed, write_json


# Options that the trained model does not depend on: they may change between an interrupted run and the next
_FREE_OPTIONS = re.compile(
    "output_dir|logging_.*|log_.*|save_.*|eval_.*|per_device_eval_.*|report_to|run_name|disable_tqdm|push_to_hub|hub_.*|"
    "dataloader_.*|resume_.*|.*_token|project|trackio_.*|do_.*|load_best_.*|metric_for_.*|greater_.*|deepspeed_plugin|"
    "overwrite_.*|model_init_kwargs|gradient_checkpointing.*|activation_.*|torch_compile.*|ddp_.*|use_cpu|no_cuda|local_rank"
)
# With 0 or less, nothing would be trained, or away from the data
_POSITIVE = ("num_train_epochs", "learning_rate", "max_length")
_POSITIVE += ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass
class TrainArguments:
    """
    Arguments of `sdrrl train` beside those of [`SDRRLConfig`] and [`~trl.ModelConfig`].

    Parameters:
        transfer_set (`str`):
            Folder made by `sdrrl build`.
        eval_tasks (`list[str]`, *optional*):
            lm-eval tasks, groups or tags on which the model is evaluated every `eval_steps` steps, see
            [`LMEvalCallback`].
        forgetting_bound (`float`, *optional*):
            Evaluate on the held-out records at the start and every `eval_steps` steps (500 unless set), and warn if
            the drift from the initial model, in bits per byte of its own answers in the source language, is larger,
            see [`ForgettingCallback`].
    """

    transfer_set: str = field(metadata={"help": "Folder made by `sdrrl build`."})
    eval_tasks: list[str] | None = field(default=None, metadata={"help": "lm-eval tasks to evaluate on in between."})
    forgetting_bound: float | None = field(default=None, metadata={"help": "Warn of more drift, in bits per byte."})


def train(script_args: TrainArguments, training_args: SDRRLConfig, model_args: ModelConfig) -> Path:
    """
    Trains, or goes on from the last complete checkpoint in `output_dir`.

    Returns:
        `Path`: `output_dir`, with the model or adapter, its card, and `training.json` (the log).
    """
    folder, manifest = Path(training_args.output_dir), load_manifest(Path(script_args.transfer_set))
    if training_args.anchor_languages:
        source = manifest["options"]["source_language"]
        training_args.anchor_languages = [source if x == "source" else x for x in training_args.anchor_languages]
    options = check(script_args, training_args, model_args)
    options |= {"transfer_set": manifest["sha256"]["train.parquet"]}
    check_options(folder, options, "train")
    if (folder / "training.json").exists():
        print(f"train: {folder} is complete, nothing to do", file=sys.stderr)
        return folder
    is_main = PartialState().is_main_process
    with locked(folder) if is_main else nullcontext():
        PartialState().wait_for_everyone()
        trainer = make_trainer(script_args, training_args, model_args)
        checkpoint = last_complete_checkpoint(folder)
        if is_main:
            write_options(folder, options, "train")
            if checkpoint is not None:
                print(f"train: goes on from step {checkpoint.rpartition('-')[2]}", file=sys.stderr, flush=True)
        if checkpoint is not None:
            state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
            if state.global_step >= state.max_steps:  # of a finished training, which transformers would add a step to
                trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0
        with timed(folder / "timings.json", "train") if is_main else nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
            if not all(gather_object([_is_finite(trainer.model)])):
                raise SDRRLError(
                    "The model's weights are no longer finite numbers: the training has diverged, or the model came "
                    "so. Nothing is saved. Lower `learning_rate`, or choose another `dtype`, in another `output_dir`."
                )
            trainer.save_model()
        if is_main:
            write_json(folder / "training.json", {"log": trainer.state.log_history})
        trainer.accelerator.wait_for_everyone()
    return folder


def _is_finite(model: torch.nn.Module) -> bool:
    """Whether the weights that this process holds, all or its part of them, are finite numbers."""
    # ZeRO-3 keeps the part of a process there, and leaves the parameter itself empty
    parts = (getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters())
    return all(bool(part.isfinite().all()) for part in parts)


def check(script_args: TrainArguments, training_args: SDRRLConfig, model_args: ModelConfig) -> dict[str, Any]:
    """
    Finds mistakes in the options before anything is loaded or written.

    Returns:
        `dict[str, Any]`: the options that the trained model depends on.

    Raises:
        `SDRRLError`: for a mistake.
    """
    if model_args.model_name_or_path is None:
        raise SDRRLError("`model_name_or_path` is missing: the model to train. Set it.")
    for name in _POSITIVE:
        value = getattr(training_args, name)
        if value is not None and not value > 0:
            raise SDRRLError(f"`{name}` must be above 0, got {value}.")
    bound = script_args.forgetting_bound
    if bound is not None and not bound >= 0:
        raise SDRRLError(f"`forgetting_bound` must be at least 0, got {bound}: the initial model would be beyond it.")
    if script_args.eval_tasks:
        select(script_args.eval_tasks)
    check_can_carry_groups(training_args, data_collator=None)  # those of the transfer set
    check_model(model_args.model_name_or_path, True, model_args.model_revision)
    check_output_dir(Path(training_args.output_dir), needed_bytes=2_000_000_000)
    given = training_args.to_dict() | vars(model_args) | {"model": fingerprint(model_args.model_name_or_path)}
    return {name: value for name, value in given.items() if not _FREE_OPTIONS.fullmatch(name)}


def make_trainer(script_args: TrainArguments, training_args: SDRRLConfig, model_args: ModelConfig) -> SDRRLTrainer:
    """The trainer of a transfer set, with its callbacks."""
    if script_args.forgetting_bound is not None:
        training_args.eval_on_start = True
        if training_args.eval_strategy == "no":
            training_args.eval_strategy = IntervalStrategy.STEPS
    splits = ["train"] if training_args.eval_strategy == "no" else ["train", "test"]
    files = {name: Path(script_args.transfer_set, f"{name}.parquet") for name in splits}
    if not files[splits[-1]].exists():
        raise SDRRLError(
            f"{script_args.transfer_set} holds no questions out to evaluate on. Build it with a `test_size` above 0, "
            "or leave out `eval_strategy` and `forgetting_bound`."
        )
    training_args.disable_tqdm = training_args.disable_tqdm or not sys.stderr.isatty()
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    try:
        # It takes paths as patterns
        data = {name: Dataset.from_parquet(escape(str(file))) for name, file in files.items()}
        if "test" in data:  # it also holds what `sdrrl evaluate` alone needs: sentences of kinds that are not trained
            kinds = {*data["train"].unique("kind"), "source"}
            data["test"] = data["test"].filter(lambda row: row["kind"] in kinds)
        trainer = SDRRLTrainer(
            model_args.model_name_or_path,
            training_args,
            train_dataset=data["train"],
            eval_dataset=data.get("test"),
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    except (OSError, ValueError, ImportError) as error:  # of transformers, peft, trl: mistakes in their options
        raise SDRRLError(str(error)) from error
    if training_args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressLines())
    if script_args.eval_tasks:
        trainer.add_callback(LMEvalCallback(trainer, script_args.eval_tasks))
    if script_args.forgetting_bound is not None:
        trainer.add_callback(ForgettingCallback(trainer, script_args.forgetting_bound))
    return trainer
