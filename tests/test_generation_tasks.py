"""FLORES-200, XL-Sum and MKQA in lm_eval_tasks/, and the prompts in all languages."""

import gzip
import importlib.util
import json
import unicodedata
from urllib.error import URLError

import pytest
from conftest import ROOT, data_dir, write_json_lines


pytest.importorskip("lm_eval")
pytest.importorskip("py3langid")

import datasets  # noqa: E402
import evaluate  # noqa: E402
import sacrebleu  # noqa: E402
import yaml  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from rouge_score.rouge_scorer import RougeScorer  # noqa: E402


TASKS = ROOT / "lm_eval_tasks"
LANGUAGES = json.loads((TASKS / "languages.json").read_text(encoding="utf-8"))
PROMPTS = json.loads((TASKS / "prompts.json").read_text(encoding="utf-8"))
needs_data = pytest.mark.skipif(data_dir() is None, reason="no benchmark data")


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flores = load_module(TASKS / "flores200" / "utils.py")
xlsum = load_module(TASKS / "xlsum" / "utils.py")
mkqa = load_module(TASKS / "mkqa" / "utils.py")


class Canned(LM):
    """Answers with a function of the row and the prompt."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def generate_until(self, requests, disable_tqdm=False):
        return [self.answer(request.doc, request.args[0]) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def reference(doc, prompt):
    return doc.get("tgt") or doc.get("summary") or doc["answers"][-1]


def echo(doc, prompt):
    return doc.get("src") or doc.get("text") or doc["question"]


def english(doc, prompt):
    return "This is an answer in English, whatever the language of the question may have been."


def nothing(doc, prompt):
    return ""


def run(answer, tasks, monkeypatch, folder=TASKS, limit=20):
    """Scores of tasks and groups, as `{name: {metric: score}}`."""
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(
        Canned(answer), tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False
    )
    return {
        name: {
            key.removesuffix(",none"): value
            for key, value in scores.items()
            if key.endswith(",none") and "_stderr" not in key
        }
        for name, scores in results["results"].items()
    }


def tasks_with_data():
    """Those whose data are there."""
    if data_dir() is None:
        return []
    names = [f"{kind}_{tag}" for kind in ("xlsum", "mkqa") for tag, facts in LANGUAGES.items() if kind in facts]
    names = [name for name in names if (data_dir() / f"{name.replace('_', '/')}.jsonl").exists()]
    return ["sdrrl_flores"] + [f"sdrrl_{name}" for name in names]


# ---------------------------------------------------------------- all tasks


@needs_data
def test_the_references_get_full_marks_in_every_language(monkeypatch):
    scores = run(reference, tasks_with_data(), monkeypatch)
    assert sum("flores_" in name and "-" in name for name in scores) == 32
    for group in ("sdrrl_flores_en_xx", "sdrrl_flores_xx_en"):
        assert scores[group]["chrf++"] == pytest.approx(100)
    for name, found in scores.items():
        full = {"chrf++": 100, "bleu_13a": 100, "bleu_char": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1, "f1": 1}
        for metric in full.keys() & found:
            assert found[metric] == pytest.approx(full[metric]), (name, metric)
        if found:
            assert found["wrong_language"] <= 0.1, name
    assert "bleu_char" in scores["sdrrl_flores_eng_Latn-tha_Thai"]
    assert "bleu_13a" not in scores["sdrrl_flores_eng_Latn-jpn_Jpan"]


@needs_data
def test_an_empty_answer_is_worth_nothing(monkeypatch):
    for name, found in run(nothing, tasks_with_data(), monkeypatch).items():
        if found:
            assert found.pop("wrong_language") == 1, name
            assert set(found.values()) == {0}, name


@needs_data
def test_an_echo_is_no_translation_summary_or_answer(monkeypatch):
    scores = run(echo, tasks_with_data(), monkeypatch)
    assert scores["sdrrl_flores_en_xx"]["wrong_language"] >= 0.95
    assert scores["sdrrl_flores_xx_en"]["wrong_language"] >= 0.95
    for name, found in scores.items():
        assert found.get("chrf++", 0) < 40, name
        assert found.get("rougeL", 0) < 0.35, name
        assert found.get("f1", 0) < 0.35 and found.get("em", 0) <= 0.05, name
        if name.startswith("sdrrl_xlsum_"):
            assert found["wrong_language"] <= 0.1, name


@needs_data
def test_english_answers_are_in_the_wrong_language(monkeypatch):
    scores = run(english, tasks_with_data(), monkeypatch)
    assert scores["sdrrl_flores_eng_Latn-tha_Thai"]["wrong_language"] == 1
    for name, found in scores.items():
        if found:
            right = name.endswith(("_en", "-eng_Latn"))
            assert found["wrong_language"] == (0 if right else 1), name


@needs_data
def test_the_prompts_are_in_the_language_and_hold_the_text(monkeypatch):
    seen = []
    run(
        lambda doc, prompt: seen.append((doc, prompt)) or "x",
        ["sdrrl_xlsum_hi", "sdrrl_mkqa_ja"],
        monkeypatch,
        limit=2,
    )
    for doc, prompt in seen:
        text = doc.get("text") or doc["question"]
        assert text in prompt and (PROMPTS["hi"]["summarize"] in prompt or PROMPTS["ja"]["short_answer"] in prompt)


# ---------------------------------------------------------------- FLORES-200


PAIR = {"src": "eng_Latn", "tgt": "jpn_Jpan", "src_name": "English", "tgt_name": "Japanese", "language": "ja"}


def test_bleu_of_good_japanese_is_the_one_by_characters():
    said, right = "東京の気温は今日二十度まで上がりました。", "東京の気温は今日、二十度まで上がった。"
    scores = flores.process_results({"tgt": right, "language": "ja", "script": "Jpan"}, [f" {said}\n"])
    assert scores["chrf++"] == (right, said) and scores["wrong_language"] == 0 and "bleu_13a" not in scores
    expected = sacrebleu.corpus_bleu([said], [[right]], tokenize="char").score
    assert flores.bleu_char([scores["bleu_char"]]) == pytest.approx(expected) and expected > 50
    assert sacrebleu.corpus_bleu([said], [[right]]).score < 1


def test_zero_width_spaces_do_not_count():
    scores = flores.process_results({"tgt": "ទឹក\u200bភ្លៀង", "language": "km", "script": "Khmr"}, ["ទឹកភ្លៀង"])
    assert scores["chrf++"] == ("ទឹកភ្លៀង", "ទឹកភ្លៀង")


def test_bleu_of_portuguese_is_that_of_sacrebleu():
    said, right = "A casa é muito grande, disse ele.", "A casa era muito grande, disse ela."
    pair = flores.process_results({"tgt": right, "language": "pt", "script": "Latn"}, [said])["bleu_13a"]
    assert flores.bleu_13a([pair]) == pytest.approx(sacrebleu.corpus_bleu([said], [[right]]).score)


@needs_data
def test_standard_errors_take_seconds_and_reach_the_group(monkeypatch):
    # 100 bootstrap samples for lm-eval's own chrF++, and none for a BLEU that is not called "bleu"
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    results = simple_evaluate(Canned(echo), tasks=["sdrrl_flores_en_xx"], task_manager=manager, limit=3)
    scores = results["groups"]["sdrrl_flores_en_xx"]
    assert scores["chrf++_stderr,none"] > 0 and scores["wrong_language_stderr,none"] >= 0


def test_flores_files_are_read_by_line_feeds_only_and_must_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    folder = tmp_path / "flores200" / "devtest"
    folder.mkdir(parents=True)
    (folder / "eng_Latn.devtest").write_text("one\u2028still one\ntwo\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"jpn_Jpan\.devtest.*SDRRL_DATA_DIR"):
        flores.load_pair(**PAIR)
    (folder / "jpn_Jpan.devtest").write_text("一\n二\n", encoding="utf-8")
    rows = flores.load_pair(**PAIR, version=1.0, pretrained="x")["devtest"]
    assert rows["src"] == ["one\u2028still one", "two"] and rows["script"] == ["Jpan", "Jpan"]
    (folder / "jpn_Jpan.devtest").write_text("一\n", encoding="utf-8")
    with pytest.raises(ValueError, match="2 sentences in eng_Latn, but 1 in jpn_Jpan"):
        flores.load_pair(**PAIR)


@pytest.mark.parametrize("repository, column", [("facebook/flores", "sentence"), ("other/flores", "text")])
def test_flores_of_the_hub_is_ordered_by_id(repository, column, monkeypatch):
    monkeypatch.delenv("SDRRL_DATA_DIR", raising=False)
    monkeypatch.setenv("SDRRL_FLORES_REPO", repository)

    def load_dataset(name, code, **kwargs):
        assert name == repository and kwargs["split"] == "devtest"
        order = [1, 2] if code == "eng_Latn" else [2, 1]
        return datasets.Dataset.from_dict({"id": order, column: [f"{code} {i}" for i in order]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = flores.load_pair(**PAIR)["devtest"]
    assert rows["src"] == ["eng_Latn 1", "eng_Latn 2"] and rows["tgt"] == ["jpn_Jpan 1", "jpn_Jpan 2"]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_dict({"id": [1], "x": ["a"]}))
    with pytest.raises(ValueError, match="columns id, x, but .* SDRRL_FLORES_REPO"):
        flores.load_pair(**PAIR)


def test_gated_flores_says_what_to_do(monkeypatch):
    monkeypatch.delenv("SDRRL_DATA_DIR", raising=False)

    def load_dataset(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("gated")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        RuntimeError, match="(?s)archive .*accept the terms of .*facebook/flores .*hf auth login.*SDRRL_DATA_DIR"
    ):
        flores.sentences("eng_Latn")


def test_spbleu_fails_before_the_generation(tmp_path, monkeypatch):
    from sacrebleu.tokenizers import tokenizer_spm

    def download_file(*args):
        raise URLError("no network")

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "download_file", download_file)
    monkeypatch.setenv("SDRRL_SPBLEU", "1")
    with pytest.raises(RuntimeError, match="(?s)SDRRL_SPBLEU=1.*sentencepiece.*SACREBLEU"):
        flores.load_pair(**PAIR)


@needs_data
def test_spbleu_is_there_when_asked_for(tmp_path, monkeypatch):
    sentencepiece = pytest.importorskip("sentencepiece")
    from sacrebleu.tokenizers import tokenizer_spm

    text = data_dir() / "flores200" / "devtest" / "por_Latn.devtest"
    (tmp_path / "models").mkdir()
    prefix = tmp_path / "models" / "flores200sacrebleuspm"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), vocab_size=300, minloglevel=2, input_sentence_size=200
    )
    prefix.with_suffix(".model").rename(prefix)
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setenv("SDRRL_SPBLEU", "1")
    task = "sdrrl_flores_eng_Latn-por_Latn"
    assert run(reference, [task], monkeypatch, limit=3)[task]["spbleu"] == pytest.approx(100)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("\n\nO gato dorme.", "O gato dorme."),
        ("Here is the translation:\n\nO gato dorme.\n\nShall I go on?", "O gato dorme."),
        ("翻訳：\nO gato dorme.", "O gato dorme."),
        ("Ele disse:", "Ele disse:"),
        ("<think>The cat\n\nsleeps.</think>\n\nO gato dorme.", "O gato dorme."),
        ("The cat\nsleeps.</think>\nO gato dorme.", "O gato dorme."),  # opened by the chat template
        ("<think>The cat sleeps. O gato", ""),
        ("O gato\u2028dorme.", "O gato\u2028dorme."),
        (" \n", ""),
    ],
)
def test_the_translation_is_found_in_an_answer(answer, expected):
    scores = flores.process_results({"tgt": "O gato dorme.", "language": "pt", "script": "Latn"}, [answer])
    assert scores["chrf++"] == ("O gato dorme.", expected)


@needs_data
def test_no_line_break_ends_a_translation(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    names = ["sdrrl_flores_eng_Latn-por_Latn", "sdrrl_flores_eng_Latn-khm_Khmr"]
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False).load(names)["tasks"]
    settings = [tasks[name].config for name in names]
    assert [(c.generation_kwargs["until"], c.generation_kwargs["max_gen_toks"]) for c in settings] == [
        ([], 256),
        ([], 512),
    ]
    assert [c.num_fewshot for c in settings] == [0, 0]


def test_thoughts_are_no_part_of_a_summary_or_an_answer():
    doc = {"summary": "Кіт спить.", "answers": ["Oslo"], "language": "uk", "script": "Cyrl"}
    for before in ("<think>A cat.\nOslo?</think>\n", "A cat.\nOslo?</think>"):
        assert xlsum.process_results(doc, [before + "Кіт спить."])["rougeL"] == 1
        assert mkqa.process_results(doc, [before + "Oslo"])["em"] == 1
    assert xlsum.process_results(doc, ["<think>Кіт спить."])["rougeL"] == 0
    assert mkqa.process_results(doc, ["<think>Oslo"]) == {"f1": 0, "em": 0, "wrong_language": 1}


# ---------------------------------------------------------------- XL-Sum


TEXTS = [
    "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
    "東京タワーは昭和三十三年に完成した。",
    "Київ є столицею України.",
    "दिल्ली भारत की राजधानी है।",
    "ភ្នំពេញជារាជធានីនៃប្រទេសកម្ពុជា",
    "ရန်ကုန်မြို့",
    "القاهرة هي عاصمة مصر",
    "서울은 대한민국의 수도이다.",
    "北京是中国的首都。",
]


@pytest.mark.parametrize("text", TEXTS)
def test_identical_texts_have_rouge_1_in_every_script(text):
    scores = xlsum.ROUGE.score(text, text)
    assert all(score.fmeasure == 1 for score in scores.values())
    assert RougeScorer(["rougeL"]).score(text, text)["rougeL"].fmeasure == 0, "why there is an own tokenizer"


def test_rouge_of_plain_english_is_that_of_rouge_score():
    pairs = [("The cat sat on the mat.", "A cat sat on a mat!"), ("In 2020, 3 men won", "3 men have won in 2020")]
    for pair in pairs:
        assert xlsum.ROUGE.score(*pair) == RougeScorer(["rouge1", "rouge2", "rougeL"]).score(*pair)


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("Čeština má HÁČKY!", ["čeština", "má", "háčky"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("東京タワー2号 OK", ["東", "京", "タ", "ワ", "ー", "2", "号", "ok"]),
        ("ดีครับ", ["ดี", "ค", "รั", "บ"]),
        ("ＡＢＣ don't", ["abc", "don", "t"]),
        ("ទឹក\u200bភ្លៀង", ["ទឹ", "ក", "ភ្", "លៀ", "ង"]),
        ("…", []),
    ],
)
def test_rouge_sees_words_or_characters(text, tokens):
    assert xlsum.UnicodeTokenizer().tokenize(text) == tokens


def test_rouge_by_hand():
    # 4 of 5 words in common, all in order: precision 4/5, recall 4/4
    assert xlsum.ROUGE.score("уряд ухвалив новий закон", "уряд сьогодні ухвалив новий закон")[
        "rougeL"
    ].fmeasure == pytest.approx(8 / 9)
    # Of 3 characters, 2 in common
    assert xlsum.ROUGE.score("北京市", "北海市")["rouge1"].fmeasure == pytest.approx(2 / 3)


def test_articles_come_from_the_converted_branch_and_can_be_shortened(monkeypatch):
    monkeypatch.delenv("SDRRL_DATA_DIR", raising=False)
    article = {"id": "1", "url": "u", "title": "t", "summary": "s", "text": "long text"}

    def load_dataset(name, **kwargs):
        assert kwargs["data_files"] == {"test": "thai/test/0000.parquet"}
        assert kwargs["revision"] == "refs/convert/parquet"
        return datasets.Dataset.from_list([article])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = xlsum.load("thai", "th", "Thai", version=1.0)["test"]
    assert rows[0] == {"text": "long text", "summary": "s", "language": "th", "script": "Thai"}
    assert xlsum.load("thai", "th", "Thai", max_article_chars="4")["test"]["text"] == ["long"]
    del article["summary"]
    with pytest.raises(ValueError, match="no summary"):
        xlsum.load("thai", "th", "Thai")


def test_unicode_rouge_is_an_evaluate_metric():
    metric = evaluate.load(str(TASKS / "xlsum" / "unicode_rouge"))
    scores = metric.compute(predictions=TEXTS + ["б"], references=TEXTS + ["а"])
    assert scores == {name: pytest.approx(0.9) for name in ("rouge1", "rouge2", "rougeL")} | {
        "rouge2": scores["rouge2"]
    }
    with_class = [
        (TASKS / "xlsum" / file).read_text(encoding="utf-8") for file in ("utils.py", "unicode_rouge/unicode_rouge.py")
    ]
    blocks = [text[text.index("class UnicodeTokenizer") :].split("\n\n\n")[0] for text in with_class]
    assert blocks[0] == blocks[1]


@needs_data
def test_unicode_rouge_works_in_other_tasks_of_lm_eval(tmp_path, monkeypatch):
    data = write_json_lines(tmp_path / "data.jsonl", [{"q": text, "a": text} for text in TEXTS])
    task = {
        "task": "copy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "q",
        "doc_to_target": "a",
        "metric_list": [
            {
                "metric": str(TASKS / "xlsum" / "unicode_rouge"),
                "hf_evaluate": True,
                "aggregation": "mean",
                "higher_is_better": True,
            }
        ],
        "metadata": {"version": 1.0},
    }
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    scores = run(lambda doc, prompt: prompt, ["copy"], monkeypatch, folder=tmp_path)
    assert scores["copy"] == {"rouge1": 1, "rouge2": 1, "rougeL": 1}


# ---------------------------------------------------------------- MKQA


@pytest.mark.parametrize(
    "language, said, right, f1",
    [
        ("en", "The Beatles!", "beatles", 1),
        ("en", "in the year 1999", "1999", 0.5),  # in year 1999: precision 1/3, recall 1
        ("de", "Die Ärzte", "ärzte", 1),
        ("es", "El Quijote", "quijote", 1),
        ("fr", "L’Odyssée", "odyssée", 1),
        ("it", "l'Italia", "Italia", 1),
        ("pt", "a Torre de Belém", "Torre de Belém", 1),
        ("pt", "Torre Eiffel", "a Torre de Belém", 0.4),  # 1 of 2, 1 of 3
        ("da", "en by", "by", 1),
        ("nb", "et fjell", "fjell", 1),
        ("fi", "Helsinki.", "helsinki", 1),
        ("fi", "yksi koira", "koira", 1),
        ("it", "dell'Italia", "Italia", 1),
        ("it", "degl’Italiani", "degli Italiani", 1),
        ("it", "la torre del mare", "torre mare", 1),
        ("it", "delfino", "fino", 0),  # not a beginning, as in the official evaluation
        ("hu", "a Duna", "Duna", 1),
        ("vi", "những bông hoa", "bông hoa", 1),
        ("ar", "القاهرة", "قاهرة", 1),
        ("ar", "مقالة", "مقالة", 1),  # ال inside a word stays
        ("tr", "Ankara'da", "ankarada", 1),
        ("ru", "«Война и мир»", "война и мир", 1),
        ("pl", "Łódź", "łódź", 1),
        ("ko", "서울 시", "서울", 2 / 3),
        ("ja", "ポール・ザーディン", "ポールザーディン", 1),
        ("ja", "東京都", "東京", 0.8),  # by characters: 2/3, 1
        ("zh", "保罗", "保尔", 0.5),
        ("th", "กรุง", "กรุงเทพ", 8 / 11),  # 4 of 4, 4 of 7
        ("km", "ក ខ", "កខ", 1),
    ],
)
def test_f1_by_hand(language, said, right, f1):
    assert mkqa.f1(mkqa.tokens(said, language), mkqa.tokens(right, language)) == pytest.approx(f1)


@pytest.mark.parametrize("language, right", [("en", "The The"), ("en", "?"), ("pt", "O"), ("ja", "！"), ("ar", "ال")])
def test_an_empty_answer_is_never_right(language, right):
    doc = {"answers": [right], "language": language, "script": "Latn"}
    for nothing in ("", " \n"):
        assert mkqa.process_results(doc, [nothing]) == {"f1": 0, "em": 0, "wrong_language": 1}
    assert mkqa.process_results(doc, [right]) == {"f1": 1, "em": 1, "wrong_language": 0}
    assert mkqa.process_results(doc, ["Oslo"])["f1"] == 0


@pytest.mark.parametrize("row", [{"answers": []}, {"answers": [None]}, {"answers": "Oslo"}, {"question": ""}, {}])
def test_rows_that_cannot_be_scored_are_named(row, tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    (tmp_path / "mkqa").mkdir()
    good = {"question": "x", "answers": ["Oslo"]}
    write_json_lines(tmp_path / "mkqa" / "nb.jsonl", [good, good | row if row else {"question": "y"}])
    with pytest.raises(ValueError, match=r"mkqa/nb\.jsonl, (row|line) 2\b.*(question|answers)"):
        mkqa.load("no", "nb", "Latn")


def test_the_best_right_answer_counts_and_the_first_line_only():
    doc = {"answers": ["1999-01-31", "25.0 episodes"], "language": "en", "script": "Latn"}
    right = {"f1": 1.0, "em": 1.0, "wrong_language": 0.0}
    assert mkqa.process_results(doc, ["\n 25 episodes. \nOr maybe 26?"]) == right
    assert mkqa.process_results(doc, ["25.0 episodes"]) == right
    assert mkqa.process_results(doc, ["Maybe 26\n25 episodes"])["f1"] == 0


def test_a_right_answer_is_in_the_language_whatever_its_script():
    doc = {"answers": ["บีบีซี", "BBC"], "language": "th", "script": "Thai"}
    assert mkqa.process_results(doc, ["BBC"])["wrong_language"] == 0
    assert mkqa.process_results(doc, ["1999"])["wrong_language"] == 0
    assert mkqa.process_results(doc, ["The British one"])["wrong_language"] == 1


def test_mkqa_of_the_hub_leaves_out_what_cannot_be_scored(tmp_path, monkeypatch):
    monkeypatch.delenv("SDRRL_DATA_DIR", raising=False)
    given = {
        "entity": {"type": "entity", "text": "Oslo", "aliases": ["Kristiania"]},
        "number": {"type": "number", "text": "3.0"},
        "unanswerable": {"type": "unanswerable", "text": None},
        "long_answer": {"type": "long_answer", "text": None},
    }
    items = [{"queries": {"no": f"{kind}?"}, "answers": {"no": [answer]}} for kind, answer in given.items()]
    file = tmp_path / "mkqa.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
    monkeypatch.setattr(datasets.DownloadManager, "download", lambda self, url: str(file))
    rows = mkqa.load("no", "nb", "Latn", version=1.0)["test"]
    assert rows["question"] == ["entity?", "number?"]
    assert rows["answers"] == [["Oslo", "Kristiania"], ["3.0"]]


def test_missing_files_and_columns_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"mkqa/ja\.jsonl"):
        mkqa.load("ja", "ja", "Jpan")
    (tmp_path / "mkqa").mkdir()
    write_json_lines(tmp_path / "mkqa" / "ja.jsonl", [{"question": "x"}])
    with pytest.raises(ValueError, match="no answers"):
        mkqa.load("ja", "ja", "Jpan")


# ---------------------------------------------------------------- prompts


NEEDED_BY = {
    "choose": ("belebele", "mmmlu", "xnli", "xstorycloze"),
    "premise": ("xnli",),
    "hypothesis": ("xnli",),
    "nli": ("xnli",),
    "nli_choices": ("xnli",),
    "story": ("xstorycloze",),
    "short_answer": ("mkqa",),
    "summarize": ("xlsum",),
}


@pytest.mark.parametrize("tag", LANGUAGES)
def test_prompts_are_there_in_script_and_language(tag):
    facts, prompts = LANGUAGES[tag], PROMPTS.get(tag, {})
    needed = {key for key, benchmarks in NEEDED_BY.items() if any(name in facts for name in benchmarks)}
    assert set(prompts) == needed
    texts = [text for value in prompts.values() for text in ([value] if isinstance(value, str) else value)]
    assert len(set(texts)) == len(texts) and len(prompts.get("nli_choices", "123")) == 3
    script = facts["flores"].partition("_")[2]
    for text in texts:
        assert text == unicodedata.normalize("NFC", text).strip()
        letters = [unicodedata.name(char).split(" ")[0] for char in text if char.isalpha()]
        assert all(name in flores.SCRIPTS[script] for name in letters), text
        assert "{" not in text  # they stand in templates
    if texts:
        assert flores.wrong_language(" ".join(texts), tag, script) == 0
