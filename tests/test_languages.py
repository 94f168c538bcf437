import pytest
from conftest import data_dir

from sdrrl_trl import SDRRLError
from sdrrl_trl.languages import LANGUAGES, get_language, in_language
from sdrrl_trl.transfer.prompts import answer_hint, completion_prompt, translation_prompt


@pytest.mark.parametrize(
    "tag, expected", [("pt", "pt"), ("pt-BR", "pt"), ("por", "pt"), ("no", "nb"), ("nob", "nb"), ("zh-Hans", "zh")]
)
def test_any_spelling_of_a_tag_is_understood(tag, expected):
    assert get_language(tag).tag == expected


@pytest.mark.parametrize("tag", ["xx", "", "not a tag", "portuguese", "12"])
def test_unknown_languages_are_refused_by_name(tag):
    with pytest.raises(SDRRLError, match=repr(tag)):
        get_language(tag)


def test_the_name_of_a_language_is_told_its_tag():
    with pytest.raises(SDRRLError, match="that of Portuguese is `pt`"):
        get_language("portuguese")


@pytest.mark.parametrize(
    "asked, answered, hint", [("pt", "en", "Responda em inglês."), ("te", "th", "Answer in Thai.")]
)
def test_the_hint_is_in_the_language_of_the_question_or_in_english(asked, answered, hint):
    assert answer_hint(asked, answered) == hint


def test_the_languages_of_the_paper_and_of_multijail_have_their_own_wording_with_the_name_of_the_language():
    for tag in "cs da uk bg fi hu nb id ja ko pt sl vi pl th km fr zh it ar bn sw jv".split():
        assert answer_hint(tag, "en") != answer_hint("te", "en") and "{}" not in answer_hint(tag, "en")
        assert len({completion_prompt(other, n) for other in (tag, "en") for n in (0, 1)}) == 4
        assert translation_prompt(tag, "en", 0) != translation_prompt(tag, "en", 1)


@pytest.mark.skipif(data_dir() is None, reason="no benchmark data")
def test_languages_are_told_apart_on_flores():
    for tag, language in LANGUAGES.items():
        file = data_dir() / "flores200" / "devtest" / f"{language.flores}.devtest"
        if file.exists():
            sentences = file.read_text(encoding="utf-8").splitlines()[:100]
            assert sum(in_language(sentence, tag) for sentence in sentences) >= 95, tag
            wrong = "en" if tag != "en" else "pt"
            assert sum(in_language(sentence, wrong) for sentence in sentences) <= 2, tag
