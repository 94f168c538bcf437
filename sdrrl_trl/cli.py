"""The command `sdrrl`. Heavy imports wait until a stage needs them."""

import argparse
import errno
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path

from sdrrl_trl import __version__
from sdrrl_trl.options import HelpFormatter, parse_command, read_yaml, similar
from sdrrl_trl.utils import SDRRLError, in_time, is_first_process


# Of `sdrrl run`: those of the build, as in `TransferConfig`, and two more
STAGES = ("answer", "translate", "parallel", "mix", "train", "evaluate")


def _about(command: str) -> dict[str, str]:
    description, example = getdoc(COMMANDS[command]).split("\n\n")
    return {"description": description, "epilog": f"Example: {example}"}


def _parser(command: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"sdrrl {command}", formatter_class=HelpFormatter, **_about(command))


def _options(dataclasses: tuple[type, ...], arguments: list[str], command: str, **about: str) -> tuple:
    return parse_command(dataclasses, arguments, f"sdrrl {command}", **_about(command), **about)


def _build(arguments: list[str]) -> None:
    """
    Make a transfer set: the model answers, the answers are translated, records are mixed.

    sdrrl build --recipe anchored --model_name_or_path MODEL --seeds q.jsonl --target_languages pt sw --output_dir set
    """
    from sdrrl_trl.transfer.config import TransferConfig

    (config,) = _options((TransferConfig,), arguments, "build")
    from sdrrl_trl.engines.transformers import own_device
    from sdrrl_trl.plan import SMALLER
    from sdrrl_trl.transfer.build import build_transfer_set

    folder = build_transfer_set(config)
    if not config.dry_run:
        # The anchor holds a model to samples of it, or to references; greedy answers are the paper's
        samples = "anchored" if config.proportions.get("source") else "t_sft"
        recipe = samples if config.temperature == 1 else "paper"
        model = ["--model_name_or_path", config.model_name_or_path, "--transfer_set", str(folder)]
        faster = f"{SMALLER} --gradient_checkpointing false --lora_dropout 0" if own_device().type == "cpu" else ""
        is_short = config.max_new_tokens <= 128  # then they fit, with their questions
        _next("train", folder, "--recipe", recipe, *model, *(faster.split() if is_short else ()))
        if faster and not is_short and is_first_process():
            print(f"On a CPU, if answers are short: {faster}")


def _inspect(arguments: list[str]) -> None:
    """
    Show what is in a transfer set: counts, samples of each kind, rejected rows.

    sdrrl inspect transfer_set
    """
    parser = _parser("inspect")
    parser.add_argument("folder", type=Path, help="folder made by `sdrrl build`")
    parser.add_argument("-n", type=int, default=2, help="samples of each kind (default: %(default)s)")
    parser.add_argument("--width", type=int, default=600, help="longest text in characters (default: %(default)s)")
    options = parser.parse_args(arguments)
    from sdrrl_trl.transfer.inspect import inspect_transfer_set

    print(inspect_transfer_set(options.folder, options.n, options.width))


def _export(arguments: list[str]) -> None:
    """
    Write a transfer set as TRL's DPO or SDFT trainer takes it.

    sdrrl export transfer_set dpo_set --for dpo
    """
    parser = _parser("export")
    parser.add_argument("folder", type=Path, help="folder made by `sdrrl build`")
    parser.add_argument("output", type=Path, help="new folder for the Parquet files")
    parser.add_argument("--for", dest="method", required=True, choices=("dpo", "sdft"), help="the trainer of TRL")
    options = parser.parse_args(arguments)
    from sdrrl_trl.transfer.export import export

    n_rows = export(options.folder, options.output, options.method)
    print(f"{n_rows} training rows: {options.output}")


def _train(arguments: list[str]) -> None:
    """
    Fine-tune the model on a transfer set.

    sdrrl train --recipe anchored --model_name_or_path MODEL --transfer_set transfer_set --output_dir model
    """
    if {"-h", "--help"} & set(arguments):  # TRL's own options are 180, and importing it takes seconds
        print(Path(__file__).with_name("train_help.txt").read_text(encoding="utf-8"), end="")
        return
    arguments = ["--help" if argument == "--help_all" else argument for argument in arguments]
    from trl import ModelConfig

    from sdrrl_trl.trainer.sdrrl_config import SDRRLConfig
    from sdrrl_trl.trainer.train import TrainArguments, train
    from sdrrl_trl.transfer.publish import has_kind, load_manifest

    configs = _options((TrainArguments, SDRRLConfig, ModelConfig), arguments, "train")
    folder = train(*configs)
    if not configs[0].dry_run:
        print(f"Model: {folder}")
        models, data = [f"base={configs[2].model_name_or_path}", f"tuned={folder}"], configs[0].transfer_set
        has_sentences = has_kind(load_manifest(Path(data)), "test", "translation")
        tasks = ["sdrrl_heldout_bpb", *(["sdrrl_heldout_text"] if has_sentences else [])]
        _next("evaluate", folder, "--models", *models, "--tasks", *tasks, "--transfer_set", data)
        if is_first_process():
            print("With `--tasks sdrrl_heldout` the models also write answers, which takes longer.")


