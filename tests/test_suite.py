"""What `sdrrl evaluate` does with benchmarks: names, languages, backends."""

import json

import pytest
from conftest import cases, data_dir
from test_endpoint import Server

from sdrrl_trl import EvaluationConfig, SDRRLError, evaluate
from sdrrl_trl.evaluation.outputs import load
from sdrrl_trl.evaluation.report import ReportConfig, report
from sdrrl_trl.evaluation.suite import language_of, select, task_manager


pytestmark = pytest.mark.skipif(data_dir() is None, reason="no benchmark data")


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))


def run(tiny_model, folder, tasks, **more):
    models = more.pop("models", [f"base={tiny_model}"])
    config = EvaluationConfig(models, tasks, str(folder), **{"limit": 5, "model_args": "dtype=float32", **more})
    return evaluate(config)


def test_groups_tags_and_tasks_of_lm_eval_stand_for_their_tasks():
    assert len(select(["sdrrl_multijail"])) == 10
    assert set(select(["sdrrl_multijail_ood"])) == {f"sdrrl_multijail_{tag}" for tag in ("it", "jv", "ko", "th", "vi")}
    lm_evals = select(["xnli_th", "sdrrl_xnli_gen_th"])
    assert set(lm_evals) == {"xnli_th", "sdrrl_xnli_gen_th"}
    assert lm_evals["xnli_th"].config.metadata["version"] == 1.0


def test_the_language_of_a_task_is_known_by_its_tag_or_name():
    known = {"sdrrl_heldout_gen_pt": "pt", "sdrrl_pku_saferlhf_gen": "en", "sdrrl_flores_eng_Latn-por_Latn": "pt"}
    known["sdrrl_flores_por_Latn-eng_Latn"] = "pt"  # by its tag: into English, too, it is about Portuguese
    known |= {"hellaswag": None, "agieval_lsat_ar": None}  # the latter is about analytical reasoning
    assert {task: language_of(task) for task in known} == known


def test_languages_choose_among_the_tasks_of_a_group():
    found = select(["sdrrl_safety", "sdrrl_xnli", "sdrrl_flores"], ["th"])
    pairs = {"sdrrl_flores_eng_Latn-tha_Thai", "sdrrl_flores_tha_Thai-eng_Latn"}
    assert set(found) == {"sdrrl_multijail_th", "xnli_th"} | pairs
    assert len(select(["sdrrl_flores"], ["th", "vi-VN"])) == 4


def test_only_our_tasks_are_indexed_as_long_as_no_other_is_asked_for():
    assert {"sdrrl_multilingual", "xnli_th"} <= set(task_manager().all_tasks)
    assert "hellaswag" not in task_manager().all_tasks


def test_what_is_missing_is_left_out_and_listed_on_demand(capsys):
    assert set(select(["sdrrl_xnli_gen_th", "sdrrl_xnli_gen_fr"], skip_missing=True)) == {"sdrrl_xnli_gen_th"}
    assert "Left out, as they cannot be loaded (1):\nsdrrl_xnli_gen_fr: " in capsys.readouterr().err
    with pytest.raises(SDRRLError, match="Of the tasks, 1 cannot be loaded"):
        select(["sdrrl_xnli_gen_fr"], skip_missing=True)
    assert select(["sdrrl_xnli_gen_fr"], skip_missing=True, are_all=False) == {}


@pytest.mark.parametrize("names, languages, named", cases("tasks"))
def test_what_cannot_be_loaded_is_named_before_any_model_is(names, languages, named):
    with pytest.raises(SDRRLError, match=named):
        select(names, languages)


def test_the_judge_and_no_key_is_recorded(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_JUDGE_MODEL", "a-judge")
    monkeypatch.setenv("SDRRL_JUDGE_API_KEY", "secret")
    folder = run(tiny_model, tmp_path, ["sdrrl_multijail", "sdrrl_mmmlu_pt"], languages=["pt", "th"])
    tasks = load(folder / "base").tasks
    assert set(tasks) == {"sdrrl_multijail_th", "sdrrl_mmmlu_pt"}
    assert all(isinstance(item.response, str) for item in tasks["sdrrl_multijail_th"].items)
    assert json.loads((folder / "options.json").read_text())["options"]["environment"] == {
        "SDRRL_JUDGE_MODEL": "a-judge"
    }
    assert not any("secret" in file.read_text() for file in folder.rglob("*.json*"))


def test_a_server_can_be_evaluated_and_one_that_fails_is_named(tiny_model, tmp_path):
    reply = {"choices": [{"index": 0, "message": {"content": "Lisboa"}}]}
    with Server(lambda number, body: (200 if body["model"] == "my-model" else 400, {}, reply)) as server:
        model_args = f"base_url={server.url}/chat/completions,max_retries=1"
        more = {"backend": "local-chat-completions", "model_args": model_args}
        with pytest.raises(SDRRLError, match="local-chat-completions' failed at the model 'x', asked sdrrl_mkqa_pt"):
            run(tiny_model, tmp_path / "x", ["sdrrl_mkqa_pt"], models=["x=other"], **more)
        with pytest.raises(SDRRLError, match="A chat server tells no likelihoods, which xnli_th need"):
            run(tiny_model, tmp_path / "y", ["xnli_th"], models=["x=my-model"], **more)
        server.requests.clear()
        served = load(
            run(tiny_model, tmp_path / "z", ["sdrrl_mkqa_pt"], models=["served=my-model"], **more) / "served"
        )
    folders = [f"{name}={tmp_path / 'z' / 'served'}" for name in ("base", "tuned")]
    assert "mkqa_pt" in report(ReportConfig(folders, str(tmp_path / "report"))).read_text()
    items = served.tasks["sdrrl_mkqa_pt"].items
    assert [item.response for item in items] == ["Lisboa"] * 5 and "Responda" in items[0].prompt
    (_, _, asked, _), *_ = server.requests
    assert asked["model"] == served.model == "my-model" and "Responda" in str(asked["messages"])
