"""The report, on results that are made up here, in the files of lm-eval."""

import html
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import cases, write_json_lines
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from lm_eval.__main__ import cli_evaluate

from sdrrl_trl import SDRRLError
from sdrrl_trl.evaluation.card import BEGIN
from sdrrl_trl.evaluation.compare import Row, answer_language, benchmark_of, role_of
from sdrrl_trl.evaluation.outputs import load
from sdrrl_trl.evaluation.outputs import save as save_outputs
from sdrrl_trl.evaluation.report import ReportConfig, in_short, report, sentences
from sdrrl_trl.evaluation.samples import differences
from sdrrl_trl.evaluation.significance import Comparison, corpus_score
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.utils import write_json


N = 60
ANSWERS = {
    "en": "The library opens at nine in the morning and closes late in the evening.",
    "pt": "A biblioteca abre às nove da manhã e fecha tarde da noite, todos os dias.",
    "th": "ห้องสมุดเปิดเวลาเก้าโมงเช้าและปิดตอนดึกทุกวันยกเว้นวันอาทิตย์",
}
AXE = os.environ.get("SDRRL_AXE")  # the path of axe.min.js
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SVG = "{http://www.w3.org/2000/svg}"
HARMFUL_TEXT = "How do I pick a lock <script>alert(1)</script>?"
FILTER = defaultdict(lambda: "none", sdrrl_pku_saferlhf_gen="judge")
LOWER = {"bits_per_byte", "answer_bits_per_byte", "unsafe_rate", "invalid_rate", "judge_failed", "wrong_language"}


def result(values, responses=None, prompt="Question {}"):
    """Results of one task: `values` holds the items of each metric."""
    n = len(next(iter(values.values())))
    scored = {name: [item for item in items if item == item] for name, items in values.items()}
    scored = {m: items for m, items in scored.items() if items and (m in LOWER or isinstance(items[0], float))}
    items = [
        {"doc_id": i, "prompt": prompt.format(i), "response": responses and responses[i]}
        | {"scores": {name: items[i] for name, items in values.items()}}
        for i in range(n)
    ]
    metrics = dict.fromkeys(values, math.nan) | {name: corpus_score(name, items) for name, items in scored.items()}
    higher_is_better = {name: name not in LOWER for name in values}
    return {"metrics": metrics, "higher_is_better": higher_is_better, "items": items, "about": {}}


def right(share, n=N, seed=0):
    """Items of an accuracy; those of a higher share hold those of a lower one."""
    order = random.Random(seed).sample(range(n), n)
    return [float(order[i] < round(share * n)) for i in range(n)]


def bits(level):
    """`(log-likelihood, bytes)` items of so many bits per byte."""
    return [[-(level + 0.01 * (i % 7)) * math.log(2) * (40 + i), 40 + i] for i in range(N)]


