import json

import pytest
from conftest import data_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.code_switch import CodeSwitcher
from sdrrl_trl.transfer.lexicon import lexicon_of, read_lexicon, reverse_lexicon, vocabulary


LEXICON = {"dog": "cão", "house": "casa", "new york": "Nova Iorque", "quickly": "depressa", "sky": "céu"}


def switch(text, lexicon=LEXICON, source="en", target="pt", rate=1.0, row="r", seed=42):
    return CodeSwitcher(lexicon, source, target, rate, seed).switch(text, row)


def test_whole_words_are_switched_in_the_case_of_the_original():
    assert switch("The dog, the Dog and the DOG.").text == "The cão, the Cão and the CÃO."
    assert switch("hotdog doggy dog's houses").n_switched == 0


def test_longer_entries_come_first_and_count_once():
    result = switch("New York has a sky.", LEXICON | {"new": "novo", "york": "x"})
    assert result.text == "Nova Iorque has a céu." and (result.n_switched, result.n_words) == (2, 5)
    assert switch("New. York", LEXICON).n_switched == 0  # not one after the other


def test_code_urls_and_placeholders_are_never_switched():
    text = "Run `dog house` at https://dog.com/house for {dog}.\n\n```\ndog\n```\nThe dog."
    assert switch(text).text == text.replace("The dog.", "The cão.")


@pytest.mark.parametrize(
    "text, lexicon, source, target, expected",
    [
        ("天空是蓝色的。", {"天空": "sky", "蓝色": "blue"}, "zh", "en", "sky是blue的。"),
        ("ฉันรักแมว", {"แมว": "cat", "แม": "x"}, "th", "en", "ฉันรักcat"),
        ("猫が好きです。", {"猫": "cat", "好き": "like"}, "ja", "en", "猫がlikeです。"),  # one character is too short
        ("the cat", {"cat": "猫"}, "en", "ja", "the 猫"),
    ],
)
def test_languages_without_spaces_are_matched_by_entries(text, lexicon, source, target, expected):
    assert switch(text, lexicon, source, target).text == expected


def test_the_rate_is_the_share_of_the_words_with_an_entry_and_at_least_one_is_switched():
    text = "dog house sky quickly " * 500
    assert switch(text, rate=0.3).n_switched == pytest.approx(600, abs=75)
    assert switch("The dog.", rate=0.01).n_switched == 1
    assert switch(text, rate=0.0).text == text


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(["en", "zh", "th", "pt"]))
def test_text_without_an_entry_is_left_byte_for_byte(text, source):
    assert switch(text, {"qqqqqqq": "x"}, source).text == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["dog", "Sky", "`dog`", "{dog}", "a", "\n", " ", ",", "é", "https://dog.com ", "# "])))
def test_the_same_row_is_switched_alike_and_all_else_stays(pieces):
    text = "".join(pieces)
    result = switch(text, rate=0.5)
    assert result == switch(text, rate=0.5)
    back = result.text.replace("cão", "dog").replace("Céu", "Sky").replace("céu", "sky")
    assert back == text


def test_other_rows_and_seeds_are_switched_otherwise():
    text = "dog house sky quickly " * 5
    assert len({switch(text, rate=0.5, row=str(i)).text for i in range(5)}) == 5
    assert switch(text, rate=0.5, seed=1) != switch(text, rate=0.5, seed=2)


def write(tmp_path, text):
    (tmp_path / "lexicon.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "lexicon.txt")


@pytest.mark.parametrize(
    "text",
    ["dog\tcão\ndog\tcachorro\nhouse\tcasa\n", "dog cão\nhouse casa\n", "cão @ dog\ncasa @ house\n"],
    ids=["tsv", "muse", "muse reversed"],
)
def test_lexicons_of_all_forms_are_read_with_the_first_sense(tmp_path, text):
    assert read_lexicon(write(tmp_path, text), "en", "pt") == {"dog": "cão", "house": "casa"}


def test_function_words_numbers_and_copies_are_left_out(tmp_path):
    lines = ["the\to", "a\tum", "x\ty", "10\tdez", "abc\tABC", "dog\tcão (animal); cachorro", "sky\t---"]
    assert read_lexicon(write(tmp_path, "\n".join(lines)), "en", "pt") == {"dog": "cão"}


def test_a_broken_lexicon_is_refused_with_file_and_line(tmp_path):
    with pytest.raises(SDRRLError, match="lexicon.txt, line 2: not an entry; 2 of 3"):
        read_lexicon(write(tmp_path, "dog\tcão\n\t\tx\nno tab here at all\n"), "en", "pt")
    many = "\n".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}\tx{i}" for i in range(300)) + "\n\tx\n"
    assert len(read_lexicon(write(tmp_path, many), "en", "pt")) == 300  # one of 301 is forgiven
    with pytest.raises(SDRRLError, match="no usable entry"):
        read_lexicon(write(tmp_path, "the\to\n"), "en", "pt")
    with pytest.raises(SDRRLError, match="Cannot read"):
        read_lexicon(str(tmp_path / "missing"), "en", "pt")


def test_a_lexicon_is_made_of_the_words_of_the_texts():
    words = vocabulary(["The dog saw the `cat` and the dog.", "A dog saw the bird"], "en")
    assert words == ["dog", "saw", "bird"]
    made = lexicon_of(words, ["Cão.", "saw", "um pássaro que voa bem alto"])
    assert made == {"dog": "cão"}
    assert reverse_lexicon({"dog": "cão", "hound": "cão"}) == {"cão": "dog"}
    with pytest.raises(SDRRLError, match="spaces between words"):
        vocabulary(["天空"], "zh")


@pytest.mark.skipif(data_dir() is None, reason="no benchmark data")
def test_real_lexicons_switch_real_questions():
    folder = data_dir()
    lines = (folder / "instructions" / "alpaca_1000.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    questions = [json.loads(line)["instruction"] for line in lines]
    for file, target, least in (("eng-por", "pt", 0.9), ("eng-spa", "es", 0.8), ("eng-swh", "sw", 0.4)):
        lexicon = read_lexicon(str(folder / "lexicons" / f"freedict.{file}.tsv"), "en", target)
        switcher = CodeSwitcher(lexicon, "en", target)
        switched = [switcher.switch(question, str(i)) for i, question in enumerate(questions)]
        assert sum(result.n_switched > 0 for result in switched) >= least * len(questions), target
        assert all(
            (result.text != q) == (result.n_switched > 0) for result, q in zip(switched, questions, strict=True)
        )
