"""MultiJail and PKU-SafeRLHF: refusals by phrases, judge models, what happens if they fail, and judging again."""

import json
import logging
import os
import threading
import time

import pytest
from conftest import ROOT, cases, data_dir, write_json_lines
from scripted import Scripted, run
from server import Server, completion

from sdrrl_trl.evaluation.judge import judge_again
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.render import render
from sdrrl_trl.tasks import judge
from sdrrl_trl.utils import SDRRLError


EN, GEN = "sdrrl_multijail_en", "sdrrl_pku_saferlhf_gen"
MULTIJAIL = [f"sdrrl_multijail_{tag}" for tag in ("en", "zh", "it", "vi", "ar", "ko", "th", "bn", "sw", "jv")]
REFUSAL = "I'm sorry, but I can't help with that."
HELP = "First chop the onions, then heat the pan and fry them until they are golden."
KEY = "sk-very-secret-key"
needs_data = pytest.mark.skipif(data_dir() is None, reason="no benchmark data here")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """The data's folder, no judge model, and no waiting."""
    for name in [name for name in os.environ if name.startswith("SDRRL_JUDGE")]:
        monkeypatch.delenv(name)
    if data_dir():
        monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    monkeypatch.setattr(time, "sleep", lambda seconds: None if seconds < 60 else pytest.fail("waits for hours"))
    judge.probe.cache_clear()


def use(monkeypatch, **settings):
    for name, value in settings.items():
        monkeypatch.setenv(f"SDRRL_JUDGE_{name}", value)


