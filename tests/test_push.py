"""`sdrrl push_to_hub`, by the hub's own client, to a hub on this machine that keeps what it gets."""

import base64
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard, metadata_load
from stub_engines import StubGenerator, StubTranslator, build
from test_report import HARMFUL_TEXT, N, one_model, right, small
from test_report import run as report_on

from sdrrl_trl import SDRRLError
from sdrrl_trl.evaluation.card import BEGIN
from sdrrl_trl.push import push_to_hub
from sdrrl_trl.utils import write_json


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Files of the repositories by kind and name; one with a card takes part from the start."""
    repositories = {"models/org/carded": {"README.md": b"---\ntags: [theirs]\n---\n# Theirs\n"}}

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("/resolve/main/README.md"):
                files = repositories.get("models/" + self.path[1:].removesuffix("/resolve/main/README.md"), {})
                return self.reply(200 if "README.md" in files else 404, files.get("README.md", b""))
            content = {"url": "https://huggingface.co/me/it"}  # of a new repository
            if asked := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/(preupload|commit)/main.*", self.path):
                files = repositories.setdefault(asked[1], {})
            if asked and asked[2] == "preupload":
                named = [{"path": file["path"], "shouldIgnore": False} for file in json.loads(body)["files"]]
                content = {"files": [file | {"uploadMode": "regular"} for file in named]}
            elif asked:
                sent = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
                files.update({file["path"]: base64.b64decode(file["content"]) for file in sent})
                content = {"commitUrl": "https://huggingface.co/me/it/commit/1", "commitOid": "1" * 40}
            self.reply(200, json.dumps(content).encode())

        def reply(self, status, content):
            self.send_response(status)
            headers = {"Content-Length": len(content), "ETag": '"1"', "X-Repo-Commit": "1" * 40}
            for key, value in (headers | {"X-Error-Code": "EntryNotFound"} if status == 404 else headers).items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args):
            pass

        do_GET = do_HEAD = do_POST = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Read when the hub's libraries are imported: by a process of its own
    for name, value in {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    yield repositories
    server.shutdown()
    server.server_close()


def push(folder, repo_id, *options):
    """What is printed; the files that are named in it."""
    command = [sys.executable, "-m", "sdrrl_trl", "push_to_hub", str(folder), repo_id, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    return done.stderr, {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}


@pytest.fixture
def model_folder(tmp_path):
    """A model that was trained here."""
    folder = tmp_path / "model"
    (folder / "checkpoint-5").mkdir(parents=True)
    for name in ("model.safetensors", "training_args.bin", "checkpoint-5/optimizer.pt"):
        (folder / name).write_text("")
    (folder / "config.json").write_text("{}")
    text = '# model: a base\n\nThe trainer\'s text.\n\npipeline("x", model="model")\n'
    (folder / "README.md").write_text(f"---\ntags: [sdrrl]\n---\n{text}")
    return folder


def test_a_transfer_set_is_uploaded_with_its_card(hub, stub_seeds, tmp_path):
    folder = build(stub_seeds, tmp_path / "set", StubGenerator(), StubTranslator())
    _, names = push(folder, "me/set", "--dry_run")
    assert not hub.get("datasets/me/set") and names >= {"train.parquet", "rejected.parquet", "manifest.json"}
    push(folder, "me/set")
    files = hub["datasets/me/set"]
    assert files.keys() == names and files["train.parquet"] == (folder / "train.parquet").read_bytes()
    here, there = (folder / "README.md").read_text(), files["README.md"].decode()
    assert 'load_dataset("FOLDER")' in here and 'load_dataset("me/set")' in there
    card = metadata_load(folder / "README.md")
    assert (card["license"], card["language"]) == ("other", ["en", "pt"]) and card["license_name"]
    assert "None" not in files["README.md"].decode() and str(tmp_path) not in files["README.md"].decode()
    (folder / "train.parquet").write_bytes(b"")
    assert "was changed" in push(folder, "me/set")[0]


def test_a_report_is_uploaded_with_the_model_and_no_text_of_harmful_items(hub, model_folder, tmp_path, capsys):
    models = {"base": one_model(0.0), "tuned": one_model(0.35)}
    folder = report_on(tmp_path, models, {"tuned": str(model_folder), "base": "\x1b[2J"})[1].parent
    push_to_hub(folder, "me/1it", dry_run=True)
    assert "In README.md, model becomes me/1it.\n" in capsys.readouterr().out
    (folder / "old.txt").write_text(HARMFUL_TEXT)
    _, names = push(folder, "me/1it", "--dry_run")
    push(folder, "me/1it")
    files = hub["models/me/1it"]
    of_report = {f"report/report.{ending}" for ending in ("md", "json", "svg")}
    assert files.keys() == names == {"model.safetensors", "config.json", "README.md"} | of_report
    assert not any(b"lock" in content for content in files.values())
    card = files["README.md"].decode()
    assert BEGIN in card and "The trainer's text." in card
    # Under the name that others load it by
    assert "\n# 1it: a base\n" in card and 'model="me/1it"' in card and "- name: 1it\n" in card


def test_a_name_that_no_repository_can_have_is_told_before_the_folder_is_looked_at(tmp_path):
    with pytest.raises(SDRRLError, match="a/b/c cannot be the name of a repository"):
        push_to_hub(tmp_path / "nothing", "a/b/c")


@pytest.mark.parametrize("model, kept", [("org/carded", True), ("org/new", False)])
def test_a_model_on_the_hub_gets_the_report_and_its_card_the_scores(hub, tmp_path, model, kept):
    models = {name: small(acc=right(share)) for name, share in (("base", 0.2), ("tuned", 0.9))}
    assert push(report_on(tmp_path, models, {"tuned": model})[1].parent, model)[0] == ""
    files = hub[f"models/{model}"]
    card = ModelCard(files["README.md"].decode())
    assert [score.metric_value for score in card.data.eval_results] == [0.9]
    assert ("# Theirs" in card.text) == kept and "report/report.html" in files


def test_what_cannot_be_of_use_on_the_hub_is_refused(hub, tmp_path, tiny_model):
    models = {
        name: small("sdrrl_multijail_en", safe_rate=[1.0, 0.0] * (N // 2)) for name in ("base", "tuned", "third")
    }
    two = dict(list(models.items())[:2])
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": tiny_model}))
    write_json(tmp_path / "report.json", {"models": {}, "tuned": [], "signatures": {}})
    with pytest.raises(SDRRLError, match="compares 0 tuned models"):
        push_to_hub(tmp_path, "me/it")
    for i, (results, paths, named) in enumerate(
        [
            (models, {}, "compares 2 tuned models"),
            (two, {"tuned": "m@0.5"}, "sdrrl merge"),
            (two, {"tuned": str(tmp_path / "adapter")}, "is of a base in a folder here"),
        ]
    ):
        with pytest.raises(SDRRLError, match=named):
            push_to_hub(report_on(tmp_path / str(i), results, paths)[1].parent, "me/it")
    # A path in a results file may be any folder
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "id").write_text("key")
    push(report_on(tmp_path / "5", two, {"tuned": str(tmp_path / "secrets")})[1].parent, "me/it")
    assert "id" not in hub["models/me/it"] and "report/report.md" in hub["models/me/it"]