def one_model(boost):
    """Results of one model; `boost` is what training does in the target languages."""
    results = {}
    for tag, level in (("en", 0.9), ("pt", 0.4), ("th", 0.3)):
        gain = 0.0 if tag == "en" else boost
        results[f"sdrrl_belebele_gen_{tag}"] = result({"acc": right(level + gain)}, [ANSWERS[tag]] * N)
        safe = [math.nan if i == 3 else 1.0 - (i % 2) for i in range(N)]
        rates = {
            "safe_rate": safe,
            "unsafe_rate": [1 - v for v in safe],
            "judge_failed": [float(v != v) for v in safe],
        }
        results[f"sdrrl_multijail_{tag}"] = result(rates, [ANSWERS[tag]] * N, prompt=HARMFUL_TEXT + " {}")
        results[f"sdrrl_heldout_bpb_{tag}"] = result({"bits_per_byte": bits(1.2 - gain)})
        results[f"sdrrl_heldout_bpb_{tag}"]["about"] = {"metadata": {"answers": "reference"}}
    wrong = [ANSWERS["en"] if i < (N if not boost else N // 4) else ANSWERS["pt"] for i in range(N - 2)]
    results["sdrrl_xlsum_pt"] = result(
        {"rougeL": [0.1 + boost / 2 + 0.001 * (i % 3 + boost * i) for i in range(N)]}, [*wrong, "", "não sei " * 30]
    )
    return results


def save(folder, models, paths=None):
    """Writes results as lm-eval does; returns what `sdrrl report` is to compare."""
    for name, tasks in models.items():
        about = {t: {"version": 1.0, "shots": 0, "n": len(one["items"])} | one["about"] for t, one in tasks.items()}
        content = {
            "results": {t: {f"{m},{FILTER[t]}": v for m, v in one["metrics"].items()} for t, one in tasks.items()},
            "configs": {task: {"task": task, "metadata": about[task].get("metadata")} for task in tasks},
            "versions": {task: about[task]["version"] for task in tasks},
            "n-shot": {task: about[task]["shots"] for task in tasks},
            "n-samples": {task: {"original": N, "effective": about[task]["n"]} for task in tasks},
            "higher_is_better": {task: one["higher_is_better"] for task, one in tasks.items()},
            "samples": {task: [sample(task, item) for item in one["items"]] for task, one in tasks.items()},
            "lm_eval_version": "0.4.13",
        }
        for task in tasks:
            content["results"][task] |= {"alias": task, "acc_stderr,none": "N/A"}
        template = next((one["template"] for one in about.values() if "template" in one), "a template")
        about = {"model_source": "hf", "model_args": {"pretrained": (paths or {}).get(name, f"/models/{name}")}}
        about |= {"system_instruction": None, "chat_template": template, "fewshot_as_multiturn": False}
        save_outputs(folder / name, content, about)
    return [f"{name}={folder / name}" for name in models]


def sample(task, item):
    response = item["response"] if item["response"] is not None else ["-1.5", "False"]
    hashes = {"doc_hash": f"{task}-{item['doc_id']}", "prompt_hash": f"{task}-{item['prompt']}", "target_hash": ""}
    about = {"doc_id": item["doc_id"], "doc": {}, "filter": FILTER[task], "target": "B", "resps": [[response]]}
    about |= {"arguments": [(item["prompt"], "x")], "filtered_resps": [response]}
    return about | hashes | item["scores"] | item.get("more", {})


def run(tmp_path, models, paths=None, **options):
    names = save(tmp_path / "evaluation", models, paths)
    path = report(ReportConfig(names, str(tmp_path / "report"), **options))
    return json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail), path


@pytest.fixture
def models():
    return {"base": one_model(0.0), "tuned": one_model(0.35)}


def small(task="sdrrl_belebele_gen_pt", **values):
    return {task: result(values or {"acc": right(0.5)})}


@pytest.mark.parametrize("higher, delta, p, n, verdict", cases("verdicts"))
def test_the_verdict_follows_the_adjusted_p_direction_and_number_of_items(higher, delta, p, n, verdict):
    comparison = Comparison(0.5, 0.5 + delta, delta, delta - 0.1, delta + 0.1, n, 0.0001, "bootstrap")
    assert Row("tuned", "task", "acc", "pt", "target", higher, comparison, p).verdict == verdict


@pytest.mark.parametrize("task, metric, language, benchmark, of_answers, role", cases("roles"))
def test_benchmark_language_of_the_answers_and_role_of_a_row(task, metric, language, benchmark, of_answers, role):
    assert benchmark_of(task, language) == benchmark and answer_language(task, language) == of_answers
    assert role_of(task, metric, language, "en", {}) == role


def test_a_gain_in_the_source_language_is_told(tmp_path):
    changed, kept = "sdrrl_belebele_gen_en", "sdrrl_mmmlu_gen_en"
    base = small(changed, acc=right(0.4)) | small(kept, acc=right(0.5))
    tuned = small(changed, acc=right(0.9)) | small(kept, acc=right(0.5))
    _, path = run(tmp_path / "both", {"base": base, "tuned": tuned})
    said = "the source language, shows no evidence of loss on 2 measures"
    assert f"{said}, and got better on 1 of them; " in path.read_text()
    assert f"{said} and is better on 1 of them" in path.with_suffix(".html").read_text()
    _, path = run(tmp_path / "one", {"base": small(changed, acc=right(0.4)), "tuned": small(changed, acc=right(0.9))})
    assert "the source language, got better on 1 of 1 measure; no 95 %" in path.read_text()
    assert "the source language, is better on 1 of 1 measure" in path.with_suffix(".html").read_text()


def test_every_comparison_is_there_with_p_adjusted_for_all_and_a_summary(models, tmp_path):
    content, path = run(tmp_path, models)
    assert len(content["rows"]) == 3 * 5 + 1
    text = path.read_text()
    for row in content["rows"]:
        c = row["comparison"]
        assert c["low"] <= c["delta"] <= c["high"] and row["p_holm"] >= c["p"]
        assert f"| {c['base']:.3f} | {c['tuned']:.3f} | {c['delta']:+.3f}" in text
    verdicts = {(row["task"], row["metric"]): row["verdict"] for row in content["rows"]}
    assert verdicts["sdrrl_belebele_gen_pt", "acc"] == verdicts["sdrrl_heldout_bpb_th", "bits_per_byte"] == "better"
    assert verdicts["sdrrl_belebele_gen_en", "acc"] == "no evidence of change"
    assert "Portuguese" in text and "lock" not in text and "| < 0.001 |" in text and "| 0.000 | better" not in text
    assert re.search(r"version:1\.0\|shots:0\|n:60\|chat_template:\w{8}\|lm_eval:0\.4\.13\|seed:1234", text)
    assert 3 <= len(content["summary"]["tuned"]) <= 6 and all(said in text for said in content["summary"]["tuned"])
    assert "gained on 5 of 5 measures; 0 got worse" in text and "in a wrong language" in text
    assert "English, the source language, shows no evidence of loss on 2 measures" in text
    assert "Safety: 0 of 6 measures better, 0 worse" in text
    summary, _, rows = in_short(path).partition("\n\n")
    assert "gained on 5 of 5 measures" in summary and rows.count(" n=60 ") == 10
    assert "6 more comparisons; 0 not compared" in rows and f"Report: {path}" in rows


def test_drift_is_zero_for_the_base_a_loss_if_it_rises_and_never_a_gain(tmp_path):
    def drift_to(level, answers="own, temperature 1, top_p 1"):
        task = {"sdrrl_heldout_bpb_en": result({"answer_bits_per_byte": bits(level)})}
        task["sdrrl_heldout_bpb_en"]["about"]["metadata"] = {"answers": answers}
        return task

    for name, level, verdict, said in (
        ("up", 1.4, "drifted", "The model drifted from the base model: 0.2"),
        (
            "down",
            1.0,
            "no drift measured",
            "No significant drift from the base model was measured, after Holm's correction: -0.2",
        ),
    ):
        content, path = run(tmp_path / name, {"base": drift_to(1.2), "tuned": drift_to(level)})
        (row,) = content["rows"]
        c = row["comparison"]
        assert (row["role"], row["verdict"], c["base"], c["tuned"]) == ("drift", verdict, 0, c["delta"])
        assert c["delta"] == pytest.approx(level - 1.2) and row["p_holm"] < 0.05
        for file in ("report.md", "report.html", "README.md"):
            assert said in html.unescape((path.parent / file).read_text())
        (entry,) = metadata_load(path.parent / "README.md")["model-index"][0]["results"]
        assert entry["metrics"][0]["type"] == "drift" and entry["metrics"][0]["value"] == pytest.approx(c["tuned"])
    for own, role, verdict in (
        ("own, temperature 0, top_p 1", "agreement", "no verdict"),
        ("reference, temperature 1, top_p 1", "source", "worse"),
    ):
        content, path = run(tmp_path / role, {"base": drift_to(1.2, own), "tuned": drift_to(1.4, own)})
        assert (content["rows"][0]["role"], content["rows"][0]["verdict"]) == (role, verdict)
        assert ("Drift from the base model cannot be estimated" in path.read_text()) == (role == "agreement")


def test_strengths_of_one_model_are_a_table_of_gain_and_loss(models, tmp_path):
    models = {"base": one_model(0.0), "half": one_model(0.2), "all": one_model(0.35), "other": one_model(0.1)}
    paths = {"half": "out/model/@0.5", "all": "./out/model", "other": "out/other@0.5"}
    content, path = run(tmp_path, models, paths)
    half, whole = content["trade_off"]
    assert [list(row.values())[:3] for row in (half, whole)] == [["model", 0.5, "half"], ["model", 1.0, "all"]]
    assert 0 < half["target"] < whole["target"] and half["source"] == whole["source"] == 0 and half["drift"] is None
    assert "## Gain and loss by strength" in path.read_text()
    # What could not be compared at one strength counts at none
    models["all"]["sdrrl_belebele_gen_th"]["items"][0]["scores"]["acc"] = None
    content, _ = run(tmp_path / "1", models, paths)
    assert len(content["not_compared"]) == 1 and content["trade_off"][0]["target"] < half["target"]


def test_of_too_few_items_the_page_has_no_verdict(tmp_path):
    models = {name: small(acc=right(share, n=10)) for name, share in (("base", 0.2), ("tuned", 0.9))}
    page = run(tmp_path, models)[1].with_suffix(".html").read_text()
    assert "No verdict in Portuguese: fewer than 20 items in 1 measure;" in page and "Better on" not in page


def test_tasks_without_a_language_are_not_counted_as_target_languages(tmp_path):
    models = {name: small() | small("hellaswag", acc=right(share)) for name, share in (("base", 0.9), ("tuned", 0.2))}
    path = run(tmp_path, models)[1]
    text, page = path.read_text(), path.with_suffix(".html").read_text()
    assert "in Portuguese; loss in English was not measured; worse on 1 of 1 measure whose language" in page
    assert "Target languages gained on 0 of 1 measure; 0 got worse" in text
    assert "Tasks whose language is not known gained on 0 of 1 measure; 1 got worse" in text


@pytest.fixture
def manifest(monkeypatch):
    """That of any transfer set."""
    parts = ("train", "test", "rejected", "translated", "left_out", "benchmarks")
    options = dict.fromkeys(("temperature", "top_p", "max_new_tokens", "seed"), 1) | {"answer_source": "own"}
    content = {
        "options": options | {"source_language": "pt", "target_languages": ["en"], "model_name_or_path": "/x/base"},
        "engines": {"translator": {"engine": "a translator"}},
        "licences": {"seeds": "cc-by-nc-4.0"},
        "counts": {"seeds": 24} | {part: {} for part in parts},
        "sha256": {},
    }
    monkeypatch.setattr("sdrrl_trl.evaluation.report.load_manifest", lambda folder: content)
    return content


def test_the_source_language_is_that_of_the_transfer_set(models, tmp_path, manifest):
    content, path = run(tmp_path, models, transfer_set="set")
    assert "Portuguese, the source language, got better on 3 of 3 measures" in " ".join(content["summary"]["tuned"])
    card = (path.parent / "README.md").read_text()
    assert "24 questions; rejected: 0" in card and "Made of answers of `base`, translated" in card
    assert "parts are non-commercial**: `seeds (cc-by-nc-4.0)`" in card
    assert metadata_load(path.parent / "README.md")["language"] == ["pt", "en"]


def test_a_model_that_answers_nothing_is_no_success(models, tmp_path):
    def answer(text, *tasks):
        for item in (item for task in tasks for item in models["tuned"][task]["items"]):
            item["response"] = text
        content, path = run(tmp_path / tasks[-1], models)
        return path.with_suffix(".html").read_text(), content, " ".join(content["summary"]["tuned"])

    page, content, sentences = answer(" ", "sdrrl_belebele_gen_th", "sdrrl_multijail_th")
    rates = {(rate["language"], rate["model"]): rate for rate in content["answers"]}
    assert rates["th", "tuned"]["wrong_language"] is None and rates["th", "base"]["wrong_language"] == 0
    assert "Of the answers in 1 target language, 8.4 % are in a wrong language, 32.4 % before." in sentences
    assert "More answers are empty in Thai (100.0 %, 0.0 % before)." in sentences and "repetitive" not in sentences
    assert "; more empty answers in Thai" in re.search('<p class="verdict">(.*?)</p>', page)[1]
    _, _, sentences = answer("não sei " * 30, "sdrrl_xlsum_pt")
    assert "More answers are repetitive in Portuguese (33.3 %, 0.6 % before)." in sentences
    _, _, sentences = answer("", "sdrrl_belebele_gen_pt", "sdrrl_multijail_pt", "sdrrl_xlsum_pt")
    assert "empty in Portuguese (100.0 %, 0.6 % before), Thai" in sentences and "0.0 % are" not in sentences
    assert "What the models write in the target languages was not measured" in sentences


@pytest.mark.parametrize("closed, said", [(18.26, "more than all"), (0.7, "70 %"), (-3.0, "none")])
def test_a_gap_is_closed_by_nothing_a_share_or_all(closed, said):
    content = {
        "gaps": [{"model": "tuned", "closed": closed}],
        "answers": [],
        "base": "base",
        "rows": [],
        "rises": {"tuned": {}},
    }
    text = " ".join(sentences([], content | {"source_language": "en"}, "tuned"))
    assert f"Training closed {said} of the base model's gap to English" in text


@pytest.mark.parametrize(
    "source, base, tuned, expected",
    [
        (right(0.52, seed=5), right(0.5), right(0.7), (None, None, None, "no gap")),  # which may be none
        # The four right answers are missing from 1 of 100 resamples: there 0 of a gap of 0 is closed
        ([1.0] * 4 + [0.0] * 16, [0.0] * 20, [0.0] * 20, (0, 0, 0, None)),
    ],
)
def test_a_gap_that_may_be_none_is_not_closed(tmp_path, source, base, tuned, expected):
    source = small("sdrrl_belebele_gen_en", acc=source)
    (gap,) = run(tmp_path, {"base": small(acc=base) | source, "tuned": small(acc=tuned) | source})[0]["gaps"]
    assert (gap["closed"], gap["low"], gap["high"], gap["note"]) == expected


def test_a_loss_in_the_source_language_is_named_with_its_bound(models, tmp_path):
    models["tuned"]["sdrrl_belebele_gen_en"] = result({"acc": right(0.5)}, [ANSWERS["en"]] * N)
    content, path = run(tmp_path, models)
    (row,) = [row for row in content["rows"] if row["role"] == "source" and row["metric"] == "acc"]
    assert in_short(path).partition("\n\n")[2].startswith("worse  ")  # losses first
    assert row["verdict"] == "worse" and row["worst_loss"] == pytest.approx(-row["comparison"]["low"] / 0.9)
    loss = f"{100 * row['worst_loss']:.1f} % of the base score (belebele_gen_en: acc)"
    assert f"the 95 % intervals reach a loss of {loss}" in path.read_text()


def test_pairs_that_the_judge_failed_on_are_left_out_and_counted(models, tmp_path):
    content, _ = run(tmp_path, models)
    counted = {row["metric"]: row["comparison"] for row in content["rows"] if row["task"] == "sdrrl_multijail_pt"}
    assert counted["safe_rate"]["n"] == N - 1 and counted["safe_rate"]["base"] == pytest.approx(30 / 59)
    assert counted["judge_failed"]["n"] == N and counted["judge_failed"]["base"] == pytest.approx(1 / 60)
    for file in tmp_path.glob("evaluation/*/*"):  # what is not judged is NaN, which JSON has not
        for text in [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines():
            json.loads(text, parse_constant=pytest.fail)


def test_refusals_are_called_refusals_and_never_safe(tmp_path):
    rates = {"base": right(0.9), "tuned": right(0.2)}
    models = {n: small("sdrrl_multijail_pt", refusal_rate=r, invalid_rate=right(0.1)) for n, r in rates.items()}
    content, path = run(tmp_path, models)
    assert "refused 90.0 % before, 20.0 % now; invalid 10.0 % before" in " ".join(content["summary"]["tuned"])
    assert "multijail_pt: refusal rate ↑" in path.read_text() and "safe rate" not in path.read_text()


def test_rates_of_different_judges_are_not_compared(tmp_path):
    models = {judge: small("sdrrl_pku_saferlhf_gen", safe_rate=right(0.5)) for judge in ("guard-8b", "guard-1b")}
    for judge, tasks in models.items():  # as the filter of the task writes it
        for item in tasks["sdrrl_pku_saferlhf_gen"]["items"]:
            item["more"] = {"filtered_resps": [json.dumps({"answer": "x", "label": "SAFE", "judge": judge})]}
    with pytest.raises(SDRRLError, match="sdrrl_pku_saferlhf_gen.*differ in: judge"):
        run(tmp_path, models)


@pytest.mark.parametrize("part, change, named", cases("differing_runs"))
def test_runs_that_differ_or_are_incomplete_are_refused_with_task_and_field(tmp_path, part, change, named):
    models = {"base": small(), "tuned": small()}
    tuned = models["tuned"]["sdrrl_belebele_gen_pt"]
    changed = {"task": tuned, "about": tuned["about"], "item": tuned["items"][3]}[part]
    changed.update(change)
    with pytest.raises(SDRRLError, match=f"sdrrl_belebele_gen_pt.*{named}"):
        run(tmp_path, models)


def test_runs_of_another_number_of_items_are_refused(tmp_path):
    with pytest.raises(SDRRLError, match="sdrrl_belebele_gen_pt.*differ in: n, doc_id, doc_hash, prompt_hash"):
        run(tmp_path, {"base": small(), "tuned": small(acc=right(0.5, N - 1))})


def test_results_that_are_missing_damaged_or_of_several_models_are_named(models, tmp_path):
    names = save(tmp_path, models)
    tuned = tmp_path / "tuned"
    lost = next(tuned.glob("samples_sdrrl_xlsum_pt_*"))
    lost.unlink()
    with pytest.raises(SDRRLError, match="samples_sdrrl_xlsum_pt.* is missing.*--log_samples"):
        report(ReportConfig(names, str(tmp_path / "r")))
    with pytest.raises(SDRRLError, match="There are no results in .*nothing"):
        report(ReportConfig(["base=nothing", "tuned=nothing"], str(tmp_path / "r")))
    with pytest.raises(SDRRLError, match="results of several models"):
        load(tmp_path)
    file = next(tuned.glob("results_*"))
    content = json.loads(file.read_text())
    content["configs"]["../x"] = content["n-samples"]["../x"] = {"effective": 1}
    file.write_text(json.dumps(content))
    with pytest.raises(SDRRLError, match="'../x' is not the name of a task"):
        load(tuned)
    for key in ("n-samples", "results", "versions", "higher_is_better"):
        file.write_text(json.dumps(content | {"configs": {"sdrrl_belebele_gen_pt": {}}, key: [5]}))
        with pytest.raises(SDRRLError, match="is damaged"):
            load(tuned)
    del models["tuned"]["sdrrl_xlsum_pt"]
    with pytest.raises(SDRRLError, match="Not both base and tuned have results of sdrrl_xlsum_pt"):
        run(tmp_path / "2", models)
    assert not (tmp_path / "r").exists()


def test_the_newest_result_of_a_task_counts(tmp_path):
    for share in (0.2, 0.9):
        save(tmp_path, {"tuned": small(acc=right(share))})
    assert load(tmp_path / "tuned").tasks["sdrrl_belebele_gen_pt"].metrics == {"acc": pytest.approx(0.9)}


def test_single_items_are_not_compared_and_lone_models_are_refused(tmp_path):
    content, _ = run(tmp_path, dict.fromkeys(("base", "tuned"), small(acc=[1.0])))
    assert content["rows"] == [] and "a single item" in content["not_compared"][0]["because"]
    lone, form = "nothing to compare", "not of the form `name=folder`"
    for names, named in ((["a=e"], lone), (["a=e", "a=f"], lone), (["a=e", "../up=e"], form), (["a=e", "=e"], form)):
        with pytest.raises(SDRRLError, match=named):
            ReportConfig(names, "r")


@pytest.mark.parametrize("given", [{"pretrained": "/models/tuned", "peft": "a"}, "pretrained=/models/tuned,peft=a"])
def test_the_initial_model_in_the_place_of_its_adapter_is_an_error_and_not_a_loss(models, tmp_path, given):
    names = save(tmp_path, models)
    (file,) = (tmp_path / "base").glob("results_*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": {"model_args": given}}))
    with pytest.raises(
        SDRRLError, match="'tuned' is the model that 'base' is an adapter of.* base=.*/tuned tuned=.*/base"
    ):
        report(ReportConfig(names, str(tmp_path / "report")))
    report(ReportConfig(names[::-1], str(tmp_path / "report")))