@pytest.fixture
def server(monkeypatch):
    """An OpenAI-compatible judge. `server.answer` makes a status and a content of a question."""

    def reply(number, body):
        question = json.loads(body["messages"][1]["content"])["question"]
        status, content = (200, "SAFE") if question.startswith("What is two") else state.answer(question)
        if status == "hang":
            threading.Event().wait(1)
        headers = {"Location": "/elsewhere", "Retry-After": "1" * 20}
        return 200 if status == "hang" else status, headers, completion(content)[2]

    with Server(reply) as state:
        state.answer = lambda question: (200, "SAFE")
        monkeypatch.setenv("SDRRL_JUDGE", "endpoint")
        use(monkeypatch, URL=state.url, MODEL="a-judge", API_KEY=KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield state


# ---- Without a judge model


@needs_data
@pytest.mark.parametrize("answer, refusals, invalid", cases("models_of_one_mind"))
def test_models_of_one_mind_get_the_rates_they_must_and_none_is_called_safe(answer, refusals, invalid):
    def say(doc, _):
        prompt = doc["prompt"]
        return answer.format(prompt=prompt, half=prompt[: len(prompt) // 2])

    scores, _ = run(say, [*MULTIJAIL, GEN], limit=6)
    assert len(scores) == 11
    for name, found in scores.items():
        assert found.keys() == {"refusal_rate", "invalid_rate", "wrong_language", "language_unknown"}, name
        assert (found["refusal_rate"], found["invalid_rate"]) == (refusals, invalid), name


SAID = (ROOT / "tests" / "refusals.txt").read_text("utf-8").splitlines()[1:]


@pytest.mark.parametrize("line", SAID)
def test_refusals_are_told_from_what_only_sounds_like_one(line):
    sign, answer = line.split("\t")
    assert judge.refuses(answer) == (sign == "+")


def test_on_answers_labelled_by_hand_a_refusal_is_safe_and_an_invalid_answer_is_none():
    rows = [json.loads(line) for line in (ROOT / "tests" / "judge_labels.jsonl").read_text("utf-8").splitlines()]
    invalid = [row for row in rows if judge.is_invalid("", row["response"], LANGUAGES[row["language"]].script)]
    refused = [row for row in rows if judge.refuses(row["response"]) and row not in invalid]
    assert len(rows) >= 160 and len(refused) >= 25 and len(invalid) >= 30
    assert sum(row["label"] == "SAFE" for row in refused) >= 0.95 * len(refused)
    assert sum(row["label"] == "INVALID" for row in invalid) >= 0.95 * len(invalid)


# ---- Judge models


@needs_data
def test_an_endpoint_gives_three_labels_and_is_asked_again_after_an_error(server):
    calls, labels = [], ("<think>hm, UNSAFE?</think> SAFE", "unsafe.", "**Invalid**")

    def answer(question):
        calls.append(question)
        first = calls.count(question) == 1  # each question is asked by one thread
        return (503, "") if first else (200, labels[len(question) % 3])

    server.answer = answer
    scores, samples = run(lambda *_: HELP, [EN], limit=9, log_samples=True)
    found = scores[EN]
    assert found["judge_failed"] == 0 and len(calls) == 18
    assert found["safe_rate"] + found["unsafe_rate"] + found["invalid_rate"] == pytest.approx(1)
    for sample in samples[EN]:
        assert sample["safe_rate"] == float(len(sample["doc"]["prompt"]) % 3 == 0)
        assert "endpoint a-judge" in str(sample["filtered_resps"])


@needs_data
@pytest.mark.parametrize("bad", [*cases("bad_judgements"), (200, "SAFE" + " " * 1_600_000)])  # more than is read
def test_failed_judgements_are_counted_and_never_safe_and_nothing_secret_is_logged(
    server, bad, caplog, capfd, monkeypatch
):
    use(monkeypatch, TIMEOUT="0.3")
    caplog.set_level(logging.INFO)
    seen, lock = {}, threading.Lock()

    def answer(question):
        with lock:
            turn = seen.setdefault(question, len(seen))
        return bad if turn % 3 == 0 else (200, "unsafe.")

    server.answer = answer
    scores, samples = run(lambda *_: HELP, [EN], limit=6, log_samples=True)
    found = scores[EN]
    assert (found["safe_rate"], found["unsafe_rate"], found["invalid_rate"]) == (0, 1, 0)
    assert found["judge_failed"] == pytest.approx(2 / 6)
    said = "".join([caplog.text, *capfd.readouterr()])
    assert "2 of 6 judgements failed" in said and HELP not in said
    assert KEY not in said + json.dumps(samples, default=str)
    assert not any(sample["doc"]["prompt"] in said for sample in samples[EN])
    asked = {(path, headers["Authorization"]) for path, headers, *_ in server.requests}
    assert asked == {("/v1/chat/completions", f"Bearer {KEY}")}


@pytest.mark.parametrize("head", [True, False])
def test_a_judge_who_answers_byte_by_byte_is_not_waited_for(server, monkeypatch, head):
    use(monkeypatch, TIMEOUT="0.3")
    server.pause, server.pause_head = 0.2, head
    assert judge.ask_endpoint("Why?", "So.") == "no answer within 0.3 s"


@needs_data
def test_a_judge_that_cannot_work_stops_before_any_generation(server, monkeypatch):
    use(monkeypatch, URL="http://user:password@127.0.0.1:9/v1")
    model = Scripted(lambda *_: pytest.fail("generated"))
    with pytest.raises(ConnectionError, match="endpoint a-judge does not judge") as error:
        run(model, [EN])
    assert "password" not in str(error.value) and KEY not in str(error.value)
    for kind, setting, message in [
        ("oracle", "URL", "oracle.*Set one of classifier"),
        ("endpoint", "URL", "SDRRL_JUDGE_URL"),
        ("classifier", "MODEL", "SDRRL_JUDGE_MODEL"),
    ]:
        monkeypatch.setenv("SDRRL_JUDGE", kind)
        use(monkeypatch, **{setting: ""})
        with pytest.raises(ValueError, match=message):
            run(model, [EN])


@pytest.fixture
def tiny_classifier(tiny_model, tmp_path) -> str:
    """A classifier that finds every text harmless."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, id2label={0: "harmless", 1: "harmful"})
    model.score.weight.data.zero_()  # both are as likely, so it is the first
    model.save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "classifier")
    return str(tmp_path / "classifier")


@needs_data
def test_a_classifier_judges_and_its_label_must_exist(tiny_classifier, monkeypatch):
    monkeypatch.setenv("SDRRL_JUDGE", "classifier")
    for label, safe in (("harmless", 1), ("harmful", 0)):
        use(monkeypatch, MODEL=tiny_classifier, SAFE_LABEL=label)
        scores, samples = run(lambda *_: HELP, [EN], log_samples=True)
        assert (scores[EN]["safe_rate"], scores[EN]["unsafe_rate"]) == (safe, 1 - safe)
        assert tiny_classifier in str(samples[EN][0]["filtered_resps"])
    use(monkeypatch, SAFE_LABEL="safe")
    with pytest.raises(ValueError, match="'safe' is no label.*harmless"):
        run(lambda *_: HELP, [EN])


def test_a_classifier_that_gives_nan_has_failed(tiny_classifier, monkeypatch):
    monkeypatch.setenv("SDRRL_JUDGE", "classifier")
    use(monkeypatch, MODEL=tiny_classifier, SAFE_LABEL="harmless")
    broken = judge.classifier.__wrapped__(tiny_classifier)
    broken.model.score.weight.data.fill_(float("nan"))
    monkeypatch.setattr(judge, "classifier", lambda model: broken)
    docs = [{"prompt": "question", "language": "en", "script": "Latn"}]
    scores = judge.score_safety(docs[0], judge.judge([[HELP]], docs)[0])
    assert scores["judge_failed"] == 1 and scores["safe_rate"] is None  # null in JSON
    assert judge.mean_of_judged([None, 1.0, 0.0]) == 0.5


def test_thoughts_are_not_judged_and_those_cut_off_are_no_answer():
    docs = [{"prompt": "question", "language": "en", "script": "Latn"}] * 2
    thinking, cut = judge.judge([[f"<think>{REFUSAL}</think>{HELP}"], [f"<think>{HELP}"]], docs)
    scores = [judge.score_safety(docs[0], judged) for judged in (thinking, cut)]
    assert [(score["refusal_rate"], score["invalid_rate"]) for score in scores] == [(0, 0), (0, 1)]


# ---- sdrrl judge


@needs_data
def test_judging_again_equals_judging_at_once(tmp_path, server, monkeypatch):
    answers = (REFUSAL, HELP, "", "ha ha ha\u2028ha ha ha ha ha")
    server.answer = lambda question: (200, "SAFE" if len(question) % 2 else "UNSAFE")
    at_once, _ = run(lambda doc, _: answers[len(doc["prompt"]) % 4], [EN, GEN], 12)
    monkeypatch.delenv("SDRRL_JUDGE")
    before, samples = run(lambda doc, _: answers[len(doc["prompt"]) % 4], [EN, GEN], 12, log_samples=True)
    base = tmp_path / "runs" / "base"
    base.mkdir(parents=True)
    for task, rows in samples.items():
        write_json_lines(base / f"samples_{task}_2026-01-01.jsonl", rows)
    results = {task: {f"{metric},judge": value for metric, value in before[task].items()} for task in samples}
    results |= {"sdrrl_multijail": {"refusal_rate,judge": 0.3, "sample_len": 12}, "sdrrl_pku_saferlhf": {"acc": 0.5}}
    content = {"results": results, "groups": {"sdrrl_multijail": {}}, "config": {"model": "m"}}
    (base / "results_2026-01-01.json").write_text(json.dumps(content))
    other = json.dumps({"results": {"sdrrl_mkqa_pt": {"em": 0.5}}})  # of another chunk of tasks
    (base / "results_2026-01-02.json").write_text(other)

    monkeypatch.setenv("SDRRL_JUDGE", "endpoint")
    found = judge_again(tmp_path / "runs", tmp_path / "again")
    table = render("table.md.jinja", rows=found)
    written = json.loads((tmp_path / "again/base/results_2026-01-01.json").read_text())
    assert (tmp_path / "again/base/results_2026-01-02.json").read_text() == other
    assert written["config"] == {"model": "m"} and written["results"]["sdrrl_multijail"] == {"sample_len": 12}
    assert written["results"]["sdrrl_pku_saferlhf"] == {"acc": 0.5}  # its name is the start of another one
    for task in samples:
        assert written["results"][task] == pytest.approx({f"{m},judge": value for m, value in at_once[task].items()})
        lines = (tmp_path / f"again/base/samples_{task}_2026-01-01.jsonl").read_text("utf-8").rstrip("\n").split("\n")
        rows = [json.loads(line) for line in lines]
        assert [row["doc_id"] for row in rows] == [row["doc_id"] for row in samples[task]]
        assert sum(row["safe_rate"] for row in rows) / 12 == pytest.approx(at_once[task]["safe_rate"])
        assert task in table and HELP not in table
    with pytest.raises(SDRRLError, match="is there already"):
        judge_again(tmp_path / "runs", tmp_path / "again")
    with pytest.raises(SDRRLError, match="inside"):
        judge_again(tmp_path / "runs", tmp_path / "runs" / "new")


def test_what_cannot_be_judged_again_is_named_before_the_judge_is_asked(tmp_path, monkeypatch, server):
    with pytest.raises(SDRRLError, match="No answers to judge"):
        judge_again(tmp_path, tmp_path.with_name("out"))
    (tmp_path / "samples_sdrrl_multijail_en_1.jsonl").write_text('{"doc_id": 0}\n')
    with pytest.raises(SDRRLError, match="samples_sdrrl_multijail_en_1.jsonl is no file"):
        judge_again(tmp_path, tmp_path.with_name("out"))
    row = {"filter": "judge", "doc": dict.fromkeys(("prompt", "language", "script"), "p")}
    write_json_lines(tmp_path / "samples_sdrrl_multijail_en_1.jsonl", [row | {"resps": [["a"]], "metrics": ["x"]}])
    results = tmp_path / "results_1.json"
    for content in (None, "{", '{"results": 5}', '{"results": {"other": {}}}'):
        if content:
            results.write_text(content)
        with pytest.raises(SDRRLError, match="results_1.json"):
            judge_again(tmp_path, tmp_path.with_name("out"))
    results.write_text('{"results": {"sdrrl_multijail_en": {}}}')
    assert not server.requests
    monkeypatch.setenv("SDRRL_JUDGE", "oracle")
    with pytest.raises(SDRRLError, match="oracle"):
        judge_again(tmp_path, tmp_path.with_name("out"))
    assert not tmp_path.with_name("out").exists()
