"""The files of lm_eval_tasks/ as a whole, and the multiple-choice benchmarks on real data."""

import ast
import filecmp
import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, data_dir


lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.model import LM  # noqa: E402

from sdrrl_trl.evaluation import check  # noqa: E402
from sdrrl_trl.evaluation.tasks import include_paths, tasks_dir  # noqa: E402


TASKS = ROOT / "lm_eval_tasks"
needs_data = pytest.mark.skipif(data_dir() is None, reason="no benchmark data")


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


shared = module(TASKS / "_shared.py")


@pytest.fixture
def folder(tmp_path):
    """A copy of the tasks to spoil."""
    return shutil.copytree(TASKS, tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))


def test_generating_again_changes_nothing(folder):
    subprocess.run([sys.executable, folder / "_generate.py"], check=True)
    for path in TASKS.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert filecmp.cmp(path, folder / path.relative_to(TASKS), shallow=False), path
    assert len(list(folder.rglob("*.yaml"))) == len(list(TASKS.rglob("*.yaml")))


def test_the_files_are_sound():
    assert list(check.check_files(TASKS)) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("xnli/sdrrl_xnli_gen_th.yaml", "task: sdrrl", "task: [sdrrl", "expected ',' or ']'"),
        ("xnli/sdrrl_xnli_gen_th.yaml", "task: sdrrl_xnli", "task: xnli", "does not start with sdrrl_"),
        ("xnli/sdrrl_xnli_gen_th.yaml", "sdrrl_lang_th", "xnli", "does not start with sdrrl_"),
        ("xnli/sdrrl_xnli_gen_th.yaml", "sdrrl_xnli_gen_th", "sdrrl_xnli_gen_tr", "is taken by"),
        ("xnli/sdrrl_xnli_gen_th.yaml", "version: 1.0", "{}", "no `metadata.version`"),
        ("xnli/sdrrl_xnli_gen_th.yaml", "include: _xnli_gen_yaml", "include: _gone", "No such file"),
        ("xnli/_xnli_gen_yaml", "!function utils.load", "!function os.path.join", "is not in this folder"),
        ("groups/_sdrrl_quick.yaml", "- sdrrl_xnli", "- sdrrl_xnlj", "there is no task or group sdrrl_xnlj"),
        ("groups/_sdrrl_quick.yaml", "- sdrrl_xnli", "- sdrrl_xnli\n- sdrrl_xnli", "would be counted twice"),
    ],
)
def test_a_mistake_that_lm_eval_would_not_report_is_found(folder, file, old, new, named):
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    mistakes = list(check.check_files(folder))
    assert mistakes and any(named in mistake for mistake in mistakes), mistakes


def test_a_folder_can_be_copied_alone():
    for path in TASKS.glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and not node.module.startswith("sdrrl"), path
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("sdrrl") for name in node.names), path


def test_every_language_has_its_tag_and_the_groups_hold_what_they_say():
    tasks = {c["task"]: c for c in check.read_tasks(TASKS).values() if "group" not in c}
    groups = {c["group"]: c for c in check.read_tasks(TASKS).values() if "group" in c}
    for name, task in tasks.items():
        (tag,) = [task["tag"]] if isinstance(task["tag"], str) else task["tag"]
        assert re.fullmatch("sdrrl_lang_[a-z]{2}", tag), name
    assert len([name for name in tasks if name.startswith("sdrrl_flores_")]) == 32
    assert len([name for name in tasks if name.startswith("sdrrl_multijail_")]) == 10
    assert set(groups) >= {"sdrrl_multilingual", "sdrrl_paper", "sdrrl_safety", "sdrrl_quick"}
    for name in ("sdrrl_multilingual", "sdrrl_paper", "sdrrl_safety", "sdrrl_quick"):
        assert "aggregate_metric_list" not in groups[name]  # an average over unlike things would mean nothing
    averages = [m for group in groups.values() for m in group.get("aggregate_metric_list", [])]
    assert averages and not any(m["weight_by_size"] for m in averages)


def test_the_tasks_load_without_lm_evals_own_index(monkeypatch):
    from lm_eval.tasks import TaskManager

    if data_dir():
        monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    assert "sdrrl_multilingual" in manager.all_groups and "sdrrl_lang_th" in manager.all_tags
    assert "xnli_th" not in manager.all_tasks
    assert "xnli_th" in TaskManager(include_path=include_paths(), include_defaults=False).all_tasks


