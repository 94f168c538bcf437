import pytest
from conftest import cases

from sdrrl_trl.engines import Generation
from sdrrl_trl.transfer.filters import is_repetitive, reject_answer, reject_translation


GOOD = "The sky looks blue because the air scatters blue light more than red light."
BOM = "O céu parece azul porque o ar espalha mais a luz azul do que a luz vermelha."


@pytest.mark.parametrize(
    "answer, reason",
    [
        (Generation(GOOD, "stop"), None),
        (Generation("", "stop"), "empty"),
        (Generation(GOOD, "length"), "truncated"),
        (Generation(GOOD, "content_filter"), "content_filter"),
        (Generation("", "prompt_too_long"), "question_too_long"),
        (Generation("I'm sorry, but I cannot help with that.", "stop"), "refusal"),
        (Generation("I am very happy. " * 20, "stop"), "repetition"),
        (Generation(BOM, "stop"), "wrong_language"),
    ],
)
def test_a_bad_answer_is_rejected_with_its_reason(answer, reason):
    assert reject_answer(answer, "en") == reason


@pytest.mark.parametrize("original, translation, reason", cases("translations"))
def test_a_bad_translation_is_rejected_with_its_reason(original, translation, reason):
    assert reject_translation(original, translation, "pt") == reason


def test_loops_are_seen_in_scripts_without_spaces_and_lists_are_no_loops():
    assert is_repetitive("天気がいい" * 20, spaces=False)
    assert not is_repetitive("".join(f"- item number {i}: {i * i}\n" for i in range(10)), spaces=True)
