import time
from pathlib import Path

import pytest
import yaml
from conftest import cases
from hypothesis import given
from hypothesis import strategies as st
from masks import damaged, fidelity, installed_markdown, with_masks

from sdrrl_trl.languages import LANGUAGES
from sdrrl_trl.transfer.segment import Segment, segment


LATIN, JAPANESE = ".!?…", "。．！？!?…"
CASES = yaml.safe_load(Path(__file__).with_name("segment_cases.yaml").read_text(encoding="utf-8"))
SPANS, BLOCKS = CASES["spans"] + cases("tokens", "translation_cases.yaml"), CASES["blocks"]
PIECES = (
    "# Title\n¦- item. ¦- [ ] ¦1. ¦    ¦\t¦> ¦```py\n¦```\n¦````\n¦~~~~\n¦~~~\n¦`¦\n¦\n\n¦\r\n¦\r¦| a | b |\n"
    "¦|---|---|\n¦|¦$¦$$¦\\[¦\\]¦<!--¦-->¦<pre>\n¦Dr. Who said: hi! ¦**bold** ¦**Note:** ¦word ¦[a](b) ¦[a]: /b\n"
    "¦---\n¦　¦…¦\x0b¦\0"
).split("¦")
markdown = st.lists(st.sampled_from(PIECES + SPANS) | st.text(max_size=20)).map("".join)


def translatable(text, terminators=LATIN):
    return [part.text for part in segment(text, terminators) if part.translate]


@given(
    st.text() | markdown,
    st.sampled_from(sorted({language.terminators for language in LANGUAGES.values()})),
    st.integers(1, 50),
)
def test_joining_the_segments_gives_the_text_back(text, terminators, max_chars):
    parts = segment(text, terminators, max_chars)
    assert "".join(part.text for part in parts) == text
    assert not any(set("\n\r\t\v\u2028") & set(part.masked) for part in parts if part.translate)


@given(st.text() | markdown)
def test_restoring_an_untouched_masked_segment_gives_it_back(text):
    for part in segment(text, LATIN):
        assert part.restore(part.masked) == part.text
        assert "".join(piece.text for piece in part.split_at_masks()) == part.text


@given(st.lists(st.sampled_from(SPANS) | st.text(max_size=9) | st.just(". "), max_size=9), st.integers(1, 60))
def test_no_cut_goes_through_a_span(pieces, max_chars):
    text = " ".join(["x", *pieces]).replace("\n", "")
    parts = segment(text, LATIN, max_chars)
    kept = [part.text for part in parts if not part.translate]
    kept += [span for part in parts if part.translate for span in part.protected]
    assert all(any(span in piece for piece in kept) for span in Segment(text, translate=True).protected)


@pytest.mark.parametrize("span", SPANS)
def test_protected_spans_are_masked_and_restored(span):
    (part,) = [part for part in segment(f"Please send {span} to us.", LATIN) if part.translate]
    assert part.masked == "Please send ZX1Q to us."
    assert part.restore("Envie zx 1Q para nós.") == f"Envie {span} para nós."
    assert [piece.text for piece in part.split_at_masks()] == ["Please send", f" {span} ", "to us."]


@pytest.mark.parametrize("text", CASES["plain"])
def test_plain_text_and_numbers_are_not_masked(text):
    assert translatable(text) == [text]
    assert Segment(text, translate=True).masked == text


@pytest.mark.parametrize("text, masked", CASES["masked"].items())
def test_spans_next_to_each_other_share_a_mask_and_signs_of_one_are_not_those_of_another(text, masked):
    assert Segment(text, translate=True).masked == masked


@pytest.mark.parametrize("translation", ["Envie.", "Envie ZX1Q e ZX1Q.", "Envie ZX2Q.", "Envie ZX1Q ou ZX2Q."])
def test_a_lost_doubled_or_invented_mask_is_noticed(translation):
    (part,) = segment("Send {name} to us.", LATIN)
    assert part.restore(translation) is None