def test_missing_data_and_a_changed_schema_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="xnli/th.jsonl"):
        shared.read_rows("xnli/th.jsonl", ["premise"], list)
    (tmp_path / "rows.jsonl").write_text('{"sentence1": "a"}\n')
    with pytest.raises(ValueError, match="line 1 has no premise"):
        shared.read_rows("rows.jsonl", ["premise"], list)
    monkeypatch.delenv("SDRRL_DATA_DIR")
    with pytest.raises(ValueError, match="hub has no premise"):
        shared.read_rows("rows.jsonl", ["premise"], lambda: [{"x": 1}])


LISBON = [  # answers that name the second choice
    *(
        "B",
        " (B)",
        "[B]",
        "B. Lisbon",
        "**B**",
        "**(B)**",
        "（Ｂ）",
        "b",
        "(b)",
        "b)",
        "'B'",
        "`B`",
        "B,",
        "B。",
        "「B」",
    ),
    *("Lisbon", "lisbon", "Lisbon.", "B) because (A) is wrong", "The answer is B because (A) is false"),
    *(
        "Not (A). The answer is (B).",
        "A resposta é B",
        "A resposta correta é Lisbon",
        "La réponse est B car A est faux",
    ),
    *("Richtig ist B, weil A falsch ist.", "A válasz B, mert A nem igaz", "C’est la réponse B", "B. f(A)"),
    *("The answer is B. Explanation: option A is wrong", "The answer is:\n\nB", "<think>\n\n</think>\n\nB"),
    *("<think>maybe (A)</think>(B)", "Ответ: В.", "Б не подходит. Ответ: В", "Đáp án: B", "Jibu ni B", "Jawaban: B"),
    *(
        "答案是B。",
        "选B",
        "选项B是正确的",
        "选择B：里斯本",
        "选 B，因为 A 不对",
        "答えはBです。",
        "Bです",
        "B입니다",
        "정답은 B입니다.",
    ),
    *("B번", "ข้อB", "คำตอบคือB", "คำตอบคือ B เพราะ (A) ผิด", "الإجابة هي B", "الإجابة هيB", "उत्तर: B"),
]
NOTHING = [
    *("", "I do not know", "E", "I am sorry, I cannot say.", "A julgar pelo texto, não sei.", "A'dan", "B ou C"),
    *("A correct answer cannot be determined.", "(A) ou (B)", "A, B, C, D", "<think>option (B) first", "A or B"),
    "A) Paris\nB) Lisbon\nC) I\nD) Oslo",
]


@pytest.mark.parametrize(("answer", "chosen"), [*((a, 1) for a in LISBON), *((a, None) for a in NOTHING)])
def test_the_choice_that_an_answer_names_is_found(answer, chosen):
    assert shared.choose(shared.without_thoughts(answer), ["Paris", "Lisbon", "I", "Oslo"]) == chosen


@pytest.mark.parametrize("answer", ["B", "**B**", "B,", "B。", "「B」", "（B）", "B. DNA"])
def test_the_letter_and_text_of_a_choice_are_in_no_wrong_language(answer):
    scores = shared.choice_scores(answer, ["RNA", "DNA", "ATP", "GTP"], 1, "ar", "Arab")
    assert scores == {"acc": 1.0, "invalid": 0.0, "wrong_language": 0.0}


def test_a_likelihood_that_is_no_number_is_no_choice():
    assert shared.right_is_likeliest([(-3.0, False), (-1.0, False)], 1) == 1.0
    assert shared.right_is_likeliest([(-1.0, False), (-1.0, False)], 1) == 0.0  # the first of equals, as in lm-eval
    assert shared.right_is_likeliest([(float("nan"), False), (float("nan"), False)], 0) == 0.0


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2 is no JSON"),
        ('{"premise": "x"}', "line 2 has no label"),
        ('{"premise": "", "label": 1}', "premise"),
    ],
)
def test_a_damaged_row_is_named(line, named, tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"premise": "a\u2028b", "label": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match=named):
        shared.read_rows("rows.jsonl", ["premise", "label"], list)


@needs_data
@pytest.mark.parametrize("code", ["arb_Arab", "ces_Latn", "jpn_Jpan", "khm_Khmr", "nob_Latn", "tha_Thai", "zho_Hans"])
def test_sentences_are_in_their_language_and_in_no_other(code):
    languages = {facts["flores"]: tag for tag, facts in yaml.safe_load((TASKS / "languages.json").read_text()).items()}
    lines = (data_dir() / "flores200" / "devtest" / f"{code}.devtest").read_text(encoding="utf-8").splitlines()[:100]
    wrong = [shared.wrong_language(line, languages[code], code.partition("_")[2]) for line in lines]
    assert sum(wrong) <= 3
    assert sum(shared.wrong_language(line, "en", "Latn") for line in lines) >= 97


