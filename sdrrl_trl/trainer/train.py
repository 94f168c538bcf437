"""`sdrrl train`: fine-tunes a model on a transfer set."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdrrl_trl.transfer.build import load_manifest
from sdrrl_trl.transfer.store import check_options, clear_stage, record_options
from sdrrl_trl.utils import check_output_dir, timed, write_json


if TYPE_CHECKING:
    from trl import ModelConfig

    from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig


# Options that the trained model depends on; paths, logging and saving may change between runs
_RESULT_OPTIONS = (
    "seed data_seed learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay max_grad_norm optim bf16 fp16 packing max_length "
    "completion_only_loss shuffle_dataset model_name_or_path model_revision dtype use_peft lora_r lora_alpha "
    "lora_dropout lora_target_modules lora_modules_to_save use_rslora use_dora load_in_8bit load_in_4bit"
).split()


@dataclass
class TrainArguments:
    """
    Arguments of `sdrrl train` beside those of [`SDRRLConfig`] and [`~trl.ModelConfig`].

    Parameters:
        transfer_set (`str`):
            Folder made by `sdrrl build`.
        overwrite_stage (`str`, *optional*):
            `"train"` throws away what an earlier run has left in `output_dir`.
    """

    transfer_set: str = field(metadata={"help": "Folder made by `sdrrl build`."})
    overwrite_stage: str | None = field(
        default=None,
        metadata={"help": "`train` throws away what an earlier run has left in `output_dir`.", "choices": ["train"]},
    )


def train(script_args: TrainArguments, training_args: "SDRRLConfig", model_args: "ModelConfig") -> Path:
    """
    Trains, or goes on from the last checkpoint in `output_dir`.

    Returns:
        `Path`: `output_dir`, with the model or adapter, its card, and `training.json` (the log).
    """
    folder = Path(training_args.output_dir)
    done = folder / "training.json"
    transfer_set = Path(script_args.transfer_set)
    manifest = load_manifest(transfer_set)
    check_output_dir(folder, needed_bytes=2_000_000_000)
    if script_args.overwrite_stage == "train":
        clear_stage(folder)
    given = training_args.to_dict() | vars(model_args)
    options = {name: given[name] for name in _RESULT_OPTIONS} | {"transfer_set": manifest["sha256"]["train.parquet"]}
    check_options(folder, options, "train")
    if done.exists():
        print(f"train: {folder} is complete, nothing to do", file=sys.stderr)
        return folder

    from datasets import load_dataset
    from transformers import PrinterCallback
    from trl import get_peft_config

    from sdrrl_trl.trainer.callbacks import ProgressLines
    from sdrrl_trl.trainer.sdrrl_trainer import SDRRLTrainer

    training_args.disable_tqdm = training_args.disable_tqdm or not sys.stderr.isatty()

    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    data = load_dataset(
        "parquet", data_files={name: str(transfer_set / f"{name}.parquet") for name in ("train", "test")}
    )
    trainer = SDRRLTrainer(
        model_args.model_name_or_path,
        training_args,
        train_dataset=data["train"],
        eval_dataset=data["test"] if training_args.eval_strategy != "no" else None,
        peft_config=get_peft_config(model_args),
    )
    if training_args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressLines())
    record_options(folder, options, "train")
    with timed(folder / "timings.json", "train"):
        result = trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        trainer.save_model()
    if trainer.accelerator.is_main_process:
        write_json(done, {"metrics": result.metrics, "log": trainer.state.log_history})
    trainer.accelerator.wait_for_everyone()
    trainer.end()
    return folder


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: `trainer_state.json` is the last file of a checkpoint."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None