@pytest.mark.parametrize(
    "items, why",
    [
        ([[True] * (1 + i % 3) for i in range(N)], "items are not numbers"),
        (["yes"] * N, "items are not numbers"),
        (["Infinity"] * N, "items are infinite"),  # which lm-eval writes without quotes
        ([None] + [1.0] * (N - 1), "1 of 60 items have no"),
        ([0.9] * N, "the task's score is not the mean of its items' scores"),
    ],
)
def test_a_metric_that_cannot_be_compared_by_item_leaves_the_rest_of_the_report(tmp_path, items, why):
    models = {name: small(acc=right(share), odd=items) for name, share in (("base", 0.3), ("tuned", 0.9))}
    for results in models.values():
        results["sdrrl_belebele_gen_pt"]["metrics"]["odd"] = 0.5
    names = save(tmp_path, models)
    for file in tmp_path.glob("*/samples_*"):
        file.write_text(file.read_text().replace('"Infinity"', "Infinity"))
    path = report(ReportConfig(names, str(tmp_path / "report")))
    content = json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    assert [(row["metric"], row["verdict"]) for row in content["rows"]] == [("acc", "better")]
    (odd,) = content["not_compared"]
    assert (odd["metric"], odd["base"], odd["tuned"]) == ("odd", 0.5, 0.5) and why in odd["because"]
    assert odd["because"] in path.read_text()


