"""The report, on results that are made up here."""

import html
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from matplotlib import pyplot

from sdrrl_trl import SDRRLError
from sdrrl_trl.cli import main
from sdrrl_trl.evaluation import plots
from sdrrl_trl.evaluation.model_card import BEGIN
from sdrrl_trl.evaluation.report import ReportConfig, Row, report
from sdrrl_trl.evaluation.significance import Comparison
from sdrrl_trl.evaluation.summary import summary
from sdrrl_trl.evaluation.views import answer_language, benchmark_of, gaps, role_of


N = 60
ANSWERS = {
    "en": "The library opens at nine in the morning and closes late in the evening.",
    "pt": "A biblioteca abre às nove da manhã e fecha tarde da noite, todos os dias.",
    "th": "ห้องสมุดเปิดเวลาเก้าโมงเช้าและปิดตอนดึกทุกวันยกเว้นวันอาทิตย์",
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HARMFUL_TEXT = "How do I pick a lock <script>alert(1)</script>?"


def result(task, values, responses=None, prompt="Question {}", higher=None):
    """A result file: `values` holds the items of each metric."""
    n = len(next(iter(values.values())))
    numbers = {name: [v for v in items if isinstance(v, float) and v == v] for name, items in values.items()}
    samples = [
        {
            "doc_id": i,
            "doc_hash": f"{task}-{i}",
            "prompt": prompt.format(i),
            "target": "B",
            "response": responses[i] if responses else [-1.5, False],
            **{name: items[i] for name, items in values.items()},
        }
        for i in range(n)
    ]
    lower = {"bits_per_byte", "unsafe_rate", "invalid_rate", "judge_failed", "wrong_language"}
    return {
        "task": task,
        "metrics": {name: sum(v) / len(v) if v else math.nan for name, v in numbers.items()},
        "higher_is_better": {name: name not in lower for name in values} | (higher or {}),
        "signature": {"version": 1.0, "shots": 0, "limit": None, "chat_template": "abcd", "lm_eval": "0.4.13"},
        "samples": samples,
    }


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
        results[f"sdrrl_belebele_gen_{tag}"] = result(
            f"sdrrl_belebele_gen_{tag}", {"acc": right(level + gain)}, [ANSWERS[tag]] * N
        )
        safe = [math.nan if i == 3 else 1.0 - (i % 2) for i in range(N)]
        results[f"sdrrl_multijail_{tag}"] = result(
            f"sdrrl_multijail_{tag}",
            {
                "safe_rate": safe,
                "unsafe_rate": [1 - v for v in safe],
                "judge_failed": [float(v != v) for v in safe],
            },
            [ANSWERS[tag]] * N,
            prompt=HARMFUL_TEXT + " {}",
        )
        task = f"sdrrl_heldout_bpb_{tag}"
        results[task] = result(task, {"bits_per_byte": bits(1.2 - gain)})
        sums = [sum(column) for column in zip(*bits(1.2 - gain), strict=True)]
        results[task]["metrics"] = {"bits_per_byte": -sums[0] / sums[1] / math.log(2)}
    wrong = [ANSWERS["en"] if i < (N if not boost else N // 4) else ANSWERS["pt"] for i in range(N - 2)]
    task = "sdrrl_xlsum_pt"
    results[task] = result(
        task,
        {"rougeL": [0.1 + boost / 2 + 0.001 * (i % 3 + boost * i) for i in range(N)]},
        [*wrong, "", "não sei " * 30],
    )
    return results


def save(folder, by_model, source="en", **more):
    tasks = sorted(by_model["base"])
    for name, results in by_model.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for task, content in results.items():
            (folder / name / f"{task}.json").write_text(json.dumps(content))
    manifest = {
        "models": {name: f"/models/{name}" for name in by_model},
        "tasks": tasks,
        "source_language": source,
        "options": {"limit": None, "models": dict.fromkeys(by_model, "cafe")},
        "languages": {task: task.rpartition("_")[2] for task in tasks},
        "groups": {
            f"sdrrl_{name}": [task for task in tasks if name in task] for name in ("belebele_gen", "multijail")
        },
        "harmful": [task for task in tasks if "multijail" in task],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | more))
    return folder


def run(tmp_path, models, **options):
    folder = save(tmp_path / "evaluation", models)
    path = report(ReportConfig(str(folder), str(tmp_path / "report"), **options))
    return json.loads(path.with_suffix(".json").read_text()), path


@pytest.fixture
def models():
    return {"base": one_model(0.0), "tuned": one_model(0.35)}


def small(task="sdrrl_belebele_gen_pt", **values):
    values = values or {"acc": right(0.5)}
    return {task: result(task, values)}


@pytest.mark.parametrize(
    "higher, delta, p, n, verdict",
    [
        (True, 0.2, 0.01, 30, "better"),
        (True, -0.2, 0.01, 30, "worse"),
        (False, 0.2, 0.01, 30, "worse"),
        (False, -0.2, 0.01, 30, "better"),
        (True, 0.2, 0.05, 30, "no evidence of change"),
        (True, 0.2, 0.001, 19, "too few items"),
    ],
)
def test_the_verdict_follows_the_adjusted_p_direction_and_number_of_items(higher, delta, p, n, verdict):
    comparison = Comparison(0.5, 0.5 + delta, delta, delta - 0.1, delta + 0.1, n, 0.0001, "bootstrap")
    assert Row("tuned", "task", "acc", "pt", "target", higher, comparison, p).verdict == verdict


@pytest.mark.parametrize(
    "task, language, benchmark, of_answers",
    [
        ("sdrrl_belebele_gen_id", "id", "sdrrl_belebele_gen_*", "id"),
        ("belebele_ces_Latn", "cs", "belebele_*", "cs"),
        ("sdrrl_flores_ces_Latn-eng_Latn", "cs", "sdrrl_flores_*-eng_Latn", "en"),
        ("sdrrl_flores_eng_Latn-ces_Latn", "cs", "sdrrl_flores_eng_Latn-*", "cs"),
        ("hellaswag", None, "hellaswag", None),
    ],
)
def test_benchmark_and_language_of_the_answers(task, language, benchmark, of_answers):
    assert benchmark_of(task, language) == benchmark and answer_language(task, language) == of_answers


def test_roles_say_what_a_row_is_evidence_of():
    assert role_of("sdrrl_belebele_gen_pt", "acc", "pt", "en", []) == "target"
    assert role_of("sdrrl_belebele_gen_en", "acc", "en", "en", []) == "source"
    assert role_of("hellaswag", "acc", None, "en", []) == role_of("hellaswag", "acc", None, None, []) == "other"
    assert role_of("sdrrl_heldout_gen_en", "chrf++", "en", "en", []) == "agreement"
    assert role_of("sdrrl_pku", "acc", "en", "en", ["sdrrl_pku"]) == "safety"
    assert role_of("sdrrl_multijail_pt", "wrong_language", "pt", "en", ["sdrrl_multijail_pt"]) == "form"


def test_every_comparison_is_in_json_and_markdown_and_p_is_adjusted_for_all(models, tmp_path):
    content, path = run(tmp_path, models)
    assert content["schema"] == 3 and len(content["rows"]) == 3 * 5 + 1
    text = path.read_text()
    for row in content["rows"]:
        c = row["comparison"]
        assert c["low"] <= c["delta"] <= c["high"] and row["p_holm"] >= c["p"]
        assert f"| {c['base']:.3f} | {c['tuned']:.3f} | {c['delta']:+.3f} |" in text
    verdicts = {(row["task"], row["metric"]): row["verdict"] for row in content["rows"]}
    assert verdicts["sdrrl_belebele_gen_pt", "acc"] == verdicts["sdrrl_heldout_bpb_th", "bits_per_byte"] == "better"
    assert verdicts["sdrrl_belebele_gen_en", "acc"] == "no evidence of change"
    assert "Portuguese" in text and "lock" not in text


def test_the_summary_says_whether_it_helps_and_hurts(models, tmp_path):
    content, path = run(tmp_path, models)
    sentences = " ".join(content["summary"]["tuned"])
    assert 3 <= len(content["summary"]["tuned"]) <= 6
    assert "gained on 5 of 5 measures; 0 got worse" in sentences
    assert "English, the source language, shows no evidence of loss on 2 measures" in sentences
    assert "in a wrong language" in sentences and "Safety: 0 of 6 measures better, 0 worse" in sentences
    assert all(sentence in path.read_text() for sentence in content["summary"]["tuned"])


def test_tasks_without_a_language_are_not_counted_as_target_languages(tmp_path):
    models = {name: small() | small("hellaswag", acc=right(share)) for name, share in (("base", 0.9), ("tuned", 0.2))}
    languages = {"hellaswag": None, "sdrrl_belebele_gen_pt": "pt"}
    folder = save(tmp_path / "e", models, languages=languages)
    text = report(ReportConfig(str(folder), str(tmp_path / "r"))).read_text()
    assert "Target languages gained on 0 of 1 measure; 0 got worse" in text
    assert "Tasks whose language is not known gained on 0 of 1 measure; 1 got worse" in text


def test_without_a_source_language_none_is_called_source_or_target(models, tmp_path):
    folder = save(tmp_path / "e", models, source=None)
    text = report(ReportConfig(str(folder), str(tmp_path / "r"))).read_text()
    assert "* Languages gained on 5 of 7 measures" in text and "`--source_language`, or `--transfer_set`" in text
    assert "not measured" not in text and "arget languages" not in text.split("## ")[0]


def test_a_model_that_answers_nothing_is_no_success(models, tmp_path):
    for name in ("sdrrl_belebele_gen_th", "sdrrl_multijail_th"):
        for sample in models["tuned"][name]["samples"]:
            sample["response"] = " "
    content, _ = run(tmp_path / "1", models)
    rates = {(rate["language"], rate["model"]): rate for rate in content["answers"]}
    assert rates["th", "tuned"]["wrong_language"] is None and rates["th", "base"]["wrong_language"] == 0
    sentences = " ".join(content["summary"]["tuned"])
    assert "Of the answers in 1 target language, 8.4% are in a wrong language, 32.4% before." in sentences
    assert "More answers are empty in Thai (100.0%, 0.0% before)." in sentences and "repetitive" not in sentences
    for name, result in models["tuned"].items():
        for sample in result["samples"] if name.endswith("pt") and "bpb" not in name else ():
            sample["response"] = "não sei " * 30 if "xlsum" in name else ""
    sentences = " ".join(run(tmp_path / "2", models)[0]["summary"]["tuned"])
    assert "empty in Portuguese (66.7%, 0.6% before), Thai" in sentences
    assert "More answers are repetitive in Portuguese (33.3%, 0.6% before)." in sentences
    for sample in models["tuned"]["sdrrl_xlsum_pt"]["samples"]:
        sample["response"] = ""
    sentences = " ".join(run(tmp_path / "3", models)[0]["summary"]["tuned"])
    assert "In no target language did both models write anything" in sentences and "0.0% are" not in sentences


@pytest.mark.parametrize("closed, said", [(18.26, "more than all"), (0.7, "70%"), (-3.0, "none")])
def test_a_gap_is_closed_by_nothing_a_share_or_all(models, tmp_path, closed, said):
    content, _ = run(tmp_path, models)
    for gap in content["gaps"]:
        gap["closed"] = closed
    assert f"Training closed {said} of the base model's gap to English" in " ".join(summary([], content, "tuned"))


def test_gap_closed_is_the_share_of_the_distance_to_the_source_language(models, tmp_path):
    content, _ = run(tmp_path, models)
    found = {gap["language"]: gap for gap in content["gaps"]}
    assert set(found) == {"pt", "th"} and found["pt"]["closed"] == pytest.approx(0.35 / 0.5)
    assert found["pt"]["low"] < found["pt"]["closed"] < found["pt"]["high"]
    levels = (right(0.5), right(0.7), right(0.52, seed=5))
    results = {
        "base": small(acc=levels[0]) | small("sdrrl_belebele_gen_en", acc=levels[2]),
        "tuned": small(acc=levels[1]) | small("sdrrl_belebele_gen_en", acc=levels[2]),
    }
    comparison = Comparison(0.5, 0.7, 0.2, 0.1, 0.3, N, 0.001, "McNemar")
    rows = [
        Row("tuned", f"sdrrl_belebele_gen_{tag}", "acc", tag, role, True, comparison, 0.01)
        for tag, role in (("pt", "target"), ("en", "source"))
    ]
    (gap,) = gaps(rows, results, "base", "en", 1)
    assert gap["note"] == "no gap" and gap["closed"] is None


def test_source_language_has_a_bound_and_answers_have_rates(models, tmp_path):
    models["tuned"]["sdrrl_belebele_gen_en"] = result("x", {"acc": right(0.5)}, [ANSWERS["en"]] * N)
    for i, sample in enumerate(models["tuned"]["sdrrl_belebele_gen_en"]["samples"]):
        sample["doc_hash"] = f"sdrrl_belebele_gen_en-{i}"
    content, _ = run(tmp_path, models)
    (kept,) = [entry for entry in content["source"] if entry["metric"] == "acc"]
    assert kept["verdict"] == "worse" and kept["worst"] < kept["delta"] < 0
    assert kept["worst_loss"] == pytest.approx(-kept["worst"] / 0.9)
    rates = {(rate["language"], rate["model"]): rate for rate in content["answers"]}
    assert rates["pt", "base"]["wrong_language"] == pytest.approx(58 / 179)
    assert rates["pt", "tuned"]["wrong_language"] == pytest.approx(15 / 179)
    assert rates["pt", "base"]["empty"] == rates["pt", "base"]["repetitive"] == pytest.approx(1 / 180)


def test_pairs_that_the_judge_failed_on_are_left_out_and_counted(models, tmp_path):
    content, _ = run(tmp_path, models)
    (row,) = [r for r in content["rows"] if r["task"] == "sdrrl_multijail_pt" and r["metric"] == "safe_rate"]
    assert row["comparison"]["n"] == N - 1
    entry = content["safety"][0]
    assert entry["n"] == 3 * (N - 1)
    assert entry["safe_rate"] == pytest.approx(30 / 59) and entry["judge_failed"] == pytest.approx(1 / 60)


def test_means_count_each_language_alike_and_miss_no_task(models, tmp_path):
    content, _ = run(tmp_path, models)
    (mean,) = [mean for mean in content["groups"] if mean["group"] == "sdrrl_belebele_gen"]
    assert mean["values"] == pytest.approx({"base": 1.6 / 3, "tuned": 2.3 / 3}, abs=0.01)
    save(tmp_path / "evaluation", models, groups={"g": ["sdrrl_belebele_gen_pt", "sdrrl_belebele_gen_ja"]})
    with pytest.raises(SDRRLError, match="tasks without results: sdrrl_belebele_gen_ja"):
        report(ReportConfig(str(tmp_path / "evaluation"), str(tmp_path / "report")))


def test_several_tuned_models_and_metrics_that_cannot_be_compared(tmp_path):
    models = {"base": small(), "a": small(acc=right(0.9)), "b": small(acc=right(0.1))}
    for results in models.values():
        results["sdrrl_belebele_gen_pt"]["metrics"]["acc"] += 0.2
    content, path = run(tmp_path / "1", models)
    assert content["rows"] == []
    assert "the task's score is not the mean of its items' scores" in path.read_text()
    for results in models.values():
        results["sdrrl_belebele_gen_pt"]["metrics"]["acc"] -= 0.2
    content, path = run(tmp_path / "2", models)
    assert {row["model"]: row["verdict"] for row in content["rows"]} == {"a": "better", "b": "worse"}
    assert (path.parent / "README_a.md").exists() and "| model | language |" in path.read_text()


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda r: r["signature"].update(shots=5), "differ in: shots"),
        (lambda r: r["signature"].update(chat_template=None), "differ in: chat_template"),
        (lambda r: r["signature"].update(SDRRL_JUDGE="guard"), "differ in: SDRRL_JUDGE"),
        (lambda r: r["samples"].pop(), "number of items"),
        (lambda r: r["samples"][3].update(doc_hash="x"), "differ in: doc_hash"),
        (lambda r: r["samples"][3].update(prompt="x"), "differ in: prompt"),
        (lambda r: r["samples"][3].pop("acc"), "1 items have no value of acc"),
        (lambda r: r["samples"][3].update(acc=math.nan), "1 items have NaN for acc"),
        (lambda r: r.update(metrics={}), "differ in: metrics"),
    ],
)
def test_runs_that_differ_or_are_incomplete_are_refused_with_task_and_field(tmp_path, change, named):
    models = {"base": small(), "tuned": small()}
    change(models["tuned"]["sdrrl_belebele_gen_pt"])
    with pytest.raises(SDRRLError, match=f"sdrrl_belebele_gen_pt.*{named}"):
        run(tmp_path, models)