def _evaluate(arguments: list[str]) -> None:
    """
    Run lm-eval tasks on several models in one process.

    sdrrl evaluate --models base=MODEL tuned=model --tasks sdrrl_multilingual --languages en pt --output_dir results
    """
    from sdrrl_trl.evaluation.evaluate import EvaluationConfig, evaluate

    (config,) = _options((EvaluationConfig,), arguments, "evaluate")
    folder = evaluate(config)
    if not config.dry_run:
        print(f"Results: {folder}")
        if len(config.models) > 1:
            data = ["--transfer_set", config.transfer_set] if config.transfer_set else []
            _next("report", folder, *(f"{name}={folder / name}" for name in config.model_paths), *data)


def _report(arguments: list[str]) -> None:
    """
    Compare base and tuned, from any outputs of lm-eval: page, tables, JSON, plot, model card.

    sdrrl report base=results/base tuned=results/tuned --output_dir report
    """
    from sdrrl_trl.evaluation.report import ReportConfig, report

    if arguments and not arguments[0].startswith("-"):  # sdrrl report base=FOLDER tuned=FOLDER
        arguments = ["--models", *arguments]
    usage = "sdrrl report NAME=FOLDER NAME=FOLDER ... --output_dir FOLDER [--transfer_set FOLDER] [--config FILE]"
    (config,) = _options((ReportConfig,), arguments, "report", usage=usage)
    _print_report(report(config))


def _next(command: str, beside: Path, *arguments: str) -> None:
    """The command for the next stage; its folder is named as in README, and beside that of this stage."""
    folder = beside.parent / {"train": "model", "evaluate": "results", "report": "report"}[command]
    if is_first_process():
        print("Next:", shlex.join(["sdrrl", command, *arguments, "--output_dir", str(folder)]))


def _print_report(path: Path) -> None:
    from sdrrl_trl.evaluation.report import in_short

    print(in_short(path))


def _push_to_hub(arguments: list[str]) -> None:
    """
    Upload a transfer set, or a report with its model and card.

    sdrrl push_to_hub report me/model --dry_run
    """
    parser = _parser("push_to_hub")
    parser.add_argument("folder", type=Path, help="folder made by `sdrrl build` or `sdrrl report`")
    parser.add_argument("repo_id", help="repository on the hub, which is made if there is none")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be uploaded")
    options = parser.parse_args(arguments)
    from sdrrl_trl.push import push_to_hub

    push_to_hub(options.folder, options.repo_id, options.dry_run)


def _merge(arguments: list[str]) -> None:
    """
    Write full weights between the base model and a tuned one.

    sdrrl merge model@0.75 merged
    """
    parser = _parser("merge")
    parser.add_argument("model", help="tuned model or adapter, as PATH or PATH@STRENGTH")
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("--base", help="model that it was trained from (default: the one that the adapter names)")
    options = parser.parse_args(arguments)
    from sdrrl_trl.evaluation.weights import base_path, merge

    print(f"Model: {merge(options.model, options.output, options.base)}")
    models = f"base={options.base or base_path(options.model)}", f"merged={options.output}"
    print("To publish it, with scores (your tasks and folders):")
    data = "--transfer_set transfer_set --output_dir"
    print(f"  sdrrl evaluate --models {shlex.join(models)} --tasks sdrrl_heldout {data} merged_results")
    print(f"  sdrrl report base=merged_results/base merged=merged_results/merged {data} merged_report")
    print("  sdrrl push_to_hub merged_report ME/MODEL --dry_run")


def _run(arguments: list[str]) -> None:
    """
    Build, train, evaluate and report, from one YAML file.

    sdrrl run --config run.yaml --output_dir out
    """
    parser = _parser("run")
    parser.add_argument("--config", required=True, help="YAML file with the sections build, train, evaluate, report")
    parser.add_argument("--output_dir", required=True, help="folder of the run")
    parser.add_argument("--overwrite_stage", choices=STAGES, help="stage to do again, with those that follow")
    parser.add_argument("--dry_run", action="store_true", help="only check all, and show sizes, licences and times")
    options = parser.parse_args(arguments)
    from sdrrl_trl.run import run

    config, folder = read_yaml(options.config), Path(options.config).parent
    path = run(config, folder, Path(options.output_dir), options.overwrite_stage, options.dry_run)
    if not options.dry_run:
        _print_report(path)


def _demo(arguments: list[str]) -> None:
    """
    The whole chain on a small real model, English to Portuguese, on a CPU.

    sdrrl demo --output_dir sdrrl_demo
    """
    parser = _parser("demo")
    parser.add_argument("--model", help="local path or hub id (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--output_dir", default="sdrrl_demo", help="folder of the run (default: %(default)s)")
    parser.add_argument("--overwrite_stage", choices=STAGES, help="stage to do again, with those that follow")
    parser.add_argument("--full", action="store_true", help="more records, and what the models write; much longer")
    options = parser.parse_args(arguments)
    from sdrrl_trl.render import render
    from sdrrl_trl.run import demo, demo_dir
    from sdrrl_trl.transfer.files import read_parquet

    folder = Path(options.output_dir)
    _print_report(demo(options.model, folder, options.overwrite_stage, options.full))
    rows = read_parquet(folder / "transfer_set" / "train.parquet")
    example = next((row for row in rows if row["kind"] == "target"), None)
    print(render("demo_next.txt.jinja", folder=folder, config=demo_dir() / "config.yaml", example=example))


