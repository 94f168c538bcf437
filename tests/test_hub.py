"""Every loader against a hub with the layouts of the real repositories, and every leaf against its golden scores."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fake_hub
import pytest
from conftest import ROOT, cases


HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_tasks.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a process that knows this hub only, with an account on it; they are read when libraries are imported."""
    unset = ("SDRRL_DATA_DIR", "SDRRL_JUDGE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    home = str(tmp_path_factory.mktemp("huggingface"))
    kept["SDRRL_CC_TUNING"] = str(fake_hub.write_checkout(tmp_path_factory.mktemp("CC-Tuning")))
    with fake_hub.serve(fake_hub.repositories()) as url:
        yield kept | {"HF_ENDPOINT": url, "HF_HOME": home, "HF_TOKEN": "hf_of_a_test", "PYTHONPATH": str(ROOT)}


def python(arguments, environment):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def assert_golden(found, golden):
    assert found.keys() == golden.keys()
    for leaf, expected in golden.items():
        assert found[leaf]["requests"] == expected["requests"], leaf
        for kind, scores in expected.items():
            if kind != "requests":
                got = {metric: found[leaf][kind].get(metric) for metric in scores}
                assert got == pytest.approx(scores), (leaf, kind)


def test_every_leaf_has_the_prompts_and_scores_that_it_had_before(environment, tmp_path):
    """Scores by kind of answer were looked through where the golden file was made again."""
    python([HERE / "render_tasks.py", tmp_path / "found.json"], environment)
    assert_golden(json.loads((tmp_path / "found.json").read_text()), GOLDEN)


def test_the_folders_to_contribute_stand_alone_and_score_the_same(environment, tmp_path):
    folder = tmp_path / "upstream"
    python([ROOT / "lm_eval_tasks" / "_generate.py", "--upstream", folder], environment)
    for path in folder.rglob("*"):
        assert path.is_dir() or "sdrrl_" not in path.read_text(encoding="utf-8").replace("SDRRL_", ""), path
    python([HERE / "render_tasks.py", tmp_path / "found.json", folder], environment)
    ours = {leaf.removeprefix("sdrrl_"): scores for leaf, scores in GOLDEN.items() if leaf.startswith("sdrrl_")}
    ours = {leaf.replace("xlsum_", "xlsum_rouge_"): scores for leaf, scores in ours.items()}  # theirs has `xlsum_es`
    # lm-eval has MMMLU by likelihood, and nobody else compares with the published figures
    ours = {leaf: scores for leaf, scores in ours.items() if not re.match(r"mmmlu_(?!gen_)|published_", leaf)}
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(ours) == 215 and len(found) >= 30
    assert {path.stem for path in folder.glob("*/[!_]*.yaml")} == ours.keys()
    assert_golden(found, {leaf: ours[leaf] for leaf in found})


ARCHIVE_SHA256 = hashlib.sha256(fake_hub.flores_archive()).hexdigest()
FLORES = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import datasets, fake_hub, render_tasks
from sdrrl_trl.tasks import data, flores
from sdrrl_trl.transfer.parallel import read_parallel
datasets.DownloadManager.download = render_tasks.from_the_hub(datasets.DownloadManager.download)
flores.FLORES_SHA256 = sys.argv[1]
assert flores.sentences("por_Latn") == fake_hub.texts("pt")
assert next(read_parallel(["facebook/flores"], "en", ["pt", "sw"])).target == (fake_hub.texts("pt")[0],)
first, second, *_ = data.load_mkqa("pt", "pt", "Latn")["test"]["answers"]
assert first == [fake_hub.texts("pt")[0], "Oslo"] and second == ["1.0"]  # with the aliases
"""


OLD, PLUS = "facebook/flores", "openlanguagedata/flores_plus"


@pytest.mark.parametrize(
    ("repository", "token", "sha256", "said"),
    [
        (OLD, "", ARCHIVE_SHA256, None),
        (PLUS, "hf_of_a_test", "", None),
        (OLD, "", "0" * 64, f"its SHA-256 is .*terms of https://huggingface.co/datasets/{OLD} "),
        (PLUS, "", "", f"terms of https://huggingface.co/datasets/{PLUS}"),
    ],
)
def test_flores_needs_no_account_and_a_refusal_names_the_terms_of_who_refused(
    repository, token, sha256, said, environment, tmp_path
):
    more = {"SDRRL_FLORES_REPO": repository, "HF_TOKEN": token, "HF_HOME": str(tmp_path)}
    if said is None:
        python(["-c", FLORES, sha256], environment | more)
    else:
        with pytest.raises(AssertionError, match=f"(?s){said}"):
            python(["-c", FLORES, sha256], environment | more)


CACHED = """
import datasets
from sdrrl_trl.tasks import data
from sdrrl_trl.transfer.contamination import find_items
from sdrrl_trl.transfer.rows import Seed
assert find_items([], "en")["checked"] == {}
item = data.load_mmmlu("EN_US", "en", "Latn")["test"][3]["Question"]
data.load_belebele("eng_Latn")
seeds = [Seed("a", ("Why?",)), Seed("b", (item.upper(),))]
assert find_items(seeds, "en") == {"found": {"b": "mmmlu"}, "checked": {"belebele": 24, "mmmlu": 12}}
assert not datasets.config.HF_HUB_OFFLINE
"""


def test_items_of_benchmarks_are_found_by_what_was_loaded_before_and_nothing_is_downloaded(environment, tmp_path):
    python(["-c", CACHED], environment | {"HF_HOME": str(tmp_path)})


@pytest.fixture
def failing(environment, tmp_path):
    """`run(arguments, answer)` against a hub with that answer to a path, and the paths that it was asked for."""

    def run(arguments, answer, url=None):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                asked.append(self.path)
                status, headers = answer(self.path)
                if status == "hang":
                    threading.Event().wait(30)
                self.send_response(200 if status == "hang" else status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_HEAD

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            more = {"HF_ENDPOINT": url or f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
            result = python(arguments, environment | more)
            server.shutdown()
        assert "Retrying" not in result.stderr
        return result.stdout, asked

    return run


LOAD = """
import json, sys
from sdrrl_trl import SDRRLError
from sdrrl_trl.engines.transformers import check_model
for name in sys.argv[1:]:
    try:
        check_model(name, needs_chat_template=True)
    except SDRRLError as error:
        print(json.dumps(str(error)))
"""


def test_each_failure_of_the_hub_is_told_once_with_its_way_out(failing):
    answers, expected = zip(*cases("hub_failures"), strict=True)
    names = [f"org/model{i}" for i in range(len(answers))]

    def answer(path):
        found = re.search(r"model(\d)", path)
        return answers[int(found[1])] if found else (200, {})

    printed, asked = failing(["-c", LOAD, *names], answer)
    for name, how, said, line in zip(names, answers, expected, printed.splitlines(), strict=True):
        assert re.search(f"Cannot load the model '{name}'.*{said}", json.loads(line))
        assert ("terms" in line) == ("GatedRepo" in str(how))
        assert sum(f"{name}/resolve" in path for path in asked) <= 2


@pytest.mark.parametrize("answer, said", [(None, "ConnectError"), (503, "error 503"), ("hang", "ReadTimeout")])
def test_doctor_asks_a_dead_hub_once_and_says_why_nothing_is_here(failing, answer, said):
    url = None if answer else "http://no-such-host.invalid"
    command = ["-m", "sdrrl_trl", "doctor", "sdrrl_mkqa", "sdrrl_flores", "--languages", "pt,th"]
    printed, asked = failing(command, lambda path: (answer, {}), url)
    assert re.search(r"\npt +\(1\) +\(1\) ", printed) and "(2)" not in printed and "terms" not in printed
    assert re.search(rf"\nhub +not there: http.*{said}", printed) and re.search(r"\njudge +phrases", printed)
    assert asked == ["/"] * (answer is not None)