def test_a_run_that_failed_half_way_is_refused(models, tmp_path):
    folder = save(tmp_path / "evaluation", models)
    (folder / "tuned" / "sdrrl_xlsum_pt.json").unlink()
    with pytest.raises(SDRRLError, match="sdrrl_xlsum_pt"):
        report(ReportConfig(str(folder), str(tmp_path / "report")))


@pytest.mark.parametrize(
    "more, named",
    [
        ({"languages": {"sdrrl_belebele_gen_pt": "xx"}}, "unknown language 'xx'"),
        ({"languages": {}}, "unknown language None"),
        ({"source_language": "xx"}, "Unknown source language"),
    ],
)
def test_unknown_languages_are_refused(tmp_path, more, named):
    folder = save(tmp_path / "e", {"base": small(), "tuned": small()}, **more)
    with pytest.raises(SDRRLError, match=named):
        report(ReportConfig(str(folder), str(tmp_path / "r")))


def test_single_items_older_evaluations_and_lone_models_are_refused(tmp_path):
    one = small(acc=[1.0])
    with pytest.raises(SDRRLError, match="sdrrl_belebele_gen_pt has 1 items"):
        run(tmp_path / "1", {"base": one, "tuned": one})
    with pytest.raises(SDRRLError, match="nothing to compare"):
        run(tmp_path / "2", {"base": one})
    with pytest.raises(SDRRLError, match="No results of the model 'other'"):
        run(tmp_path / "3", {"base": one, "tuned": one}, tuned="other")
    folder = save(tmp_path / "4", {"base": one, "tuned": one})
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["harmful"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SDRRLError, match="older version: its manifest lacks harmful"):
        report(ReportConfig(str(folder), str(tmp_path / "r")))
    with pytest.raises(SDRRLError, match="nothing to compare"):
        ReportConfig("e", "r", base="tuned", tuned="tuned")


