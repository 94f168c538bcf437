import subprocess
import sys
import tomllib
import zipfile

from conftest import ROOT


def test_the_wheel_brings_the_demo_and_puts_the_tasks_where_lm_eval_finds_them(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sdrrl_trl/demo/config.yaml", "sdrrl_trl/demo/seeds.jsonl", "sdrrl_trl/py.typed"} <= names
    tasks = {
        path.relative_to(ROOT / "lm_eval_tasks") for path in (ROOT / "lm_eval_tasks").rglob("*") if path.is_file()
    }
    for path in tasks:
        if "__pycache__" not in path.parts:
            assert f"lm_eval/tasks/sdrrl/{path.as_posix()}" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]


def test_the_version_is_the_same_everywhere():
    import sdrrl_trl

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == sdrrl_trl.__version__