def test_a_text_with_masks_of_its_own_survives():
    (part,) = segment("Use zx 7 q or ZX1Q now.", LATIN)
    assert part.masked == "Use ZX1Q or ZX2Q now."
    assert part.restore("Agora ZX2Q ou ZX1Q.") == "Agora ZX1Q ou zx 7 q."
    (part,) = segment("Use zx7q.", LATIN)
    assert part.restore("Use ZX1Q.") == "Use zx7q."


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_not_translated(block):
    assert translatable(f"Before.\n\n{block}") == ["Before."]
    assert translatable(block) == []


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - {"unclosed fence"}))
def test_the_text_after_a_block_is_translated(name):
    assert translatable(f"{BLOCKS[name]}\n\nAfter that.") == ["After that."]
    assert translatable(f"{BLOCKS[name]}\r\n\r\nAfter that.".replace("\n", "\r\n")) == ["After that."]


@pytest.mark.parametrize("text, pieces", CASES["structure"])
def test_structure_stays_and_its_text_is_translated(text, pieces):
    assert translatable(text) == pieces
    assert translatable(text.replace("\n", "\r\n")) == pieces


@pytest.mark.parametrize("case", CASES["sentences"], ids=lambda case: case["text"][0])
def test_sentences_are_split_but_abbreviations_are_not(case):
    terminators, sentences = case["terminators"], case["text"]
    assert translatable(" ".join(sentences), terminators) == sentences
    if "." not in terminators:
        assert translatable("".join(sentences), terminators) == sentences


def test_long_sentences_are_cut_at_the_best_place_and_never_inside_a_span():
    words, code = "letter " * 11, "`" + "x, " * 60 + "`"
    text = f"{words}end. and {words}if, then {words}{words}{code} {'z' * 150}"
    parts = [part.text for part in segment(text, LATIN, max_chars=100) if part.translate]
    assert parts[0] == f"{words}end." and parts[1] == f"and {words}if," and parts[2].startswith("then letter")
    assert parts[2].endswith(" letter") and "".join(parts[-2:]) == "z" * 150
    assert all("`" not in part and len(part) <= 100 for part in parts)


def test_nothing_of_real_markdown_is_lost_to_a_translator_that_changes_every_character():
    texts = installed_markdown()
    assert len(texts) >= 150
    for text in texts:
        assert damaged(text, with_masks(text, lambda text: segment(text, LATIN))) == []


def test_the_measure_of_fidelity_can_fail():
    texts = ["Run `ls`.", "```\nls\n```\n", "Nothing here."]
    assert fidelity(texts, lambda text: segment(text, LATIN)) == {"texts": 2, "masks": 1.0, "fences_only": 0.5}
    assert fidelity(texts, lambda text: [Segment(letter, translate=True) for letter in text])["masks"] == 0


UNITS = (
    "`a ¦[a¦[a](¦![¦<a ¦<!--¦{a ¦{{a¦\\[¦\\a{¦$a ¦$1 ¦<code>¦<pre>\n¦\\begin{a}¦http://(¦a.¦a_¦a/¦a@¦a-¦--a¦e.g. "
    "¦X A. ¦- a\n  ¦\n\n    a\n¦[x]: <¦]( ¦\n**a¦|a\n¦> - ¦`a` ¦<a>{b}"
    "¦# a\n¦/*\n¦x = 1\n\n¦x = [\n¦z = (a b c\n¦a(1¦a=b ¦a --b ¦[{"
).split("¦")


@pytest.mark.parametrize("unit", [*'`[]<>${}\\(!*_#-:/.@&~| \n\0a"', *UNITS])
def test_no_input_takes_more_than_linear_time(unit):
    # Quadratic time would be minutes, for a text that takes this long
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    for part in segment(text, LATIN):
        if part.translate:
            part.restore(part.masked)
    assert time.perf_counter() - start < 4


def test_distinct_unclosed_openings_take_linear_time():
    start = time.perf_counter()
    segment("".join("`" * n + " " for n in range(1, 450)), LATIN)
    segment("".join(f"x \\begin{{a{n}}}" for n in range(10_000)), LATIN)
    assert time.perf_counter() - start < 4