def test_many_comparisons_do_not_put_significance_out_of_reach(tmp_path):
    metrics = {f"metric{i}": [0.5 + 0.01 * (j % 3) for j in range(N)] for i in range(60)}
    better = {name: [value + 0.2 + 0.01 * (j % 5) for j, value in enumerate(items)] for name, items in metrics.items()}
    content, _ = run(tmp_path, {"base": small(**metrics), "tuned": small(**better)})
    assert {row["verdict"] for row in content["rows"]} == {"better"}


def test_items_that_are_lists_or_texts_leave_the_rest_of_the_report(tmp_path):
    odd = {
        "inst_level_strict_acc": [[True] * (1 + i % 3) for i in range(N)],
        "brier_score": [[i % 2, [0.4, 0.6]] for i in range(N)],
        "one": [[1.0]] * N,
        "text": ["yes"] * N,
        "mcc": [[i % 2, 1] for i in range(N)],
        "bleu": [[["a b", "a c"], "a b"]] * N,
        "endless": [math.inf] * N,
    }
    models = {name: small(acc=right(share), **odd) for name, share in (("base", 0.3), ("tuned", 0.9))}
    for results in models.values():
        results["sdrrl_belebele_gen_pt"]["metrics"].update(dict.fromkeys(odd, 0.5))
    content, path = run(tmp_path, models)
    assert [(row["metric"], row["verdict"]) for row in content["rows"]] == [("acc", "better")]
    assert {row["metric"]: row["base"] for row in content["not_compared"]} == dict.fromkeys(odd, 0.5)
    for why in ("its items are not numbers", "one reference and one answer", "items are infinite"):
        assert why in path.read_text()


