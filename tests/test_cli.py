import re
import resource
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import DEMO, ROOT, cases
from trl import ModelConfig
from trl.scripts.utils import TrlParser

import sdrrl_trl
from sdrrl_trl import SDRRLConfig
from sdrrl_trl.cli import COMMANDS, main
from sdrrl_trl.options import parse_command
from sdrrl_trl.trainer.train import TrainArguments
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.utils import package_version


def sdrrl(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "sdrrl_trl", *arguments], capture_output=True, text=True, **options)


def test_help_takes_less_than_half_a_second_of_work():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = sdrrl("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0 and "demo" in result.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_loads_no_torch_and_gives_an_example(command):
    code = (
        "import sys\nfrom sdrrl_trl.cli import main\n"
        f"try: main({[*command, '--help']!r})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout and (not command or f"Example: sdrrl {command[0]}" in result.stdout)


def test_the_help_of_train_names_options_that_exist_with_their_defaults():
    parser = TrlParser((TrainArguments, SDRRLConfig, ModelConfig))
    defaults = {name: action.default for action in parser._actions for name in action.option_strings}
    text = (ROOT / "sdrrl_trl" / "train_help.txt").read_text(encoding="utf-8")
    own = {field.name for field in fields(TrainArguments)} | {"kl_coef", "anchor_languages"}
    assert own <= set(re.findall(r"--(\w+)", text))
    for line in text.splitlines():
        for name, default in re.findall(r"--(\w+)(?: [A-Z]+ *)?(?:[^-]*?\(default: ([^,)]+))?", line):
            if name not in ("config", "recipe", "help_all", "config_file"):
                assert f"--{name}" in defaults, name
                assert not default or default == str(defaults[f"--{name}"]), name


def test_bars_of_libraries_become_lines_once_they_last():
    code = (
        "import time\nfrom sdrrl_trl.cli import _lines_for_bars\n_lines_for_bars()\nfrom tqdm import tqdm\n"
        "for delay in (0, 10):\n"
        "    for _ in tqdm([1] * 4, desc=str(delay), disable=False, delay=delay, mininterval=0.1): time.sleep(0.15)"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split("\n")
    assert lines[0].startswith("0: 0/4, ") and lines[-2].startswith("0: 4/4, ") and lines[-1] == ""
    assert all(re.fullmatch(r"0: \d/4, \d\d:\d\d so far", line) for line in lines[:-1])


def test_an_unknown_option_is_told_with_the_nearest_known(capsys):
    with pytest.raises(SystemExit):
        main([*BUILD, "--seeds", "x", "--output_dir", "out", "--proportion", "3"])
    assert "Unknown option --proportion. Did you mean --proportions?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*BUILD, "--seed", "questions.jsonl", "--output_dir", "out"])
    assert "argument --seed: invalid int value: 'questions.jsonl'. Did you mean --seeds?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["build", "--seeds", "x", "--output_dir", "out", "--target_langauges=pt"])
    assert "What is --target_langauges? Did you mean --target_languages?" in capsys.readouterr().err


def test_an_unknown_command_is_told_with_the_nearest_known(capsys):
    with pytest.raises(SystemExit):
        main(["biuld"])
    assert capsys.readouterr().err.endswith("Did you mean build?\n")


def test_a_command_that_lasts_tells_what_it_took(monkeypatch, capsys):
    for clock, told in (((0, 247), "sdrrl tasks took 4 min.\n"), ((0, 9), "")):
        monkeypatch.setattr("sdrrl_trl.cli.time", SimpleNamespace(monotonic=iter(clock).__next__))
        main(["tasks"])
        assert capsys.readouterr().err == told


def test_a_checkout_without_a_distribution_has_a_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr("sdrrl_trl.utils.version", missing)
    assert package_version("sdrrl-trl") == sdrrl_trl.__version__ and package_version("trl") is None


def test_a_wrong_value_is_no_misspelt_option(capsys):
    with pytest.raises(SystemExit):
        main([*BUILD, "--seeds", "x", "--output_dir", "out", "--shard_size", "many"])
    assert capsys.readouterr().err.endswith("invalid int value: 'many'.\n")


def test_a_misspelt_option_is_told_before_what_follows_from_it(capsys):
    with pytest.raises(SystemExit):  # from English to English there would be nothing to transfer
        main([*BUILD[:-1], "en", "--seeds", "x", "--output_dir", "out", "--source_langauge", "pt"])
    assert "Unknown option --source_langauge. Did you mean --source_language?" in capsys.readouterr().err


def test_importing_the_package_loads_no_torch():
    code = "import sys, sdrrl_trl; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_or_an_option_that_is_nearly_named_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for command, told in (
        (
            [*BUILD[:2], "modell", *BUILD[3:], "--seeds", str(DEMO / "seeds.jsonl")],
            "Did you mean model? And on the hub",
        ),
        (["train", "--transfer_set", "x", "--lr", "1e-3"], "Did you mean --learning_rate?"),
    ):
        with pytest.raises(SystemExit):
            main([*command, "--output_dir", "out"])
        assert told in capsys.readouterr().err


BUILD = ["build", "--model_name_or_path", "nowhere/at-all", "--target_languages", "pt"]


@pytest.mark.parametrize(
    "arguments, named",
    [
        ([*BUILD, "--seeds", str(DEMO / "seeds.jsonl"), "--source_language", "xx"], "Unknown language 'xx'"),
        (
            [*BUILD, "--seeds", str(DEMO / "seeds.jsonl")],
            "Cannot load the model 'nowhere/at-all': there is no such folder (yet). And on the hub",
        ),
        ([*BUILD, "--seeds", str(DEMO / "seeds.jsonl"), "--sed", "3"], "--sed"),
        (["build", "--config", "missing.yaml"], "Cannot read the configuration"),
        (["evaluate", "--models", "x", "--tasks", "sdrrl_heldout"], "name=path"),
        (["report", "base=missing", "tuned=missing"], "There are no results in missing"),
    ],
)
def test_a_mistake_gives_one_clear_error_and_exit_code_2_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, arguments, named
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--output_dir", "out"])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change, named", cases("run_mistakes"))
def test_run_finds_a_mistake_in_any_section_before_it_starts(tiny_model, tmp_path, monkeypatch, capsys, change, named):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((DEMO / "config.yaml").read_text())
    config["build"] |= {"model_name_or_path": tiny_model, "seeds": str(DEMO / "seeds.jsonl"), "parallel": None}
    config["build"]["proportions"] = None
    config["train"]["use_cpu"] = True
    config["evaluate"]["tasks"] = ["sdrrl_heldout"]
    for section, options in change.items():
        config[section] = {**config.get(section, {}), **options} if isinstance(options, dict) else options
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as exit:
        main(["run", "--config", "run.yaml", "--output_dir", "out"])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and named in error
    assert not (tmp_path / "out").exists()


def test_a_recipe_sets_options_and_every_option_that_is_given_wins(tmp_path):
    base = ["--seeds", "x", "--output_dir", "y", "--model_name_or_path", "z", "--target_languages", "pt"]
    (build,) = parse_command((TransferConfig,), [*base, "--recipe", "anchored", "--temperature", "0.5"], "sdrrl build")
    assert build.proportions == {"target": 4, "source_to_target": 1.5, "source": 1.5} and build.temperature == 0.5
    (tmp_path / "train.yaml").write_text("recipe: anchored\nlora_r: 8\nuse_cpu: true\nbf16: false\nkl_coef: 2\n")
    arguments = ["--config", str(tmp_path / "train.yaml"), "--kl_coef", "3", "--lora_target_modules", "q_proj"]
    training, model = parse_command((SDRRLConfig, ModelConfig), arguments, "sdrrl train")
    assert (training.kl_coef, training.anchor_languages, training.learning_rate) == (3, ["source"], 1e-3)
    assert (model.use_peft, model.lora_r, model.lora_target_modules) == (True, 8, "q_proj")
    training, model = parse_command((SDRRLConfig, ModelConfig), [*arguments, "--recipe", "paper"], "sdrrl train")
    assert (training.anchor_languages, training.learning_rate, model.use_peft) == (None, 1e-5, False)
    (build,) = parse_command((TransferConfig,), [*base, "--recipe", "t_sft"], "sdrrl build")
    assert (build.answer_source, build.proportions) == ("reference", {"target": 1})
    training, model = parse_command((SDRRLConfig, ModelConfig), [*arguments[:2], "--recipe", "t_sft"], "sdrrl train")
    assert (training.anchor_languages, training.learning_rate, model.use_peft) == (None, 1e-3, True)
    (tmp_path / "train.yaml").write_text("recipe: anchored\nanchor_languages: null\nuse_cpu: true\nbf16: false\n")
    training, model = parse_command((SDRRLConfig, ModelConfig), [*arguments[:2], "--kl_coef", "0"], "sdrrl train")
    assert (training.anchor_languages, training.kl_coef, model.use_peft) == (None, 0, True)


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (["--recipe", "anchored"], "anchored"),
        (["--recipe", "anchored", "--answer_source", "reference"], "anchored"),
        (["--recipe", "t_sft"], "t_sft"),
        (["--proportions", '{"target": 1}'], "t_sft"),
        (["--recipe", "paper"], "paper"),
    ],
)
def test_build_names_a_recipe_that_its_records_are_fit_for(options, recipe, monkeypatch, capsys):
    monkeypatch.setattr("sdrrl_trl.transfer.build.build_transfer_set", lambda config: Path(config.output_dir))
    monkeypatch.setattr("sdrrl_trl.engines.transformers.own_device", lambda: SimpleNamespace(type="cpu"))
    model, smaller = f"--recipe {recipe} --model_name_or_path nowhere/at-all --transfer_set in/set", "--max_length 256"
    main([*BUILD, "--seeds", "x", "--output_dir", "in/set", *options])
    (line, hint) = capsys.readouterr().out.splitlines()
    assert line == f"Next: sdrrl train {model} --output_dir in/model" and smaller in hint
    main([*BUILD, "--seeds", "x", "--output_dir", "in/set", *options, "--max_new_tokens", "128"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Next: sdrrl train {model} ") and smaller in line


def test_no_network_and_no_model_is_one_clear_error(tmp_path):
    import os

    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    result = sdrrl("demo", "--output_dir", str(tmp_path / "out"), env=environment, cwd=tmp_path)
    assert result.returncode == 2
    assert "Connect to the network" in result.stderr and "--model" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "transfer_set").exists()


def test_all_public_names_are_documented():
    documented = re.findall(r"^::: sdrrl_trl\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert set(documented) == set(sdrrl_trl.__all__) - {"__version__"}


def test_the_folder_of_tasks_is_printed():
    assert sdrrl("tasks").stdout.strip() == str(ROOT / "lm_eval_tasks")


def test_a_command_that_is_done_leaves_its_process_group(tmp_path):
    code = (
        "import torch.distributed as dist; from sdrrl_trl.cli import main; "
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/rendezvous', rank=0, world_size=1); "
        "main(['tasks']); assert not dist.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