def test_the_page_is_one_file_with_every_number_and_escapes_all_text(models, tmp_path):
    for tasks in models.values():
        tasks["task"] = result({"<img src=x>": right(0.5), "<img src=y>": [math.nan] * N}, ["a"] * N)
        tasks["task"]["items"][0]["prompt"] = [{"role": "user", "content": "Where?"}]  # as for a chat server
    content, path = run(tmp_path, models, {"tuned": "<img src=x onerror=alert(1)>"})
    page = path.with_suffix(".html").read_text()
    for row in content["rows"]:
        for value in (*list(row["comparison"].values())[:3], row["comparison"]["p"], row["p_holm"]):
            assert f'data-value="{value}"' in page
    escaped = HARMFUL_TEXT.replace("<", "&lt;").replace(">", "&gt;")
    assert "<script>alert" not in page and "<img" not in page and escaped in page
    assert page.count("<script") == 1
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page  # a browser asks nobody
    assert "Where?" in page and "&lt;img src=x&gt;" in page and "&lt;img src=y" in page
    page = re.sub("&lt;img src=[xy]", "", page)  # names of the model and of metrics
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']?(.)""", page)) <= {"#"}
    assert page.index("harmful content") < page.index(escaped)
    shown = page.partition("<summary>sdrrl_xlsum_pt")[2].partition("</details>")[0]
    assert "Question 15<" in shown and "Question 0<" not in shown  # whose answer has not changed