def test_advice_names_the_file_to_delete_and_the_model_to_leave_out(tmp_path):
    models = {name: small() for name in ("base", "a", "b")}
    sample = models["b"]["sdrrl_belebele_gen_pt"]["samples"][3]
    file = tmp_path / "evaluation" / "b" / "sdrrl_belebele_gen_pt.json"
    for value in (None, math.nan):
        sample["acc"] = value
        with pytest.raises(SDRRLError, match=f"Delete {file} and run the same `sdrrl evaluate` command"):
            run(tmp_path, models)
    sample["acc"] = 1.0
    models["b"]["sdrrl_belebele_gen_pt"]["signature"]["chat_template"] = None
    with pytest.raises(
        SDRRLError, match="Leave b out by naming the others in `--tuned`.*`--apply_chat_template False`"
    ):
        run(tmp_path, models)
    assert run(tmp_path, models, tuned="a")[0]["tuned"] == ["a"]


def test_the_page_is_one_file_with_every_number_and_escapes_all_text(models, tmp_path):
    content, path = run(tmp_path, models)
    page = path.with_suffix(".html").read_text()
    for row in content["rows"]:
        for value in (*list(row["comparison"].values())[:3], row["comparison"]["p"], row["p_holm"]):
            assert f'data-value="{value}"' in page
    assert "<script>alert" not in page and html.escape(HARMFUL_TEXT) in page
    assert page.count("<script") == 1 and page.count("<svg") == 2
    assert set(re.findall(r"""(?:src|href)\s*=\s*["']?(.)""", page)) <= {"#"}  # within the page
    warned = page.index("harmful content")
    assert warned < page.index(html.escape(HARMFUL_TEXT))


