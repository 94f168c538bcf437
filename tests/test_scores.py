"""How answers are scored: which choice they name, their language, translations, summaries and short answers."""

import math

import lm_eval
import pytest
import sacrebleu
import yaml
from conftest import ROOT, cases, data_dir
from fake_hub import PROMPTS
from lm_eval.tasks import TaskManager
from rouge_score.rouge_scorer import RougeScorer
from scripted import Scripted, plain, right, run

from sdrrl_trl.evaluation.heldout import process_generation
from sdrrl_trl.evaluation.suite import tasks_dir
from sdrrl_trl.languages import LANGUAGES, UNSPACED, is_in_language
from sdrrl_trl.tasks import text as texts
from sdrrl_trl.tasks.choice import score, score_likelihoods, score_pair, score_published
from sdrrl_trl.tasks.reading import choose
from sdrrl_trl.tasks.thoughts import without_thoughts


needs_data = pytest.mark.skipif(data_dir() is None, reason="no benchmark data")

# ---- Choices

CITIES = ["Lisbon", "Porto", "Faro", "Braga"]
CHOICES = yaml.safe_load((ROOT / "tests" / "choice_cases.yaml").read_text(encoding="utf-8"))
CHOICES = [(letter, answer) for of in CHOICES.values() for letter, answers in of.items() for answer in answers]


@pytest.mark.parametrize(("letter", "answer"), CHOICES)
def test_the_choice_that_an_answer_names_is_found(letter, answer):
    found = choose(without_thoughts(answer), CITIES)
    assert (letter if found is None else "ABCD"[found]) == letter


@pytest.mark.parametrize("answer, choices, number", cases("choices_with_letters"))
def test_letters_and_numbers_in_the_texts_of_choices_are_no_choice(answer, choices, number):
    assert choose(answer, choices) == number


def test_a_letter_with_the_text_of_another_choice_is_counted_apart():
    doc = {"choices": ["It follows.", "It may or may not be true.", "It contradicts."], "gold": 2, "language": "en"}
    doc["script"] = "Latn"
    said = {"(C) It may or may not be true.": (1, 1), "(C) It contradicts.": (1, 0), "C, as it follows.": (1, 0)}
    for answer, expected in (said | {"It may or may not be true.": (0, 0)}).items():
        found = score(doc, [answer])
        assert (found["accuracy"], found["contradicts"]) == expected, answer


@pytest.mark.parametrize("answer", ["B", "**B**", "B,", "B。", "「B」", "（B）", "B. DNA"])
def test_the_letter_and_text_of_a_choice_are_in_no_wrong_language(answer):
    doc = {"choices": ["RNA", "DNA", "ATP", "GTP"], "gold": 1, "language": "ar", "script": "Arab"}
    scores = {"accuracy": 1.0, "invalid": 0.0, "contradicts": 0.0, "wrong_language": 0.0, "language_unknown": 1.0}
    assert score(doc, [answer]) == scores


@pytest.mark.parametrize("answer, first, alone", cases("published"))
def test_published_figures_have_two_readings_and_the_rates_of_no_answer(answer, first, alone):
    expected = {"accuracy_first": first == 1, "accuracy_alone": alone == 1}
    expected |= {"no_answer_first": first is None, "no_answer_alone": alone is None}
    assert score_published({"letters": "123", "gold": "2"}, [answer]) == expected


def test_a_likelihood_that_is_no_number_is_no_choice():
    def acc(gold, *values):
        return score_likelihoods({"gold": gold}, [(value, False) for value in values])["acc"]

    assert (acc(1, -3.0, -1.0), acc(0, -3.0, -1.0)) == (1, 0)
    assert (acc(0, -1.0, -1.0), acc(1, -1.0, -1.0)) == (1, 0)  # the first of equals, as in lm-eval
    assert acc(0, math.nan, math.nan) == acc(0, -1.0, math.nan) == 0


def test_a_broken_model_is_not_right_about_pairs_and_lengths_divide():
    doc = {"choices": ["short", "a long answer, naïve"], "gold": 1}
    for value in (math.nan, -math.inf, 0.0):
        assert set(score_pair(doc, [(value, False)] * 2).values()) == {0}
    assert score_pair(doc, [(-5.0, False), (-19.5, False)]) == {"acc": 0, "acc_norm": 1, "acc_bytes": 1}
    longer = score_pair(doc, [(-5.0, False), (-20.5, False)])
    assert longer == {"acc": 0, "acc_norm": 0, "acc_bytes": 1}  # ï: two bytes


# ---- Language


