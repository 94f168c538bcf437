"""`sdrrl train`: fine-tunes a model on a transfer set."""

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, TrainerState
from trl import ModelConfig, get_peft_config, get_quantization_config

from sdrrl_trl.engines.chat import find_ends
from sdrrl_trl.engines.transformers import check_model
from sdrrl_trl.evaluation.suite import select
from sdrrl_trl.evaluation.weights import base_path, is_adapter, put_adapter_on, tokenizer_path
from sdrrl_trl.plan import plan_training
from sdrrl_trl.stages import check_options, files_in, write_options
from sdrrl_trl.trainer.callbacks import ForgettingCallback, LMEvalCallback, ProgressLines, StopIfDiverged, check_finite
from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint
from sdrrl_trl.trainer.groups import check_can_carry_groups
from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
from sdrrl_trl.trainer.sdrrl_trainer import SDRRLTrainer
from sdrrl_trl.transfer.publish import load_manifest
from sdrrl_trl.utils import SDRRLError, check_output_dir, fingerprint, in_a_line, locked, read_json, timed, write_json


# Options that the trained model does not depend on: they may change between an interrupted run and the next
_FREE_OPTIONS = re.compile(
    "output_dir|logging_.*|log_.*|save_.*|eval_.*|per_device_eval_.*|report_to|run_name|disable_tqdm|push_to_hub|hub_.*|"
    "dataloader_.*|resume_.*|.*_token|project|trackio_.*|do_.*|load_best_.*|metric_for_.*|greater_.*|deepspeed_plugin|"
    "overwrite_.*|model_init_kwargs|gradient_checkpointing.*|activation_.*|torch_compile.*|ddp_.*|use_cpu|no_cuda|local_rank"
)
# With 0 or less, nothing would be trained, or away from the data
_POSITIVE = ("num_train_epochs", "learning_rate", "max_length")
_POSITIVE += ("per_device_train_batch_size", "gradient_accumulation_steps")
# What a training writes into its folder before its end
_WRITTEN = ("training.json", "timings.json", "README.md", "checkpoint-*/**/*", "runs/**/*")


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
        dry_run (`bool`, *optional*, defaults to `False`):
            Check all, load model and data, and only show how many steps and tokens and how long that may take.
    """

    transfer_set: str = field(metadata={"help": "Folder made by `sdrrl build`."})
    eval_tasks: list[str] | None = field(default=None, metadata={"help": "lm-eval tasks to evaluate on in between."})
    forgetting_bound: float | None = field(default=None, metadata={"help": "Warn of more drift, in bits per byte."})
    dry_run: bool = field(default=False, metadata={"help": "Only show steps, tokens and time."})


def train(script_args: TrainArguments, training_args: SDRRLConfig, model_args: ModelConfig) -> Path:
    """
    Trains, or goes on from the last complete checkpoint in `output_dir`.

    Returns:
        `Path`: `output_dir`, with the model or adapter, its card, and `training.json` (the log).

    Raises:
        `SDRRLError`: for a mistake in options or data, a model or folder that cannot be used, a complete training
            whose model is gone, weights that are no numbers, and too little memory or disk.
    """
    folder, manifest = Path(training_args.output_dir), load_manifest(Path(script_args.transfer_set))
    if training_args.anchor_languages:
        source = manifest["options"]["source_language"]
        training_args.anchor_languages = [source if x == "source" else x for x in training_args.anchor_languages]
    options = check(script_args, training_args, model_args)
    arguments = manifest["options"].get("chat_template_kwargs")
    options |= {"transfer_set": manifest["sha256"]["train.parquet"], "chat_template_kwargs": arguments}
    check_options(folder, options, "train")
    if (folder / "training.json").exists():
        _check_is_whole(folder)
        print(f"train: {folder} is complete, nothing to do", file=sys.stderr)
        return folder
    is_main = PartialState().is_main_process
    if script_args.dry_run:
        training_args.push_to_hub = False  # the trainer would make the repository
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        trainer = make_trainer(script_args, training_args, model_args, manifest)
        if is_main:
            print(plan_training(trainer, model_args.model_name_or_path, options["model"]))
            for path in filter(Path.exists, missing):  # which transformers has made
                path.rmdir()
        return folder
    with locked(folder) if is_main else nullcontext():
        PartialState().wait_for_everyone()
        trainer = make_trainer(script_args, training_args, model_args, manifest)
        checkpoint = last_complete_checkpoint(folder)
        if is_main:
            write_options(folder, options, "train", _WRITTEN)
            step = checkpoint and f"train: goes on from step {checkpoint.rpartition('-')[2]}"
            plan = step or plan_training(trainer, model_args.model_name_or_path, options["model"])
            print(plan, file=sys.stderr, flush=True)
        if checkpoint is not None:
            state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
            if state.global_step >= state.max_steps:  # of a finished training, which transformers would add a step to
                trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0
        with timed(folder / "timings.json", "train") if is_main else nullcontext(), in_a_line_if_full():
            with stopped_by_ctrl_c(trainer):
                trainer.train(resume_from_checkpoint=checkpoint)
            check_finite(trainer.model.parameters(), trainer.state.global_step)
            trainer.save_model()
            trainer.create_model_card()  # over that of PEFT, which names the folder of its base
        if is_main:
            before_end = {path for pattern in _WRITTEN for path in folder.glob(pattern)}
            files = [str(path.relative_to(folder)) for path in files_in(folder) if path not in before_end]
            write_options(folder, options, "train", (*_WRITTEN, *files))
            write_json(folder / "training.json", {"log": trainer.state.log_history, "files": files})
        trainer.accelerator.wait_for_everyone()
    return folder


STOP = signal.SIGINT, signal.SIGTERM  # Ctrl-C, and what a scheduler sends some time before it kills


class _CtrlC(TrainerCallback):
    asked = False

    def ask(self, *_: Any) -> None:
        self.asked = True
        for number in STOP:
            signal.signal(number, signal.default_int_handler)
        print("train: stops after this step, with a checkpoint. Ctrl-C again: at once", file=sys.stderr, flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= self.asked
        control.should_training_stop |= self.asked


@contextmanager
def stopped_by_ctrl_c(trainer: SDRRLTrainer) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends a training after the step that it is at, with a checkpoint; a second one, at once."""
    callback, before = _CtrlC(), {number: signal.getsignal(number) for number in STOP}
    trainer.add_callback(callback)
    # Several processes would not stop at the same step; and only the main thread may set it
    if trainer.accelerator.num_processes == 1 and threading.current_thread() is threading.main_thread():
        for number in STOP:
            signal.signal(number, callback.ask)
    try:
        yield
        if callback.asked and trainer.state.global_step < trainer.state.max_steps:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            saved = (last_complete_checkpoint(Path(trainer.args.output_dir)) or "step-0").rpartition("-")[2]
            print(f"train: stopped at step {trainer.state.global_step}, saved at step {saved}", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def in_a_line_if_full() -> Iterator[None]:
    """Makes an [`SDRRLError`] of what libraries raise when memory or the disk is full."""
    try:
        yield
    except (RuntimeError, MemoryError, SafetensorError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise SDRRLError(
                f"The memory does not suffice ({in_a_line(error)}). Lower `per_device_train_batch_size` and raise "
                "`gradient_accumulation_steps`, or train an adapter (`use_peft`)."
            ) from error
        # `torch.save` does not say why it could not write
        if isinstance(error, SafetensorError) or "inline_container" in str(error):
            raise SDRRLError(f"Cannot write the model ({in_a_line(error)}). Is the disk full? Make room.") from error
        raise


def _check_is_whole(folder: Path) -> None:
    """Raises [`SDRRLError`] if files of a finished training are gone: its model is asked for, not its log."""
    files = read_json(folder / "training.json", expect=("files",))["files"]
    if missing := [name for name in files if not (folder / name).exists()]:
        raise SDRRLError(
            f"The training in {folder} is complete, but {', '.join(missing)} is missing. Put it back. Or delete "
            "training.json there: the same command then goes on from the last checkpoint, or anew without one."
        )


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
    model = model_args.model_name_or_path
    check_model(base_path(model), not is_adapter(model), model_args.model_revision)
    check_output_dir(Path(training_args.output_dir), needed_bytes=2_000_000_000)
    given = training_args.to_dict() | vars(model_args) | {"model": fingerprint(model_args.model_name_or_path)}
    return {name: value for name, value in given.items() if not _FREE_OPTIONS.fullmatch(name)}


def _load_data(transfer_set: Path, manifest: dict[str, Any], with_test: bool) -> dict[str, Dataset]:
    """The records to train on, and those to evaluate on, as the manifest of their set knows them."""
    names = ["train", "test"] if with_test else ["train"]
    if f"{names[-1]}.parquet" not in manifest["sha256"]:
        raise SDRRLError(
            f"{transfer_set} holds no questions out to evaluate on. Build it with a `test_size` above 0, or leave out "
            "`eval_strategy` and `forgetting_bound`."
        )
    data, arguments = {}, manifest["options"].get("chat_template_kwargs")
    for name in names:
        file = transfer_set / f"{name}.parquet"
        # It takes paths as patterns, and knows what it has read by path and date, unless the name tells it
        rows = Dataset.from_parquet(escape(str(file)), config_name=manifest["sha256"][file.name])
        data[name] = rows.map(lambda _: {"chat_template_kwargs": arguments}) if arguments else rows
    if with_test:  # it also holds what `sdrrl evaluate` alone needs: sentences of kinds that are not trained
        kinds = {*data["train"].unique("kind"), "source"}
        data["test"] = data["test"].filter(lambda row: row["kind"] in kinds)
    return data


def _check_conversations(tokenizer: Any, data: dict[str, Dataset]) -> None:
    """Raises [`SDRRLError`] for conversations that the chat template refuses, before a model is loaded."""
    rows = chain.from_iterable(data.values())
    # One of each form stands for all
    forms = {tuple(message["role"] for message in row["prompt"]): row for row in rows}
    for roles, row in forms.items():
        arguments = row.get("chat_template_kwargs", {})
        try:
            tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False, **arguments)
        except TemplateError as error:
            raise SDRRLError(
                f"The chat template of the model refuses conversations of {', '.join(roles)}: {error}. Build the "
                "transfer set without such messages (`system_prompt`, the seeds), or take another model."
            ) from error


def _example(rows: Dataset) -> list[dict[str, str]]:
    """A question among the first records, in a target language if there is one: not the shortest, nor the longest."""
    first = rows.select(range(min(100, len(rows)))).to_list()
    asked = [row["prompt"] for row in first if row["kind"] == "target"] or [row["prompt"] for row in first]
    return sorted(asked, key=lambda messages: len(str(messages)))[len(asked) // 2]


def make_trainer(
    script_args: TrainArguments, training_args: SDRRLConfig, model_args: ModelConfig, manifest: dict[str, Any]
) -> SDRRLTrainer:
    """The trainer of a transfer set, whose manifest this is, with its callbacks."""
    if script_args.forgetting_bound is not None:
        training_args.eval_on_start = True
        if training_args.eval_strategy == "no":
            training_args.eval_strategy = "steps"
    training_args.disable_tqdm = True  # [`ProgressLines`] are better than its bar, and no warning tears them
    own = {"revision": model_args.model_revision, "dtype": model_args.dtype}
    own |= {"attn_implementation": model_args.attn_implementation}
    training_args.model_init_kwargs = own | (training_args.model_init_kwargs or {})
    data = _load_data(Path(script_args.transfer_set), manifest, with_test=training_args.eval_strategy != "no")
    name = model_args.model_name_or_path
    # An adapter notes where its base is, and a path from here would look like an id of the hub elsewhere
    model = name = str(Path(name).absolute()) if Path(name).is_dir() else name
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path(name), revision=model_args.model_revision)
    if training_args.chat_template_path is None:
        _check_conversations(tokenizer, data)
    quantization, peft_config = get_quantization_config(model_args), get_peft_config(model_args)
    try:
        if is_adapter(name):
            options = training_args.model_init_kwargs | {"quantization_config": quantization}
            base = AutoModelForCausalLM.from_pretrained(base_path(name), **options)
            model = put_adapter_on(base, name, len(tokenizer), is_trainable=True)
            training_args.model_init_kwargs = quantization = None  # the trainer would warn of them
        trainer = SDRRLTrainer(
            model,
            training_args,
            train_dataset=data["train"],
            eval_dataset=data.get("test"),
            processing_class=tokenizer if is_adapter(name) else None,
            quantization_config=quantization,
            peft_config=peft_config,
        )
    except SDRRLError:
        raise
    except Exception as error:  # mistakes in options of libraries, damaged files, too little memory: it can be any
        raise SDRRLError(f"Cannot start the training of {name!r}: {in_a_line(error)}") from error
    trainer.manifest, trainer.example = manifest, _example(data["train"])
    # Saved with the model: it has learned to end its turns as the template does, which base models do not know
    generation = trainer.model.generation_config
    generation.eos_token_id = find_ends(trainer.processing_class, trainer.model.config, generation.eos_token_id)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLines())
    trainer.add_callback(StopIfDiverged())
    if script_args.eval_tasks:
        trainer.add_callback(LMEvalCallback(trainer, script_args.eval_tasks))
    if script_args.forgetting_bound is not None:
        trainer.add_callback(ForgettingCallback(trainer, script_args.forgetting_bound))
    return trainer