def chromium(tmp_path, page, *options):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars --host-resolver-rules=MAP_*_~NOTFOUND"
    command = [
        CHROMIUM,
        *(flag.replace("_", " ") for flag in flags.split()),
        f"--user-data-dir={tmp_path / 'chromium'}",
    ]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_every_number_and_asks_nobody(models, tmp_path):
    content, path = run(tmp_path, models, trainer_state=str(log(tmp_path)))
    page = path.with_suffix(".html")
    net = tmp_path / "net.json"
    dom = chromium(tmp_path, page, "--dump-dom", f"--log-net-log={net}")
    for row in content["rows"]:
        c = row["comparison"]
        numbers = [
            f"{c['base']:.3f}",
            f"{c['tuned']:.3f}",
            f"{c['delta']:+.3f}",
            f"{c['low']:+.3f} to {c['high']:+.3f}",
        ]
        cells = [*numbers, str(c["n"])]
        assert all(f">{cell}</td>" in dom for cell in cells)
    # The browser's own services ask their servers; the page names none
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', net.read_text()))
    assert not {
        url for url in asked if not re.match(r"https?://(clients2|accounts|www|update)\.google(apis)?\.com/", url)
    }
    sorting = tmp_path / "sorted.html"
    sorting.write_text(page.read_text() + "<script>document.querySelectorAll('th')[2].click()</script>")
    table = chromium(tmp_path, sorting, "--dump-dom").partition("<tbody>")[2].partition("</tbody>")[0]
    bases = [
        float(row.split("<td")[3].partition('data-value="')[2].partition('"')[0]) for row in table.split("<tr>")[1:]
    ]
    assert bases == sorted(row["comparison"]["base"] for row in content["rows"])
    chromium(tmp_path, page, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1100,2000")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def log(tmp_path):
    entries = [{"step": i, "bpb/pt": 1.5 / (i + 1), "bpb/en": 1.0, "nll/source": 2.0} for i in range(5)]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [*entries, {"step": 5, "train_loss": 1.0}]}))
    return path