@pytest.mark.parametrize("text, tag, expected", cases("languages_of_answers"))
def test_short_empty_and_mixed_answers_are_judged_with_care(text, tag, expected):
    assert is_in_language(text, tag, LANGUAGES[tag].script) is {"yes": True, "no": False, "unknown": None}[expected]


# ---- Translations


@pytest.mark.parametrize("answer, expected", cases("translations_in_answers"))
def test_the_translation_is_found_in_an_answer(answer, expected):
    scores = texts.score_translation({"tgt": "O gato dorme.", "language": "pt", "script": "Latn"}, [answer])
    assert scores["chrf++"] == ("O gato dorme.", expected)


@pytest.mark.parametrize("tag, said, right, tokenizer", cases("translated_sentences"))
def test_bleu_and_chrf_are_those_of_sacrebleu_by_words_or_characters(tag, said, right, tokenizer):
    scores = texts.score_translation({"tgt": right, "language": tag, "script": LANGUAGES[tag].script}, [f" {said}\n"])
    assert scores.keys() == {"chrf++", "wrong_language", "language_unknown", f"bleu_{tokenizer}"}
    right = right.replace("\u200b", "")  # zero-width spaces, in Khmer, do not count
    assert scores["chrf++"] == (right, said) and scores["wrong_language"] == 0
    bleu = getattr(texts, f"bleu_{tokenizer}")([scores[f"bleu_{tokenizer}"]])
    assert bleu == pytest.approx(sacrebleu.corpus_bleu([said], [[right]], tokenize=tokenizer).score) and bleu > 30
    chrf = sacrebleu.corpus_chrf([said], [[right]], word_order=2).score
    assert texts.chrf_plus_plus([scores["chrf++"]]) == pytest.approx(chrf)


def test_thoughts_are_no_part_of_a_summary_or_an_answer():
    doc = {"summary": "Кіт спить.", "answers": ["Oslo"], "language": "uk", "script": "Cyrl"}
    for before in ("<think>A cat.\nOslo?</think>\n", "A cat.\nOslo?</think>"):
        assert texts.score_summary(doc, [before + "Кіт спить."])["rougeL"] == 1
        assert texts.score_short_answer(doc, [before + "Oslo"])["em"] == 1
    assert texts.score_summary(doc, ["<think>Кіт спить."])["rougeL"] == 0
    assert process_generation({"answer": "Oslo", "language": "nb"}, ["<think>a</think>Oslo"])["chrf++"][1] == "Oslo"
    assert texts.score_short_answer(doc, ["<think>Oslo"]) == NOTHING


@pytest.mark.parametrize("text, answer", cases("thoughts"))
def test_thoughts_are_taken_off_and_an_answer_about_their_tags_is_not(text, answer):
    assert without_thoughts(text) == answer


# ---- Summaries


@pytest.mark.parametrize("tag", ["ar", "hi", "ja", "km", "ko", "my", "th", "uk", "zh"])
def test_identical_texts_have_rouge_1_in_every_script(tag):
    text = PROMPTS[tag]["choose"]
    assert all(value.fmeasure == 1 for value in texts.ROUGE.score(text, text).values())
    assert RougeScorer(["rougeL"]).score(text, text)["rougeL"].fmeasure == 0, "why there is an own tokenizer"


def test_rouge_of_plain_english_is_that_of_rouge_score():
    pairs = [("The cat sat on the mat.", "A cat sat on a mat!"), ("In 2020, 3 men won", "3 men have won in 2020")]
    for pair in pairs:
        assert texts.ROUGE.score(*pair) == RougeScorer(["rouge1", "rouge2", "rougeL"]).score(*pair)


@pytest.mark.parametrize("text, tokens", cases("rouge_tokens"))
def test_rouge_sees_words_or_characters(text, tokens):
    assert texts.UnicodeTokenizer().tokenize(text) == tokens


def test_rouge_by_hand():
    # 4 of 5 words in common, all in order: precision 4/5, recall 4/4
    found = texts.ROUGE.score("уряд ухвалив новий закон", "уряд сьогодні ухвалив новий закон")
    assert found["rougeL"].fmeasure == pytest.approx(8 / 9)
    # Of 3 characters, 2 in common
    assert texts.ROUGE.score("北京市", "北海市")["rouge1"].fmeasure == pytest.approx(2 / 3)


# ---- Short answers

RIGHT = {"token_f1": 1, "em": 1, "wrong_language": 0, "language_unknown": 0}
NOTHING = {"token_f1": 0, "em": 0, "wrong_language": 1, "language_unknown": 0}


@pytest.mark.parametrize("line", (ROOT / "tests" / "short_answers.txt").read_text("utf-8").splitlines()[1:])
def test_f1_by_hand(line):
    language, said, right, f1, _ = line.split(" | ")
    unspaced = LANGUAGES[language].script in UNSPACED
    tokens = [texts.answer_tokens(text, language, unspaced) for text in (said, right)]
    assert texts.token_f1(*tokens) == pytest.approx(float(f1), abs=1e-6)


