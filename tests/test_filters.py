import pytest
from conftest import cases

from sdrrl_trl.engines import Generation
from sdrrl_trl.transfer.filters import is_repetitive, reject_answer, reject_translation


@pytest.mark.parametrize("text, finish_reason, reason", cases("answers"))
def test_a_bad_answer_is_rejected_with_its_reason(text, finish_reason, reason):
    assert reject_answer(Generation(text, finish_reason), "en") == reason


@pytest.mark.parametrize("original, translation, reason", cases("translations"))
def test_a_bad_translation_is_rejected_with_its_reason(original, translation, reason):
    assert reject_translation(original, translation, "pt") == reason


def test_loops_are_seen_in_scripts_without_spaces_and_lists_are_no_loops():
    assert is_repetitive("天気がいい" * 20, spaces=False)
    assert not is_repetitive("".join(f"- item number {i}: {i * i}\n" for i in range(10)), spaces=True)