def test_plots_are_written_and_the_training_curves_where_there_is_a_log(models, tmp_path):
    _, path = run(tmp_path, models, trainer_state=str(log(tmp_path)))
    for name in ("report", "heatmap", "training"):
        assert (path.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (path.parent / f"{name}.svg").read_text()
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SDRRLError, match="holds no log"):
        run(tmp_path, models, trainer_state=str(tmp_path / "bad.json"))


@pytest.mark.parametrize("n_models, name", [(1, "tuned"), (3, "fifteen-letters"), (9, "model"), (2, 50 * "long")])
def test_every_model_stays_beside_its_language_and_the_legend_within_the_picture(n_models, name):
    comparison = Comparison(0.5, 0.7, 0.2, 0.1, 0.3, N, 0.001, "bootstrap")
    rows = [
        Row(f"{name[:90]}{i}", f"sdrrl_belebele_gen_{tag}", "acc", tag, "target", True, comparison, 0.01)
        for i in range(n_models)
        for tag in ("pt", "th")
    ]
    figure = plots._dumbbell({"belebele": rows})
    figure.canvas.draw()
    (axis,) = figure.axes
    looks = {}
    for line in axis.lines[2::3]:  # of each row: from base to tuned, base, tuned
        (y,) = line.get_ydata()
        looks.setdefault((line.get_color(), line.get_marker()), []).append(y)
    assert len(looks) == n_models
    assert all(abs(th) < 0.5 and abs(pt - 1) < 0.5 for pt, th in looks.values())
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0 and box.y1 < axis.get_window_extent().y0
    pyplot.close(figure)


