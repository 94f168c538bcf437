import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdrrl_trl.transfer.segment import segment


LATIN, JAPANESE = ".!?…", "。．！？!?…"
markdown = st.lists(
    st.sampled_from(
        [
            "# Title\n",
            "- item. ",
            "```py\n",
            "```\n",
            "~~~~\n",
            "~~~\n",
            "`a. b`",
            "{name}",
            "%s",
            "https://a.b/c?d=e.",
            "\n",
        ]
        + [
            "\r\n",
            "| a | b |\n",
            "|---|---|\n",
            "$x^2$",
            "Dr. Who said: hi! ",
            "**bold** ",
            "<b>",
            "ZX1Q",
            "　",
            "…",
            "\x0b",
        ]
    )
    | st.text(max_size=20)
).map("".join)


def translatable(text, terminators=LATIN):
    return [part.text for part in segment(text, terminators) if part.translate]


@given(st.text() | markdown, st.sampled_from([LATIN, JAPANESE, "!?…"]), st.integers(1, 50))
def test_joining_the_segments_gives_the_text_back(text, terminators, max_chars):
    assert "".join(part.text for part in segment(text, terminators, max_chars)) == text


@given(markdown)
def test_restoring_an_untouched_masked_segment_gives_it_back(text):
    for part in segment(text, LATIN):
        assert part.restore(part.masked) == part.text
        assert "".join(piece.text for piece in part.split_at_masks()) == part.text


def test_sentences_are_split_but_abbreviations_are_not():
    text = 'Dr. Smith came. "Really?" she asked! E.g. this... Version 2.0 is out.'
    assert translatable(text) == ["Dr. Smith came.", '"Really?"', "she asked!", "E.g. this...", "Version 2.0 is out."]


def test_languages_without_spaces_are_split_at_their_own_terminators():
    assert translatable("今日は晴れです。明日は？「はい。」", JAPANESE) == [
        "今日は晴れです。",
        "明日は？",
        "「はい。」",
    ]


def test_structure_and_code_stay():
    text = "## Title\n1. First *step*\n> quote\n```python\nprint('Hello you')\n```\n" + (
        "| Name | Age |\n|:--|--:|\n~~~\n```\nx y\n~~~"
    )
    assert translatable(text) == ["Title", "First *step*", "quote", "Name", "Age"]


@pytest.mark.parametrize(
    "span",
    [
        "`ls -l`",
        "https://example.com/a?b=c",
        "me@example.org",
        "{name}",
        "{{date}}",
        "%s",
        "%(user)s",
        "<user>",
        "$x+1$",
    ]
    + [r"\(a+b\)", "</b>", "ZX1Q"],
)
def test_protected_spans_are_masked_and_restored(span):
    (part,) = [part for part in segment(f"Please send {span} to us.", LATIN) if part.translate]
    assert span not in part.masked.replace("ZX1Q", "")
    assert part.restore("Envie ZX1Q para nós.") == f"Envie {span} para nós."


@pytest.mark.parametrize(
    "translation", ["Envie para nós.", "Envie ZX1Q e ZX1Q.", "Envie ZX2Q.", "Envie ZX1Q ou ZX2Q."]
)
def test_a_lost_doubled_or_invented_mask_is_noticed(translation):
    (part,) = segment("Send {name} to us.", LATIN)
    assert part.restore(translation) is None


def test_money_is_not_latex():
    (part,) = segment("It costs $5 or $6 a day.", LATIN)
    assert part.masked == part.text


def test_long_sentences_are_cut_at_commas_and_never_inside_a_protected_span():
    text = "word " * 30 + ", " + "`" + "x, " * 60 + "`" + ", " + "end " * 20
    parts = segment(text, LATIN, max_chars=100)
    assert any(part.text == "`" + "x, " * 60 + "`," or part.text.startswith("`x, ") for part in parts)
    assert all(part.text.count("`") in (0, 2) for part in parts)
    assert max(len(part.text) for part in parts if "`" not in part.text) <= 100


def test_text_without_letters_is_not_sent_to_the_translator():
    assert translatable("1 + 2 = 3\n" + string.punctuation + "\n{name} %s") == []
