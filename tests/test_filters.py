import random
import re
import time
from functools import partial

import pytest
from conftest import cases, data_dir

from sdrrl_trl.engines import Generation
from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.filters import (
    changed_numbers,
    is_repetitive,
    reject_answer,
    reject_task,
    reject_translation,
)
from sdrrl_trl.transfer.parallel import reject_sentence
from sdrrl_trl.transfer.rows import Pair
from sdrrl_trl.transfer.segment import segment


translation_cases = partial(cases, file="translation_cases.yaml")


@pytest.mark.parametrize("code", translation_cases("code"))
def test_code_without_a_fence_is_rejected_where_its_words_would_be_translated(code):
    sentences = [text for part in segment(code, ".!?…") if part.translate for text in (code, f"See:\n\n{code}\n\nSo.")]
    assert all(reject_translation(text, text, "pt") == "code_without_fence" for text in sentences)


@pytest.mark.parametrize("text", [*translation_cases("prose"), "Use:\n\n```\nimport os\n```\n\nor `a => b`."])
def test_prose_that_begins_like_code_is_not(text):
    assert reject_translation(f"{text}\nmore of it", "Algo mais", "pt") != "code_without_fence"


@pytest.mark.parametrize("text, finish_reason, reason", cases("answers"))
def test_a_bad_answer_is_rejected_with_its_reason(text, finish_reason, reason):
    assert reject_answer(Generation(text, finish_reason), "en") == reason


@pytest.mark.parametrize("unit", ["a(", "a.b(", "a[", "x = ", "{:", "a::", "if (", "a\n", "    a\n", "Sim. ", "1,"])
def test_no_text_takes_more_than_linear_time(unit):
    start = time.perf_counter()
    reject_translation(unit * 50_000, unit * 50_000, "pt")
    assert time.perf_counter() - start < 4


def test_loops_are_seen_in_scripts_without_spaces_and_lists_are_no_loops():
    assert is_repetitive("天気がいい" * 20, spaces=False)
    assert not is_repetitive("".join(f"- item number {i}: {i * i}\n" for i in range(10)), spaces=True)


@pytest.mark.parametrize("language, original, translation, reason", translation_cases("translations"))
def test_a_bad_translation_is_rejected_by_what_a_translator_may_change(language, original, translation, reason):
    assert reject_translation(original, translation, language) == reason


@pytest.fixture(scope="module")
def flores():
    """Every 20th sentence of FLORES-200, by the tags of all languages of the table that are there."""
    if data_dir() is None:
        pytest.skip("no benchmark data")
    files = {tag: data_dir() / "flores200" / "devtest" / f"{its.flores}.devtest" for tag, its in LANGUAGES.items()}
    files = {tag: file for tag, file in files.items() if file.exists()}
    return {tag: file.read_text(encoding="utf-8").splitlines()[::20] for tag, file in files.items()}


@pytest.mark.parametrize("source", ["en", "zh", "km"])
def test_human_translations_pass_and_cut_or_repeated_ones_do_not(flores, source):
    for tag in flores.keys() - {source}:
        for one, other in ((source, tag), (tag, source)):
            pairs = list(zip(flores[one], flores[other], strict=True))
            rows = [Pair("p", other, (a,), (b,), is_sentence=True) for a, b in pairs]
            found = [reject_sentence(row, one) for row in rows]
            assert "code_without_fence" not in found
            assert found.count("length_ratio") <= 0.02 * len(pairs) and found.count("numbers") <= 0.04 * len(pairs)
            cut = [reject_translation(a, b[: len(b) // 5], other) for a, b in pairs]
            assert cut.count("length_ratio") + cut.count("numbers") >= 0.85 * len(pairs), (one, other)
            repeated = [reject_translation(a, f"{b} {b} {b} {b}", other) for a, b in pairs]
            assert repeated.count(None) <= 0.02 * len(pairs)


def test_sentences_that_were_not_translated_are_found(flores):
    for tag in flores.keys() - {"en"}:
        assert all(reject_translation(text, text, tag) for text in flores["en"])


def test_a_changed_digit_is_found(flores):
    rng, found = random.Random(0), []
    for tag in ("es", "zh", "ar", "th"):
        for original, text in zip(flores["en"], flores[tag], strict=True):
            if digits := list(re.finditer(r"\d", text)):
                spot = rng.choice(digits)
                changed = (int(spot[0]) + rng.randint(1, 9)) % 10
                found.append(changed_numbers(original, f"{text[: spot.start()]}{changed}{text[spot.end() :]}"))
    assert sum(found) >= 0.8 * len(found)


@pytest.mark.parametrize("question, answer, new_question, new_answer, is_bound", translation_cases("tasks"))
def test_tasks_on_the_words_of_a_language_are_not_translated(question, answer, new_question, new_answer, is_bound):
    found = reject_task((question, answer), (new_question, new_answer), "en")
    assert found == ("source_bound" if is_bound else None)


@pytest.mark.parametrize("text, refuses", translation_cases("refusals"))
def test_refusals_are_told_from_stories_that_apologize_and_kept_on_demand(text, refuses):
    answer = Generation(text, "stop")
    assert reject_answer(answer, "en") == ("refusal" if refuses else None)
    assert reject_answer(answer, "en", keep_refusals=True) is None