def _tasks(arguments: list[str]) -> None:
    """
    Print the folder of the lm-eval tasks.

    sdrrl tasks # as in lm_eval --include_path $(sdrrl tasks)
    """
    _parser("tasks").parse_args(arguments)
    from sdrrl_trl.evaluation.suite import tasks_dir

    print(tasks_dir())


def _judge(arguments: list[str]) -> None:
    """
    Judge saved answers to harmful questions again, without asking the model.

    sdrrl judge results/tuned judged/tuned
    """
    parser = _parser("judge")
    parser.add_argument("source", type=Path, help="folder of `lm_eval --log_samples --output_path`")
    parser.add_argument("output", type=Path, help="new folder of the same form, with the new judgements")
    options = parser.parse_args(arguments)
    from sdrrl_trl.evaluation.judge import judge_again
    from sdrrl_trl.render import render

    print(render("table.md.jinja", rows=judge_again(options.source, options.output)))


def _doctor(arguments: list[str]) -> None:
    """
    Show what is here: torch, disk, hub, translators, judge, and the data of every benchmark, without a model.

    sdrrl doctor sdrrl_xnli_gen --languages th pt
    """
    parser = _parser("doctor")
    parser.add_argument("tasks", nargs="*", help="names of tasks (default: all of ours)")
    parser.add_argument("--languages", nargs="+", help="only tasks about these languages")
    options = parser.parse_args(arguments)
    from sdrrl_trl.evaluation.doctor import doctor

    print(doctor(options.tasks, [tag for tags in options.languages or () for tag in tags.split(",")]))


_STAGES = (_build, _inspect, _export, _train, _evaluate, _report, _push_to_hub, _merge)
COMMANDS = {command.__name__[1:]: command for command in (*_STAGES, _run, _demo, _tasks, _judge, _doctor)}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command line. Exit codes: 0 done, 2 a mistake in options or input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="sdrrl",
        description="Self-distillation from resource-rich languages (SDRRL).",
        epilog="`sdrrl COMMAND --help` shows a command's options. `build`, `train`, `evaluate` and `report` also take "
        "them from a YAML file: `--config FILE`.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        commands.add_parser(name, help=_about(name)["description"], add_help=False)
    parser.error = lambda message: _stop(f"sdrrl: error: {message}{_nearest(message)}", 2)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.print_help()
        return
    _lines_for_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    sys.stdout.reconfigure(errors="backslashreplace")  # terminals that cannot show every script
    start = time.monotonic()
    try:
        COMMANDS[arguments.command](rest)
        if "--dry_run" in rest and is_first_process():
            print("It was a dry run: nothing was written.")
        sys.stdout.flush()
        if (seconds := time.monotonic() - start) > 10 and is_first_process():
            print(f"sdrrl {arguments.command} took {in_time(seconds)}.", file=sys.stderr)
        distributed = sys.modules.get("torch.distributed")  # not imported for this alone: it takes seconds
        if distributed and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()  # else a process whose threads still listen can abort at its exit
    except SDRRLError as error:
        message = str(error).removeprefix(f"sdrrl {arguments.command}: ")  # of the parser
        _stop(f"sdrrl {arguments.command}: error: {message}", 2)
    except BrokenPipeError:  # as in `sdrrl inspect DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _stop(f"sdrrl {arguments.command}: error: the disk is full ({error}). Make room and run it again.", 2)
    except KeyboardInterrupt:
        again = " Leave out `--overwrite_stage` if that stage had begun." if "--overwrite_stage" in rest else ""
        _stop(f"\nInterrupted. The same `sdrrl {arguments.command}` command goes on from here.{again}", 130)


def _nearest(message: str) -> str:
    """A hint at the command that was meant, for argparse's message of an unknown one."""
    found = re.search("invalid choice: '(.*?)'", message)
    return f".{similar(found[1], COMMANDS)}" if found else ""


def _lines_for_bars() -> None:
    """
    Before tqdm is imported: lines of ours in the place of bars. Those that cannot be turned off, as lm-eval's, become
    lines, too, once they have lasted ten seconds: warnings would tear them, and in a log they are none. They tell no
    time left: lm-eval takes the longest texts first.
    """
    looks = {"DISABLE": "1", "DELAY": "10", "MININTERVAL": "10", "LEAVE": "", "POSITION": "1"}
    looks["BAR_FORMAT"] = "{desc}: {n_fmt}/{total_fmt}, {elapsed} so far"
    for name, value in looks.items():
        os.environ.setdefault(f"TQDM_{name}", value)
    from tqdm import tqdm

    def display(bar: tqdm, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # else it is to be wiped out
            print(bar, file=sys.stderr, flush=True)

    tqdm.display = display


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