def test_short_and_empty_answers_are_judged_with_care():
    assert shared.wrong_language("", "pt", "Latn") == 1
    assert shared.wrong_language("(B)", "th", "Thai") == 0
    assert shared.wrong_language("1969", "th", "Thai") == 0
    assert shared.wrong_language("Bangkok", "th", "Thai") == 1
    assert shared.wrong_language("Lisboa", "pt", "Latn") == 0


class Scripted(LM):
    """Answers with what `answer` makes of a document and its target."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def generate_until(self, requests):
        return [self.answer(request.doc, request.args[0]) for request in requests]

    def loglikelihood(self, requests):
        return [(self.answer(request.doc, request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))

    def run(names, answer, limit=20):
        found = check.leaves(TASKS)
        manager = check.task_manager()
        tasks = [task for name in names for task in manager.load([found[name]])["tasks"].values()]
        results = lm_eval.simple_evaluate(
            Scripted(answer), tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0
        )
        return results["results"]

    return run


GENERATED = ["sdrrl_xnli_gen_th", "sdrrl_xstorycloze_gen_te", "sdrrl_mmmlu_gen_ko", "sdrrl_belebele_gen_en"]


def right_letter(doc, _):
    if "label" in doc:
        return f"({'ABC'[doc['label']]})"
    if "answer_right_ending" in doc:
        return "AB"[int(doc["answer_right_ending"]) - 1]
    return doc["Answer"] if "Answer" in doc else "ABCD"[int(doc["correct_answer_num"]) - 1]


@needs_data
def test_a_model_that_answers_right_reaches_100_percent(run):
    for scores in run(GENERATED, right_letter).values():
        assert scores["acc,none"] == 1.0
        assert scores["invalid,none"] == scores["wrong_language,none"] == 0.0


@needs_data
def test_a_model_that_refuses_has_no_valid_answer(run):
    for name, scores in run(GENERATED, lambda *_: "I am sorry, but I really cannot answer this question.").items():
        assert scores["acc,none"] == 0.0 and scores["invalid,none"] == 1.0
        assert scores["wrong_language,none"] == float(not name.endswith("_en"))


@needs_data
def test_a_model_that_says_nothing_has_no_valid_answer(run):
    for scores in run(GENERATED, lambda *_: "").values():
        assert (scores["acc,none"], scores["invalid,none"], scores["wrong_language,none"]) == (0.0, 1.0, 1.0)


LIKELIHOOD = ["sdrrl_mmmlu_pt", "xnli_th", "xstorycloze_sw", "belebele_eng_Latn"]


def likelihood_of_right(doc, arguments):
    _, choice = arguments
    if "label" in doc:
        words = ("ใช่", "ดังนั้น", "ไม่")
        return 0.0 if f"ถูกต้อง? {words[doc['label']]}," in choice else -9.0
    if "answer_right_ending" in doc:
        return 0.0 if choice.strip() == doc[f"sentence_quiz{doc['answer_right_ending']}"].strip() else -9.0
    return 0.0 if choice.strip() == right_letter(doc, None) else -9.0


@needs_data
def test_a_model_that_finds_the_right_choice_likely_reaches_100_percent(run):
    for scores in run(LIKELIHOOD, likelihood_of_right).values():
        assert scores["acc,none"] == 1.0
    for scores in run(LIKELIHOOD, lambda *arguments: -likelihood_of_right(*arguments)).values():
        assert scores["acc,none"] < 0.01


@needs_data
def test_every_task_whose_data_are_here_is_sound(monkeypatch, capsys):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    assert check.check() == []
    checked = int(re.search(r"(\d+) tasks checked", capsys.readouterr().out)[1])
    assert checked >= 80


@needs_data
def test_an_unsound_task_is_found(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    manager = check.task_manager()

    def mistakes(name, **changes):
        (task,) = manager.load([{"group": "one", "task": [{"task": name, **changes}]}])["tasks"].values()
        return "\n".join(check.check_task(task))

    assert mistakes("sdrrl_xnli_gen_th") == ""
    assert "all prompts are the same" in mistakes("sdrrl_xnli_gen_th", doc_to_text="Question:")
    assert "unrendered braces" in mistakes("sdrrl_xnli_gen_th", doc_to_text="{{'{{'}} {{premise}}")
    assert "no `max_gen_toks`" in mistakes("sdrrl_xnli_gen_th", generation_kwargs={"do_sample": False})
    assert "empty target" in mistakes("sdrrl_xnli_gen_th", doc_to_target="{{''}}")


@needs_data
def test_doctor_says_what_is_ready_and_what_is_missing(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    problems = check.doctor(["sdrrl_xnli_gen_th", "sdrrl_xnli_gen_fr", "xnli_th"])
    assert problems["sdrrl_xnli_gen_th"] is None and problems["xnli_th"] is None
    assert "xnli/fr.jsonl" in problems["sdrrl_xnli_gen_fr"]