def test_the_page_begins_with_models_date_languages_and_verdict(models, tmp_path):
    models["tuned"]["sdrrl_belebele_gen_en"] = result({"acc": right(0.5)}, [ANSWERS["en"]] * N)
    page = run(tmp_path, models)[1].with_suffix(".html").read_text()
    verdict = "Better on 5 and worse on 0 of 5 measures in Portuguese and Thai; English, the source language, is worse"
    assert f"<title>base: tuned against base: {verdict} on 1 of 2 measures.</title>" in page
    head = page.partition("<header>")[2].partition("</header>")[0]
    assert "/models" not in page  # folders of this computer
    for said in (verdict, "<code>tuned</code>", "English (source), Portuguese, Thai", f'datetime="{date.today()}"'):
        assert said in head
    assert all(f'id="{link}"' in page for link in re.findall('href="#(.+?)"', head))
    assert '<form class="filter" aria-label="Filter" hidden>' in page  # only a script, which it needs, shows it


def test_samples_are_by_language_and_mark_the_words_that_differ(models, tmp_path):
    for name, word in (("base", "a <b>"), ("tuned", "the")):
        models[name]["sdrrl_belebele_gen_pt"]["items"][7]["response"] = f"In {word} library, of all it was"
    page = run(tmp_path, models)[1].with_suffix(".html").read_text()
    assert re.findall("<h3>(.+?)</h3>", page) == ["English (source)", "Portuguese", "Thai"]
    assert '<dd lang="th" dir="auto">ห้องสมุด' in page
    # An answer in another language is not said to be in Portuguese
    for marked in ("<del>a &lt;b&gt;</del>", "<ins>the</ins>"):
        assert f'wrong language</dt><dd lang="" dir="auto">In {marked} library, of all it was</dd>' in page
    assert differences("ห้องสมุดเปิดเช้า", "ห้องสมุดปิดเช้า") == [("ห้องสมุด", False), ("เ", True), ("ปิดเช้า", False)]
    assert differences("a b c", "") == [("a b c", True)] and differences("", "a") == []


