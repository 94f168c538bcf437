import json
import re

import pytest
from conftest import ROOT, cases, data_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import to_protect

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.code_switch import CodeSwitcher
from sdrrl_trl.transfer.lexicon import read_lexicon, translate_words, vocabulary


LEXICON = {"dog": "cão", "house": "casa", "new york": "Nova Iorque", "quickly": "depressa", "sky": "céu"}


def switch(text, lexicon=LEXICON, source="en", target="pt", rate=1.0, row="r", seed=42):
    return CodeSwitcher(lexicon, source, target, rate, seed).switch(text, row)


@pytest.mark.parametrize("text, expected, lexicon, source, target", cases("switched"))
def test_whole_words_are_switched_in_the_case_of_the_original(text, expected, lexicon, source, target):
    assert switch(text, lexicon, source, target) == expected


@pytest.mark.parametrize("text", cases("not_switched"))
def test_parts_of_words_names_code_and_urls_are_not_switched(text):
    assert switch(text) is None
    assert switch(f"{text}, dog") == f"{text}, cão"


def test_the_rate_is_the_share_of_the_words_with_an_entry_and_at_least_one_is_switched():
    text = "dog house sky quickly " * 500
    assert sum(map(switch(text, rate=0.3).count, LEXICON.values())) == pytest.approx(600, abs=75)
    assert switch("The dog.", rate=0.01) == "The cão."
    assert switch(text, rate=0.0) is None


_PIECES = st.lists(
    st.sampled_from(["dog", "Dog", "DOG", " ", "`", "{dog}", "\n", "/", "-", "s"]) | st.text(max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(_PIECES.map("".join), st.floats(0, 1))
def test_only_whole_words_are_switched_in_any_text_and_always_the_same_ones(text, rate):
    text = text.replace("①", "")
    result = switch(text, {"dog": "①"}, rate=rate)
    assert result == switch(text, {"dog": "①"}, rate=rate) and (result is None or "①" in result)
    parts = (result or text).split("①")
    original = re.fullmatch("(dog)".join(map(re.escape, parts)), text, re.IGNORECASE)
    assert original is not None  # with the words put back, it is the same text
    for start, end in original.regs[1:]:
        assert not text[max(start - 1, 0) : start].isalnum() and not text[end : end + 1].isalnum()


def test_other_rows_and_seeds_are_switched_otherwise():
    text = "dog house sky quickly " * 5
    assert len({switch(text, rate=0.5, row=str(i)) for i in range(5)}) == 5
    assert switch(text, rate=0.5, seed=1) != switch(text, rate=0.5, seed=2)


def test_real_markdown_keeps_its_code_links_and_structure():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        words = {word for word in text.lower().split() if len(word) > 3 and word.isalpha()}
        result = switch(text, dict.fromkeys(words, "①"))
        assert result.count("①") > 5
        for kept in (
            lambda text: [text[start:end] for _, start, end in to_protect(text)],
            re.compile(r"(?m)^\W*").findall,
        ):
            assert kept(result.replace("①", "x")) == kept(text), path


def read(tmp_path, text, target="pt"):
    (tmp_path / "lexicon.txt").write_text(text, encoding="utf-8")
    return read_lexicon(str(tmp_path / "lexicon.txt"), "en", target)


@pytest.mark.parametrize("text, lexicon", cases("lexicons"))
def test_lexicons_of_all_forms_are_read_with_the_first_sense_without_function_words(tmp_path, text, lexicon):
    assert read(tmp_path, text) == lexicon


@pytest.mark.parametrize("text, named", cases("broken_lexicons"))
def test_a_broken_lexicon_is_refused_with_file_and_line(tmp_path, text, named):
    with pytest.raises(SDRRLError, match=named):
        read(tmp_path, text)


def test_one_broken_line_is_forgiven_but_told(tmp_path, capsys):
    assert read(tmp_path, "source target language\ndog\tcão\n") == {"dog": "cão"}
    assert "lexicon.txt, line 1: not an entry. Bad rows: 1 of 2, which are left out" in capsys.readouterr().err


class Dictionary:
    """Translates words it knows."""

    def translate(self, texts, source, target):
        known = {"dog": "หมา.", "saw": "saw", "bird": "นก ที่ บิน ได้ สูง", "fish": " .", "sky": "ฟ้า"}
        return [known.get(text, "") for text in texts]


def test_the_translator_makes_a_lexicon_of_the_frequent_words_without_odd_ones():
    texts = [
        "The dog saw the `cat` and the dog.",
        "A dog saw the bird",
        "dog.txt my_dog 2dog ox\n```\ntree\n```\nfish sky",
    ]
    assert vocabulary(texts, "en") == ["dog", "saw", "bird", "fish", "sky"]
    assert vocabulary(texts, "en", max_words=1) == ["dog"]
    assert translate_words(texts, Dictionary(), "en", "th") == {"dog": "หมา", "sky": "ฟ้า"}


@pytest.mark.skipif(data_dir() is None, reason="no benchmark data")
@pytest.mark.parametrize("file, target, least, share", [("eng-por", "pt", 0.9, 0.16), ("eng-swh", "sw", 0.4, 0.085)])
def test_real_lexicons_switch_real_questions(file, target, least, share):
    lines = (data_dir() / "instructions" / "alpaca_1000.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    questions = [json.loads(line)["instruction"] for line in lines]
    lexicon = read_lexicon(str(data_dir() / "lexicons" / f"freedict.{file}.tsv"), "en", target)
    switcher = CodeSwitcher(dict.fromkeys(lexicon, "①"), "en", target)
    switched = [switcher.switch(question, str(i)) for i, question in enumerate(questions)]
    assert sum(text is not None for text in switched) >= least * len(questions)
    n_words = sum(len(question.split()) for question in questions)
    assert sum((text or "").count("①") for text in switched) / n_words == pytest.approx(share, abs=0.03)
