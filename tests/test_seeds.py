import json

import pytest
from conftest import write_json_lines
from datasets import Dataset

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.parallel import read_parallel, reject_sentence
from sdrrl_trl.transfer.rows import key_of
from sdrrl_trl.transfer.seeds import Seeds


ROWS = [
    {"id": "a", "instruction": "Say hello.", "input": "", "output": "Hello!"},
    {"id": "b", "instruction": "Add these.", "input": "1 and 2", "output": "3"},
]


def read(path, **options):
    return [(seed.source_id, seed.turns, seed.reference) for seed in Seeds({"path": str(path), **options})]


EXPECTED = [("a", ("Say hello.",), "Hello!"), ("b", ("Add these.\n\n1 and 2",), "3")]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet", "folder"])
def test_every_format_gives_the_same_questions(tmp_path, form):
    data = Dataset.from_list(ROWS)
    path = tmp_path / f"seeds.{form}"
    if form == "jsonl":
        write_json_lines(path, ROWS)
    elif form == "json":
        path.write_text(json.dumps(ROWS))
    elif form == "parquet":
        data.to_parquet(path)
    elif form == "folder":
        path = tmp_path / "seeds"
        path.mkdir()
        data.to_parquet(path / "train.parquet")
    else:
        data.to_csv(path, sep="\t" if form == "tsv" else ",")
    assert read(path) == EXPECTED


def test_columns_of_other_names_are_mapped(tmp_path):
    path = write_json_lines(tmp_path / "s.jsonl", [{"key": 7, "ask": "Why?", "reply": "So."}])
    assert read(path, columns={"id": "key", "question": "ask", "reference": "reply"}) == [("7", ("Why?",), "So.")]
    with pytest.raises(SDRRLError, match="no column nothing. There are: key, ask, reply"):
        read(path, columns={"question": "nothing"})
    with pytest.raises(SDRRLError, match="name the right one in `columns`"):
        read(path)


def test_conversations_keep_their_turns_and_the_last_answer_is_the_reference(tmp_path):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Fine."},
    ]
    path = write_json_lines(tmp_path / "s.jsonl", [{"messages": messages}, {"messages": messages[1:2]}])
    seeds = list(Seeds({"path": str(path)}))
    assert seeds[0].turns == ("Hi", "Hello", "How are you?")
    assert (seeds[0].reference, seeds[0].system) == ("Fine.", "Be kind.")
    assert (seeds[1].turns, seeds[1].reference, seeds[1].system) == (("Hi",), None, None)


@pytest.mark.parametrize(
    "messages, named",
    [
        ([], "the roles of `messages` are none"),
        ([{"role": "assistant", "content": "x"}], "none|assistant"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "user, user"),
        ([{"role": "user", "content": " "}], "each with text"),
        ([{"role": "user"}], "must list `role` and `content`"),
        (["x"], "must list `role` and `content`"),
        ("x", "must list `role` and `content`"),
    ],
)
def test_broken_conversations_are_named_by_line(tmp_path, messages, named):
    path = write_json_lines(tmp_path / "s.jsonl", [{"messages": messages}])
    with pytest.raises(SDRRLError, match=f"line 1: .*({named})"):
        read(path)


def test_data_sets_are_read_by_split_and_a_part_of_it(tmp_path):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "data" / "validation.parquet")
    assert read(tmp_path / "data", split="validation") == EXPECTED
    assert read(tmp_path / "data", split="validation[:1]") == EXPECTED[:1]
    with pytest.raises(SDRRLError, match="Cannot read"):
        read(tmp_path / "data", split="train")


PAIRS = [{"en": "The cat sleeps here.", "pt": "O gato dorme aqui."}, {"en": "Yes.", "pt": "Sim."}]


def sentences(corpora, targets=("pt",)):
    pairs = read_parallel(corpora, "en", list(targets))
    return [{"en": "".join(pair.source), pair.language: "".join(pair.target)} for pair in pairs]