def test_a_page_of_10_languages_and_9_benchmarks_opens_on_a_phone(tmp_path):
    tags = list(LANGUAGES)[:10]
    text = ANSWERS["th"] * 100
    tasks = {f"b{i}_{tag}": result({"acc": right(0.5, 4)}, [text] * 4, text) for tag in tags for i in range(9)}
    _, path = run(tmp_path, {"base": tasks, "tuned": tasks})
    page = path.with_suffix(".html").read_text()
    assert len(page.encode()) < 1_500_000 and page.count('<dl class="item">') >= 90


def opened(path, script, *flags):
    """The page of a report as a browser shows it after a script."""
    page, profile = path.with_name("opened.html"), path.with_name("chromium")
    page.write_text(path.with_suffix(".html").read_text() + f"<script>{script}</script>")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom", *flags]
    command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_sorts_the_page_by_a_column_and_filters_it(models, tmp_path):
    content, path = run(tmp_path, models)
    script = "document.querySelector('th[scope=col]:nth-child(6) button').click();"
    dom = opened(path, script + "form.language.value = 'th'; form.verdict.value = 'better'; form.oninput()")
    lines = dom.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr ")[1:]
    bases = [float(line.split('data-value="')[3].partition('"')[0]) for line in lines]
    assert bases == sorted(row["comparison"]["base"] for row in content["rows"])
    shown = [line for line in lines if "hidden" not in line.partition(">")[0]]
    assert len(shown) == 2 and all("Thai" in line and ">better<" in line for line in shown)
    plots, texts = (re.findall(f"<{kind} .*?>", dom) for kind in ('svg class="group"', "section"))
    assert [one for one in plots if "hidden" not in one] == [one for one in plots if "Thai, tuned" in one][:2] != []
    assert ["Thai" in one for one in texts if "hidden" not in one] == [True]


@pytest.mark.skipif(CHROMIUM is None or AXE is None, reason="no Chromium, or no axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_axe_finds_nothing_on_the_page(models, tmp_path, mode):
    _, path = run(tmp_path, models)
    page = path.with_suffix(".html")
    page.write_text(page.read_text().replace("(prefers-color-scheme: dark)", "all" if mode == "dark" else "not all"))
    script = "document.querySelectorAll('details').forEach((one) => one.open = true);" + Path(AXE).read_text()
    script += ";axe.run().then((all) => document.title = `${all.passes.length} ${all.violations.map((v) => v.id)}`)"
    dom = opened(path, script, "--virtual-time-budget=60000")
    assert re.search(r"<title>[3-9]\d (.*?)</title>", dom)[1] == ""


def test_the_plot_shows_every_model_beside_its_language_the_source_language_first(tmp_path):
    models = {f"m{i}": one_model(0.1 * i) | {"quiz": result({"a<b&c": right(0.5)})} for i in range(9)}
    _, path = run(tmp_path, models)
    plot = ElementTree.parse(path.with_suffix(".svg")).find(f"{SVG}svg")
    titles = ["belebele_gen: acc ↑", "held-out answers: bits per byte ↓", "multijail: unsafe rate ↓"]
    assert [one.text for one in plot.findall(f"{SVG}text")] == [*titles, "xlsum: rougeL ↑", "quiz: a<b&c ↑"]
    groups = plot.findall(f"{SVG}svg[@role='img']")
    names = [[one.text for one in group.findall(f"{SVG}text")] for group in groups]
    languages = ["English (source)", "Portuguese", "Thai"]
    assert names == [[name, *list(models)[1:]] for name in [*languages * 3, "Portuguese", "–"]]
    for group, below in itertools.pairwise(groups[:6]):
        assert int(group.get("y")) + int(group.get("height")) <= int(below.get("y"))
        marks = sorted((int(one.get("y")), float(one.get("x").rstrip("%"))) for one in group.iter(f"{SVG}rect"))
        assert {line.get("x1") for line in group.findall(f"{SVG}line[@class='base']")} == {
            group.find(f"{SVG}g/{SVG}line").get("x1")  # every line begins at no change
        }
        beside = [x for _, x in marks]
        assert len(beside) == 8 and beside == sorted(beside) and 40 <= beside[0]  # better to the right
        assert len(group.findall(f".//{SVG}g[@class='whisker']")) == 8
    looks = [[one.get("class") for one in group.findall(f"{SVG}g")] for group in groups]
    assert set(looks[0]) == {"unsure"} and looks[2][-4:] == ["better"] * 4  # English did not change, Thai did
    assert "Thai, m8: 0.300 to 1.000" in groups[2].get("aria-label")
    page = path.with_suffix(".html").read_text()
    assert page.count('role="img"') == len(groups) and page.count("<figcaption") == 5
    assert (path.parent / "README_m3.md").exists()  # a card for each


@pytest.fixture
def model_folder(tmp_path):
    """A model that was trained here, whose card the trainer wrote."""
    folder = tmp_path / "model"
    (folder / "checkpoint-5").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "training_args.bin", "checkpoint-5/optimizer.pt"):
        (folder / name).write_text("")
    (folder / "README.md").write_text("---\nmodel_name: mine\ntags: [sdrrl]\n---\n# Mine\n\nThe trainer's text.\n")
    return folder


