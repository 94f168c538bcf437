import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


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


def installed_without_extras() -> set[str]:
    """Names of the packages that an installation without extras brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, to_do = set(), [Requirement(text) for text in project["dependencies"]]
    while to_do:
        one = to_do.pop()
        key = (canonicalize_name(one.name), *sorted(one.extras))
        if key not in found:
            found.add(key)
            wanted = map(Requirement, requires(one.name) or ())
            extras = ["", *one.extras]
            to_do += [
                need for need in wanted if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)
            ]
    return {name for name, *_ in found}


@pytest.mark.parametrize("family", ["m2m_100", "marian", "nllb", "t5"])
def test_the_default_engine_of_translation_needs_no_extra(family):
    import transformers

    code = (ROOT.joinpath(transformers.__path__[0]) / "models" / family / f"tokenization_{family}.py").read_text()
    imported = {
        line.split()[1].partition(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))
    }
    packages = packages_distributions()
    needed = {canonicalize_name(packages[name][0]) for name in imported if name in packages}
    assert needed <= installed_without_extras()