def test_parallel_sentences_are_read_from_aligned_files_tables_and_data_sets(tmp_path):
    for tag in ("en", "pt"):
        (tmp_path / tag).write_text("".join(pair[tag] + "\n" for pair in PAIRS), encoding="utf-8")
    aligned = {"en": str(tmp_path / "en"), "pt": str(tmp_path / "pt")}
    Dataset.from_list(PAIRS).to_csv(tmp_path / "p.tsv", sep="\t")
    Dataset.from_list([{"translation": pair} for pair in PAIRS]).to_parquet(tmp_path / "p.parquet")
    jsonl = str(write_json_lines(tmp_path / "p.jsonl", PAIRS))
    for corpus in (aligned, str(tmp_path / "p.tsv"), str(tmp_path / "p.parquet"), jsonl):
        assert sentences([corpus]) == PAIRS
    assert sentences([aligned, jsonl]) == PAIRS * 2
    assert sentences([aligned], ("pt", "th")) == PAIRS  # a corpus need not have all languages


def test_files_that_are_not_aligned_are_refused(tmp_path):
    (tmp_path / "en").write_text("One.\nTwo.\n")
    (tmp_path / "pt").write_text("Um.\n")
    with pytest.raises(SDRRLError, match="line 2: one file is shorter"):
        sentences([{"en": str(tmp_path / "en"), "pt": str(tmp_path / "pt")}])
    path = str(write_json_lines(tmp_path / "p.jsonl", [{"de": "Ja."}]))
    with pytest.raises(SDRRLError, match="has no column pt, but de"):
        sentences([path])
    path = str(write_json_lines(tmp_path / "q.jsonl", [{"en": 1, "pt": "x"}]))
    with pytest.raises(SDRRLError, match="line 1: the sentences must be text"):
        sentences([path])


@pytest.mark.parametrize(
    "pair, reason",
    [
        ({"en": "The cat sleeps here.", "pt": "O gato dorme aqui."}, None),
        ({"en": "The cat sleeps here all the day long " * 5, "pt": "O gato."}, "length_ratio"),
        ({"en": "The cat sleeps here all day.", "pt": "The cat sleeps here all day."}, "untranslated"),
        ({"en": "The cat sleeps here all day.", "pt": "The cat sleeps there all day."}, "wrong_language"),
        ({"en": "The sky " * 400, "pt": "O céu azul " * 300}, "too_long"),
        ({"en": "O gato dorme aqui em cima.", "pt": "O gato dorme aqui em cima da mesa."}, "wrong_language"),
        ({"en": "", "pt": " "}, "no_pair"),
        ({"en": "The cat sleeps here."}, "no_pair"),
        ({"pt": "Curto."}, "no_pair"),
        ({"pt": "O gato dorme aqui em cima da mesa."}, None),
    ],
)
def test_bad_sentences_are_rejected_with_a_reason(tmp_path, pair, reason):
    (pair,) = read_parallel([str(write_json_lines(tmp_path / "p.jsonl", [{"pt": "", **pair}]))], "en", ["pt"])
    assert reject_sentence(pair, "en") == reason


def test_tables_keep_ids_and_words_as_they_are_written(tmp_path):
    (tmp_path / "s.csv").write_text("id,question,answer\n001,Is it NA?,4\n01,None,5\n")
    assert read(tmp_path / "s.csv") == [("001", ("Is it NA?",), "4"), ("01", ("None",), "5")]
    (tmp_path / "s.csv").write_text("question,answer\na,b,c\n")
    with pytest.raises(SDRRLError, match="line 2: not as many cells as there are columns"):
        read(tmp_path / "s.csv")


def test_questions_that_differ_in_signs_or_marks_are_different_ones():
    texts = ["What is 7 + 3?", "What is 7 * 3?", "What is 7.3?", "What is 73?", "C++", "C#", "C", "की", "का"]
    assert len({key_of(text) for text in texts}) == len(texts)
    assert len({key_of(text) for text in ("Hi, there.", "hi  there", "Hi there!", "“Hi there”")}) == 1
