import pytest

from sdrrl_trl.engines import Generation
from sdrrl_trl.transfer.filters import is_repetitive, reject_answer, reject_translation


GOOD = "The sky looks blue because the air scatters blue light more than red light."
BOM = "O céu parece azul porque o ar espalha mais a luz azul do que a luz vermelha."


def test_a_good_answer_and_a_good_translation_pass():
    assert reject_answer(Generation(GOOD, "stop", 20), "en") is None
    assert reject_translation(GOOD, BOM, "pt") is None
    assert reject_translation("42", "42", "pt") is None


@pytest.mark.parametrize(
    "answer, reason",
    [
        (Generation("", "stop", 0), "empty"),
        (Generation(GOOD, "length", 128), "truncated"),
        (Generation("I am very happy. " * 20, "stop", 80), "repetition"),
        (Generation(BOM, "stop", 20), "wrong_language"),
    ],
)
def test_a_bad_answer_is_rejected_with_its_reason(answer, reason):
    assert reject_answer(answer, "en") == reason


@pytest.mark.parametrize(
    "translation, reason",
    [
        (" ", "empty"),
        (GOOD, "untranslated"),
        ("O céu.", "length_ratio"),
        ("muito bem " * 20, "repetition"),
        ("The heavens appear blue since the air scatters blue light most of all.", "wrong_language"),
    ],
)
def test_a_bad_translation_is_rejected_with_its_reason(translation, reason):
    assert reject_translation(GOOD, translation, "pt") == reason


def test_loops_are_seen_in_scripts_without_spaces_and_lists_are_no_loops():
    assert is_repetitive("天気がいい" * 20, spaces=False)
    assert not is_repetitive("".join(f"- item number {i}: {i * i}\n" for i in range(10)), spaces=True)
