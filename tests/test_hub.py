"""Every loader against a hub with the layouts of the real repositories, and every leaf against its golden scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from fake_hub import fake_hub, repositories


HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def hub():
    with fake_hub(repositories()) as url:
        yield url


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    """Of a process that knows this hub only, with an account on it; they are read when libraries are imported."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("SDRRL_DATA_DIR", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    }
    home = str(tmp_path_factory.mktemp("huggingface"))
    return kept | {"HF_ENDPOINT": hub, "HF_HOME": home, "HF_TOKEN": "hf_of_a_test", "PYTHONPATH": str(ROOT)}


def test_every_leaf_has_the_prompts_and_scores_that_it_had_before(environment, tmp_path):
    """The golden file was made by the tasks as they were at a627d0d, and only metrics were renamed since."""
    command = [sys.executable, str(HERE / "render_tasks.py"), str(tmp_path / "found.json")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    golden = json.loads((HERE / "golden_tasks.json").read_text())
    assert found.keys() == golden.keys()
    for leaf, expected in golden.items():
        assert found[leaf].pop("requests") == expected.pop("requests"), leaf
        for kind, scores in expected.items():
            assert {metric: found[leaf][kind].get(metric) for metric in scores} == pytest.approx(scores), (leaf, kind)


@pytest.mark.parametrize(
    ("repository", "token", "named"),
    [
        ("facebook/flores", "", "ok"),  # from the archive
        ("openlanguagedata/flores_plus", "hf_of_a_test", "ok"),
        ("openlanguagedata/flores_plus", "", "terms of https://huggingface.co/datasets/openlanguagedata/flores_plus"),
    ],
)
def test_flores_without_and_with_an_account(repository, token, named, environment, tmp_path):
    code = (
        "import datasets, hashlib, sys; sys.path.insert(0, 'tests'); import fake_hub, render_tasks as r;"
        "sys.path.insert(0, 'lm_eval_tasks/flores200'); import utils;"
        "datasets.DownloadManager.download = r.from_the_hub(datasets.DownloadManager.download);"
        "utils.ARCHIVE_SHA256 = hashlib.sha256(fake_hub.flores_archive()).hexdigest();"
        "assert utils.sentences('por_Latn') == fake_hub.texts('pt'); print('ok')"
    )
    more = {"SDRRL_FLORES_REPO": repository, "HF_TOKEN": token, "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment | more, capture_output=True, text=True, cwd=ROOT
    )
    assert named in result.stdout + result.stderr, result.stderr
