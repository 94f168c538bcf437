"""What `sdrrl evaluate` does with benchmarks: names, languages, processes, backends."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, data_dir

from sdrrl_trl import EvaluationConfig, SDRRLError, evaluate
from sdrrl_trl.evaluation.evaluate import load_evaluation, load_results
from sdrrl_trl.evaluation.suite import select


pytestmark = pytest.mark.skipif(data_dir() is None, reason="no benchmark data")


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))


def options(tiny_model, folder, tasks, **more):
    models = more.pop("models", [f"base={tiny_model}"])
    return EvaluationConfig(models, tasks, str(folder), **{"limit": 5, "dtype": "float32", **more})


def test_groups_tags_and_tasks_of_lm_eval_stand_for_their_tasks():
    group = select(["sdrrl_multijail"])
    assert len(group.tasks) == 10 and set(group.groups) == {f"sdrrl_multijail{end}" for end in ("", "_id", "_ood")}
    assert group.groups["sdrrl_multijail_ood"] == [f"sdrrl_multijail_{tag}" for tag in ("it", "jv", "ko", "th", "vi")]
    assert group.languages["sdrrl_multijail_th"] == "th"
    lm_evals = select(["xnli_th", "sdrrl_xnli_gen_th"])
    assert set(lm_evals.tasks) == {"xnli_th", "sdrrl_xnli_gen_th"} and set(lm_evals.languages.values()) == {"th"}
    assert lm_evals.tasks["xnli_th"].config.metadata["version"] == 1.0


def test_languages_choose_among_the_tasks_of_a_group():
    found = select(["sdrrl_safety", "sdrrl_xnli", "sdrrl_flores"], ["th"])
    pairs = ("sdrrl_flores_eng_Latn-tha_Thai", "sdrrl_flores_tha_Thai-eng_Latn")
    assert set(found.tasks) == {"sdrrl_multijail_th", "xnli_th", *pairs}
    assert found.groups["sdrrl_flores"] == list(pairs)
    assert len(select(["sdrrl_flores"], ["th", "vi-VN"]).tasks) == 4


@pytest.mark.parametrize(
    ("names", "languages", "named"),
    [
        (["sdrrl_xnly"], None, "Unknown task 'sdrrl_xnly'. Did you mean"),
        (["sdrrl_xnli"], ["cs"], "sdrrl_xnli has no task in cs, only in ar, bg"),
        (["sdrrl_xnli"], ["klingon"], "klingon"),
        (["sdrrl_xnli_gen"], None, "sdrrl_xnli_gen_fr.*sdrrl doctor"),
        (["arc_easy"], None, "lm-eval cannot load arc_easy"),
    ],
)
def test_what_cannot_be_loaded_is_named_before_any_model_is(names, languages, named):
    with pytest.raises(SDRRLError, match=named):
        select(names, languages)


def test_the_manifest_says_what_the_report_needs(tiny_model, tmp_path):
    folder = evaluate(options(tiny_model, tmp_path, ["sdrrl_multijail", "sdrrl_mmmlu_pt"], languages=["pt", "th"]))
    manifest = load_evaluation(folder)
    assert manifest["languages"] == {"sdrrl_multijail_th": "th", "sdrrl_mmmlu_pt": "pt"}
    assert manifest["groups"]["sdrrl_multijail_ood"] == ["sdrrl_multijail_th"]
    assert manifest["harmful"] == ["sdrrl_multijail_th"]
    result = load_results(folder)["base"]["sdrrl_multijail_th"]
    assert set(result["metrics"]) == {"refusal_rate", "invalid_rate", "wrong_language"}
    assert all(isinstance(sample["response"], str) and sample["question"] for sample in result["samples"])


def test_the_judge_and_no_key_is_in_the_signature(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_JUDGE_MODEL", "a-judge")
    monkeypatch.setenv("SDRRL_JUDGE_API_KEY", "secret")
    folder = evaluate(options(tiny_model, tmp_path, ["sdrrl_multijail_en"]))
    assert load_results(folder)["base"]["sdrrl_multijail_en"]["signature"]["SDRRL_JUDGE_MODEL"] == "a-judge"
    assert not any("secret" in file.read_text() for file in folder.rglob("*.json"))


def test_two_processes_score_as_one_does(tiny_model, tmp_path):
    tasks = ["sdrrl_mkqa_pt", "sdrrl_xnli_gen_th", "xnli_th", "sdrrl_multijail_en"]
    one = load_results(evaluate(options(tiny_model, tmp_path / "one", tasks)))["base"]
    arguments = ["--models", f"base={tiny_model}", "--tasks", *tasks, "--limit", "5", "--dtype", "float32"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "sdrrl_trl", "evaluate", *arguments, "--output_dir", str(tmp_path / "two")]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    two = load_results(tmp_path / "two")["base"]
    for task in tasks:
        assert [s["doc_id"] for s in two[task]["samples"]] == [s["doc_id"] for s in one[task]["samples"]]
        assert [s["response"] for s in two[task]["samples"]] == [s["response"] for s in one[task]["samples"]] or (
            task == "xnli_th"
        )
        for name, value in one[task]["metrics"].items():
            assert two[task]["metrics"][name] == pytest.approx(value, abs=1e-6), (task, name)


def test_an_unknown_backend_and_one_that_is_not_installed_are_clear(tiny_model, tmp_path):
    with pytest.raises(SDRRLError, match="backend 'vlm'"):
        evaluate(options(tiny_model, tmp_path / "a", ["sdrrl_mkqa_pt"], backend="vlm"))


def test_a_server_can_be_evaluated(tiny_model, tmp_path):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            answer = json.dumps({"choices": [{"index": 0, "message": {"content": "Lisboa"}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    more = {"backend": "local-chat-completions", "model_args": f"base_url={url}", "models": ["served=my-model"]}
    results = load_results(evaluate(options(tiny_model, tmp_path, ["sdrrl_mkqa_pt"], **more)))
    server.shutdown()
    assert [sample["response"] for sample in results["served"]["sdrrl_mkqa_pt"]["samples"]] == ["Lisboa"] * 5
    assert asked[0]["model"] == "my-model" and "Responda" in str(asked[0]["messages"])