def test_a_transfer_set_that_is_not_that_of_the_models_is_told(models, model_folder, manifest, tmp_path, capsys):
    manifest["sha256"] = {"train.parquet": "one"}
    for output in models.values():
        output["sdrrl_heldout_bpb_en"]["about"] = {"metadata": {"answers": "own, temperature 1, top_p 1"}}
    paths = {"tuned": str(model_folder), "base": "org/asked"}
    manifest["options"] |= {"source_language": "en", "target_languages": ["pt", "th"]}
    for answered, role in (("org/asked", "drift"), ("org/other", "source")):
        manifest["inputs"] = {"model": answered}
        manifest["options"]["model_name_or_path"] = answered
        content, _ = run(tmp_path, models, paths, transfer_set="set")
        assert [row["role"] for row in content["rows"] if row["task"] == "sdrrl_heldout_bpb_en"] == [role]
        assert ("holds answers of another model, org/other" in capsys.readouterr().err) == (role == "source")
    for trained_on in ("one", "two"):
        write_json(model_folder / "options.json", {"stage": "train", "options": {"transfer_set": trained_on}})
        run(tmp_path, models, paths, transfer_set="set")
        assert ("was trained on another transfer set" in capsys.readouterr().err) == (trained_on == "two")
        card = (tmp_path / "report" / "README.md").read_text()
        assert ("24 questions; rejected: 0" in card) == (trained_on == "one")


def test_the_model_card_keeps_the_trainers_text_and_holds_valid_metadata(models, model_folder, tmp_path):
    before = (model_folder / "README.md").read_text()
    _, path = run(tmp_path, models, {"tuned": str(model_folder)})
    card = path.parent / "README.md"
    assert (model_folder / "README.md").read_text() == before  # nothing outside the report's folder is written
    text = card.read_text()
    assert text.count(BEGIN) == 1 and "The trainer's text." in text and "lock" not in text
    metadata = metadata_load(card)
    assert metadata["tags"] == ["sdrrl"]
    name, found = model_index_to_eval_results(metadata["model-index"])
    assert name == "mine" and len(found) == 16
    scores = {(entry.dataset_name, entry.metric_type): entry.metric_value for entry in found}
    assert scores["sdrrl_belebele_gen_pt", "acc"] == 0.75 and len(scores) == 16
    assert ModelCard(text).data.eval_results == found
    # The results of an earlier report are replaced
    (model_folder / "README.md").write_text(text)
    run(tmp_path, models, {"tuned": str(model_folder)})
    assert card.read_text() == text


def test_a_score_of_too_few_items_is_not_published_as_metadata(tmp_path):
    scores = {"belebele_gen_pt": right(0.5, n=10), "belebele_gen_th": right(0.5, n=30)}
    outputs = {name: result({"acc": values}) for name, values in scores.items()}
    _, path = run(tmp_path, {"base": outputs, "tuned": outputs})
    (entry,) = metadata_load(path.parent / "README.md")["model-index"][0]["results"]
    assert entry["dataset"]["name"] == "belebele_gen_th" and entry["dataset"]["args"] == {"items": 30}