def test_the_model_card_keeps_the_trainers_text_and_holds_valid_metadata(models, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("---\nmodel_name: mine\ntags: [sdrrl]\n---\n# Mine\n\nThe trainer's text.\n")
    folder = save(tmp_path / "evaluation", models, models={"base": "org/base", "tuned": str(model)})
    for _ in range(2):  # once more: the section is replaced
        report(ReportConfig(str(folder), str(tmp_path / "report")))
    text = (model / "README.md").read_text()
    assert text.count(BEGIN) == 1 and "The trainer's text." in text and "lock" not in text
    metadata = metadata_load(model / "README.md")
    assert metadata["tags"] == ["sdrrl"]
    name, found = model_index_to_eval_results(metadata["model-index"])
    assert name == "mine" and len(found) == 16
    scores = {(entry.dataset_name, entry.metric_type): entry.metric_value for entry in found}
    assert scores["sdrrl_belebele_gen_pt", "acc"] == 0.75 and len(scores) == 16
    assert ModelCard(text).data.eval_results == found


def test_a_model_without_a_card_gets_one_beside_the_report(models, tmp_path):
    _, path = run(tmp_path, models)
    assert BEGIN in (path.parent / "README.md").read_text()


@pytest.mark.parametrize("metadata", ["tags: [sdrrl", "- a\n- b", "1: x", "license: \tmit: x"])
def test_a_card_with_broken_metadata_is_named_before_anything_is_written(models, tmp_path, metadata):
    card = tmp_path / "model" / "README.md"
    card.parent.mkdir()
    card.write_text(f"---\n{metadata}\n---\n# Mine\n")
    folder = save(tmp_path / "evaluation", models, models={"base": "org/base", "tuned": str(card.parent)})
    with pytest.raises(SDRRLError, match=f"top of {card} cannot be read, so.*Correct the lines") as error:
        report(ReportConfig(str(folder), str(tmp_path / "report")))
    assert "losing it" in str(error.value) and not (tmp_path / "report").exists()


@pytest.mark.parametrize("base, kept", [("org/base", True), ("{folder}", False), ("/models/base", False)])
def test_a_card_names_the_base_model_only_by_its_id_on_the_hub(models, tmp_path, base, kept):
    base = base.format(folder=tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    tags = f"[lora, 'base_model:adapter:{base}']"
    (model / "README.md").write_text(f"---\nbase_model: {base}\ntags: {tags}\n---\n# Mine\n")
    folder = save(tmp_path / "evaluation", models, models={"base": base, "tuned": str(model)})
    report(ReportConfig(str(folder), str(tmp_path / "report")))
    metadata = metadata_load(model / "README.md")
    assert metadata.get("base_model") == (base if kept else None)
    assert metadata["tags"] == ["lora"] + kept * [f"base_model:adapter:{base}"]


def uploaded(monkeypatch, has_card=False):
    """What a fake hub gets: path in the repository to content."""
    files = {}

    class Api:
        def create_repo(self, *_, **__): ...

        def file_exists(self, *_):
            return has_card

        def create_commit(self, repo_id, operations, commit_message):
            files.update(
                {op.path_in_repo: Path(op.path_or_fileobj).read_bytes().decode(errors="replace") for op in operations}
            )

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.metadata_update", lambda repo, data, **_: files.update(metadata=str(data)))
    return files


@pytest.mark.parametrize("inside", ["report", "model"])
def test_the_upload_holds_no_text_of_harmful_items_wherever_the_evaluation_lies(models, tmp_path, monkeypatch, inside):
    model = tmp_path / "model"
    model.mkdir()
    (model / "adapter_model.safetensors").write_text("")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.txt").write_text(HARMFUL_TEXT)
    folder = save(tmp_path / inside / "evaluation", models, models={"base": "org/base", "tuned": str(model)})
    files = uploaded(monkeypatch)
    report(ReportConfig(str(folder), str(tmp_path / "report"), push_to_hub="me/it"))
    figures = {f"report/{name}.{ending}" for name in ("report", "heatmap") for ending in ("png", "svg")}
    assert set(files) == {"adapter_model.safetensors", "README.md", "report/report.md", "report/report.json"} | figures
    assert not any("lock" in text for name, text in files.items() if not name.endswith("png"))


def test_a_model_without_a_card_is_uploaded_with_the_one_beside_the_report(models, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("")
    for results in models.values():
        for tag in ("en", "pt", "th"):
            del results[f"sdrrl_multijail_{tag}"]
    folder = save(tmp_path / "evaluation", models, models={"base": "org/base", "tuned": str(model)}, groups={})
    report(ReportConfig(str(folder), str(tmp_path / "r"), push_to_hub="me/it", dry_run=True))
    listed = capsys.readouterr().out
    files = uploaded(monkeypatch)
    report(ReportConfig(str(folder), str(tmp_path / "r"), push_to_hub="me/it"))
    assert BEGIN in files["README.md"] and "library_name: transformers" in files["README.md"]
    assert {line.split()[0] for line in listed.splitlines()[1:]} == set(files) and "report/report.html" in files


@pytest.mark.parametrize("has_card", [True, False])
def test_a_card_on_the_hub_is_kept_and_gets_the_scores(models, tmp_path, monkeypatch, has_card):
    files = uploaded(monkeypatch, has_card)
    save(tmp_path / "evaluation", models, models={"base": "org/base", "tuned": "org/tuned"})
    report(ReportConfig(str(tmp_path / "evaluation"), str(tmp_path / "r"), push_to_hub="me/it"))
    assert ("metadata" in files, "README.md" in files) == (has_card, not has_card)
    assert "report/report.md" in files


def test_a_dry_run_of_the_upload_lists_the_files_but_not_harmful_samples(models, tmp_path, capsys):
    model = tmp_path / "model"
    (model / "checkpoint-5").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "checkpoint-5/optimizer.pt"):
        (model / name).write_text("")
    folder = save(tmp_path / "evaluation", models, models={"base": "org/base", "tuned": str(model)})
    main(
        [
            "report",
            "--evaluation",
            str(folder),
            "--output_dir",
            str(tmp_path / "r"),
            "--push_to_hub",
            "me/it",
            "--dry_run",
        ]
    )
    shown = capsys.readouterr().out
    assert "  adapter_model.safetensors (0 bytes)" in shown and "  report/report.md" in shown
    assert "checkpoint-5" not in shown and "  report/report.html" not in shown and "gained on 5 of 5" in shown
    with pytest.raises(SDRRLError, match="push_to_hub"):
        report(ReportConfig(str(folder), str(tmp_path / "r"), push_to_hub="a/b/c", dry_run=True))
