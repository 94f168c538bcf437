import json
from dataclasses import replace

import pytest
from conftest import cases, write_json_lines
from datasets import Dataset

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.parallel import read_parallel, reject_sentence
from sdrrl_trl.transfer.rows import Seed, key_of
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
    data, path = Dataset.from_list(ROWS), tmp_path / f"seeds.{form}"
    if form == "jsonl":
        write_json_lines(path, ROWS)
    elif form == "json":
        path.write_text(json.dumps(ROWS))
    elif form in ("csv", "tsv"):
        data.to_csv(path, sep="\t" if form == "tsv" else ",")
    else:  # a folder is called seeds.folder
        data.to_parquet(path / "train.parquet" if form == "folder" else path)
    assert read(path) == EXPECTED


def test_columns_of_other_names_are_mapped(tmp_path):
    path = write_json_lines(tmp_path / "s.jsonl", [{"key": 7, "ask": "Why?", "reply": "So."}])
    assert read(path, columns={"id": "key", "question": "ask", "reference": "reply"}) == [("7", ("Why?",), "So.")]
    with pytest.raises(SDRRLError, match="no column nothing. There are: key, ask, reply"):
        read(path, columns={"question": "nothing"})
    with pytest.raises(SDRRLError, match="name the right one in `columns`"):
        read(path)


def test_conversations_keep_their_turns_and_the_last_answer_is_the_reference(tmp_path):
    roles = zip(("system", "user", "assistant", "user", "assistant"), "sabcd", strict=True)
    messages = [{"role": role, "content": text} for role, text in roles]
    rows = [{"messages": messages}, {"messages": messages[1:2]}]
    rows.append({"prompt": messages[:4], "completion": messages[4:]})  # as in TRL
    rows.append({"prompt": messages[:4], "completion": "d"})
    whole, question, *prompts = Seeds({"path": str(write_json_lines(tmp_path / "s.jsonl", rows))})
    assert whole == Seed("row-1", ("a", "b", "c"), "d", "s")
    assert [replace(prompt, source_id="row-1") for prompt in prompts] == [whole, whole]
    assert question == Seed("row-2", ("a",), None, None)


@pytest.mark.parametrize("messages, named", cases("messages"))
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


@pytest.fixture
def aligned(tmp_path):
    for tag in ("en", "pt"):
        (tmp_path / tag).write_text("".join(pair[tag] + "\n" for pair in PAIRS), encoding="utf-8")
    return {"en": str(tmp_path / "en"), "pt": str(tmp_path / "pt")}


def test_parallel_sentences_are_read_from_aligned_files_tables_and_data_sets(tmp_path, aligned):
    Dataset.from_list(PAIRS).to_csv(tmp_path / "p.tsv", sep="\t")
    Dataset.from_list([{"translation": pair} for pair in PAIRS]).to_parquet(tmp_path / "p.parquet")
    jsonl = str(write_json_lines(tmp_path / "p.jsonl", PAIRS))
    for corpus in (aligned, str(tmp_path / "p.tsv"), str(tmp_path / "p.parquet"), jsonl):
        assert sentences([corpus]) == PAIRS
    assert sentences([aligned, jsonl]) == PAIRS * 2
    assert sentences([aligned], ("pt", "th")) == PAIRS  # a corpus need not have all languages


def test_files_that_are_not_aligned_or_lack_a_language_are_refused(tmp_path, aligned):
    (tmp_path / "pt").write_text("Um.\n")
    with pytest.raises(SDRRLError, match="line 2: one file is shorter"):
        sentences([aligned])
    for row, named in (
        ({"de": "Ja."}, "line 1: no column pt, but de"),
        ({"en": 1, "pt": "x"}, "line 1: .* must be text"),
    ):
        with pytest.raises(SDRRLError, match=named):
            sentences([str(write_json_lines(tmp_path / "p.jsonl", [row]))])


@pytest.mark.parametrize(
    "pair, reason", [*cases("sentences"), ({"en": "The sky " * 400, "pt": "O céu azul " * 300}, "too_long")]
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