@pytest.mark.parametrize("tags, licence, name", [("sdrrl", "other", "non-commercial-parts"), ("mine", "mit", None)])
def test_a_licence_that_a_card_of_ours_took_from_the_base_gives_way_to_non_commercial_parts(
    models, model_folder, manifest, tmp_path, tags, licence, name
):
    front = f"license: mit\nlicense_link: https://example.com\ntags: [{tags}]"
    (model_folder / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    manifest["options"]["answer_source"] = "reference"
    _, path = run(tmp_path, models, {"tuned": str(model_folder)}, transfer_set="set")
    about = metadata_load(path.parent / "README.md")
    assert (about["license"], about.get("license_name"), "license_link" in about) == (licence, name, name is None)
    assert "Made of reference answers, translated by a translator" in (path.parent / "README.md").read_text()


def test_a_card_keeps_the_results_and_metadata_of_others_as_they_were_written(models, model_folder, tmp_path):
    index = "model-index:\n- name: mine\n  results:\n  - task: {type: t}\n"
    index += "    dataset: {name: sum, type: x, config: 'no'}\n"
    index += "    metrics: [{type: acc, value: 1}]\n- name: other\n  results: []\n"
    others = ["# of ours", "language: no", "version: 1.10", "released: 2026-01-01", "extra:", "- {inference: false}"]
    front = "\n".join(others[:3]) + f"\n{index}" + "\n".join(others[3:])
    (model_folder / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    _, path = run(tmp_path, models, {"tuned": str(model_folder)})
    card = path.parent / "README.md"
    assert set(others) < set(card.read_text().splitlines())
    mine, other = metadata_load(card)["model-index"]
    assert (mine["name"], other) == ("mine", {"name": "other", "results": []})
    assert mine["results"][0]["dataset"] == {"name": "sum", "type": "x", "config": "no"} and len(mine["results"]) == 17


def test_names_of_others_stay_in_their_place(models, tmp_path):
    bad = "x`\n\n# Taken over\n\x1b[2J"
    for tasks in models.values():
        tasks |= small("quiz", **{bad: right(0.5)})
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    _, path = run(tmp_path, models, {"tuned": f"../../escape{bad}", "base": bad})
    written = {file for file in tmp_path.rglob("*") if file.is_file()} - before
    ours = {path.parent / name for name in ("report.md", "report.json", "report.html", "report.svg", "README.md")}
    assert {file for file in written if file.parent.name not in models} == ours
    assert "\x1b" not in in_short(path)
    for file in (path, path.parent / "README.md"):
        text = file.read_text()
        assert "x' # Taken over" in text and "\n# Taken over" not in text and "\x1b" not in text


@pytest.mark.parametrize("metadata", ["tags: [sdrrl", "- a\n- b", "license: \tmit: x"])
def test_a_card_with_broken_metadata_is_named_before_anything_is_written(models, model_folder, tmp_path, metadata):
    card = model_folder / "README.md"
    card.write_text(f"---\n{metadata}\n---\n# Mine\n")
    with pytest.raises(SDRRLError, match=f"top of {card} cannot be read, so.*Correct the lines") as error:
        run(tmp_path, models, {"tuned": str(model_folder)})
    assert "losing it" in str(error.value) and not (tmp_path / "report").exists()


@pytest.mark.parametrize("base, kept", [("org/base", True), ("{folder}", False), ("/models/base", False)])
def test_a_card_names_the_base_model_only_by_its_id_on_the_hub(models, model_folder, tmp_path, base, kept):
    base = base.format(folder=tmp_path)
    tags = f"[lora, 'base_model:adapter:{base}']"
    front = f"base_model: {base}\nlicence: license\ntags: {tags}"  # as TRL and PEFT write it, with this text
    text = '[None](https://huggingface.co/None)\n\npipeline(model="None")'
    (model_folder / "README.md").write_text(f"---\n{front}\n---\n# Mine\n{text}\n")
    _, path = run(tmp_path, models, {"tuned": str(model_folder)})
    card = (path.parent / "README.md").read_text()
    assert "None" not in card and str(tmp_path) not in card and 'pipeline(model="model")' in card
    metadata = metadata_load(path.parent / "README.md")
    assert (metadata["license"], metadata["license_name"]) == ("other", "that-of-the-base-model")
    assert "licence" not in metadata
    assert metadata.get("base_model") == (base if kept else None)
    assert metadata["tags"] == ["lora"] + kept * [f"base_model:adapter:{base}"]


def test_two_folders_of_plain_lm_eval_are_compared(tiny_model, tmp_path, monkeypatch):
    """`lm_eval` itself, as a user would run it, on tasks of others and a group."""
    (tmp_path / "tasks").mkdir()
    choice = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes"]}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    generation = {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}}
    tasks = {"quiz_en": choice, "quiz_pt": choice, "say_pt": generation | {"metric_list": metrics}}
    for name, task in tasks.items():
        rows = [{"q": f"Is {i} {name}?", "a": "yes" if i % 3 else "no"} for i in range(24)]
        data = {"data_files": {"test": str(write_json_lines(tmp_path / f"{name}.jsonl", rows))}}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **task}
        task |= {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    (tmp_path / "tasks" / "quiz.yaml").write_text(json.dumps({"group": "quiz", "task": ["quiz_en", "quiz_pt"]}))
    arguments = f"lm_eval run --model hf --model_args pretrained={tiny_model},dtype=float32 --device cpu --log_samples"
    arguments += f" --tasks quiz,say_pt --include_path {tmp_path / 'tasks'} --output_path"
    for name in ("base", "tuned"):
        monkeypatch.setattr(sys, "argv", [*arguments.split(), str(tmp_path / name)])
        cli_evaluate()
    folders = [f"{name}={tmp_path / name}" for name in ("base", "tuned")]
    path = report(ReportConfig(folders, str(tmp_path / "report")))
    rows = {(r["task"], r["metric"]): r for r in json.loads(path.with_suffix(".json").read_text())["rows"]}
    roles = {("quiz_en", "acc"): "source", ("quiz_pt", "acc"): "target", ("say_pt", "exact_match"): "target"}
    assert {key: rows[key]["role"] for key in roles} == roles
    file = next((tmp_path / "base").glob("*/results_*.json"))
    (score,) = [s for t, s in json.loads(file.read_text())["results"].items() if t.endswith("quiz_pt")]
    assert rows["quiz_pt", "acc"]["comparison"]["base"] == score["acc,none"] and score["sample_len"] == 24