@pytest.mark.parametrize("language, right", cases("articles_alone"))
def test_an_empty_answer_is_never_right(language, right):
    doc = {"answers": [right], "language": language, "script": LANGUAGES[language].script}
    for nothing in ("", " \n"):
        assert texts.score_short_answer(doc, [nothing]) == NOTHING
    assert texts.score_short_answer(doc, [right]) == RIGHT
    assert texts.score_short_answer(doc, ["Oslo"])["token_f1"] == 0


def test_the_best_right_answer_counts_and_the_first_line_only():
    doc = {"answers": ["1999-01-31", "25.0 episodes"], "language": "en", "script": "Latn"}
    assert texts.score_short_answer(doc, ["\n 25 episodes. \nOr maybe 26?"]) == RIGHT
    assert texts.score_short_answer(doc, ["25.0 episodes"]) == RIGHT
    assert texts.score_short_answer(doc, ["Maybe 26\n25 episodes"])["token_f1"] == 0


@pytest.mark.parametrize("tag, right, said", cases("short_answers"))
def test_yes_and_no_in_the_language_and_numbers_in_any_digits_are_right(tag, right, said):
    doc = {"answers": [right], "language": tag, "script": LANGUAGES[tag].script}
    assert texts.score_short_answer(doc, [said])["em"] == 1
    assert texts.score_short_answer(doc | {"answers": ["7" if right in ("yes", "no") else "no"]}, [said])["em"] == 0


def test_a_right_answer_is_in_the_language_whatever_its_script():
    doc = {"answers": ["บีบีซี", "BBC"], "language": "th", "script": "Thai"}
    said = {"BBC": 0, "1999": 0, "The British one": 1}
    assert {answer: texts.score_short_answer(doc, [answer])["wrong_language"] for answer in said} == said


# ---- Whole tasks on real data


@pytest.fixture
def real_data(monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))


GENERATED = [f"sdrrl_{name}" for name in ("xnli_gen_th", "xstorycloze_gen_te", "mmmlu_gen_ko", "belebele_gen_en")]
TEXTS = ["sdrrl_flores_eng_Latn-jpn_Jpan", "sdrrl_flores_tha_Thai-eng_Latn", "sdrrl_xlsum_hi", "sdrrl_mkqa_pt"]
FULL = {"chrf++": 100, "bleu_13a": 100, "bleu_char": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1, "token_f1": 1}
FULL |= {"accuracy": 1, "acc": 1, "em": 1, "invalid": 0, "contradicts": 0}


@needs_data
def test_the_right_answers_get_full_marks_and_others_get_none(real_data):
    for name, scores in run(lambda doc, _: right(doc), GENERATED + TEXTS)[0].items():
        assert scores.pop("wrong_language") <= 0.1 and scores.pop("language_unknown") is not None, name
        assert scores == pytest.approx({metric: FULL[metric] for metric in scores}), name
    for name, scores in run(lambda *_: "", GENERATED + TEXTS)[0].items():
        assert scores.pop("wrong_language") == 1 and scores.pop("invalid", 1) == 1, name  # and known to be so
        assert set(scores.values()) == {0}, name
    sentence = "This is an answer in English, whatever the language of the question may have been."
    for name, scores in run(lambda *_: sentence, GENERATED + TEXTS)[0].items():
        assert scores["wrong_language"] == float(not name.endswith(("_en", "-eng_Latn"))), name
        assert scores.get("invalid", 1) == 1 and scores.get("chrf++", 0) < 30, name


@needs_data
def test_groups_have_means_and_standard_errors_within_seconds(real_data, monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    # 100 bootstrap samples of the corpus, as for lm-eval's own chrF++, and none of BLEU
    options = {"tasks": ["sdrrl_flores_paper_en_xx"], "task_manager": manager, "limit": 3, "bootstrap_iters": 100}
    results = lm_eval.simple_evaluate(Scripted(lambda doc, _: doc["src"]), **options)
    leaves = {plain(name): scores for name, scores in results["results"].items() if "-" in name}
    group = results["groups"]["sdrrl_flores_paper_en_xx"]
    assert len(leaves) == 16 and all("bleu_13a,none" in s or "bleu_char,none" in s for s in leaves.values())
    assert group["chrf++,none"] == pytest.approx(sum(s["chrf++,none"] for s in leaves.values()) / 16)
    assert group["chrf++_stderr,none"] > 0 and group["wrong_language_stderr,none"] >= 0
