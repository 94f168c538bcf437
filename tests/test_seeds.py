import bz2
import gzip
import io
import os
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from conftest import cases, write_json_lines
from datasets import Dataset, DatasetDict

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.lexicon import read_lexicon
from sdrrl_trl.transfer.parallel import read_parallel, reject_sentence
from sdrrl_trl.transfer.rows import Seed, key_of
from sdrrl_trl.transfer.seeds import Seeds


def zstd(data):
    with pyarrow.CompressedOutputStream(sink := pyarrow.BufferOutputStream(), "zstd") as stream:
        stream.write(data)
    return sink.getvalue()


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "zst": zstd}
ROWS = [
    {"id": "a", "instruction": "Say hello.", "input": "", "output": "Hello!"},
    {"id": "b", "instruction": "Add these.", "input": "1 and 2", "output": "3"},
]


def read(path, **options):
    return [(seed.source_id, seed.turns, seed.reference) for seed in Seeds({"path": str(path), **options})]


EXPECTED = [("a", ("Say hello.",), "Hello!"), ("b", ("Add these.\n\n1 and 2",), "3")]


def test_columns_of_other_names_are_mapped(tmp_path):
    path = write_json_lines(tmp_path / "s.jsonl", [{"key": 7, "ask": "Why?", "reply": "So."}])
    assert read(path, columns={"id": "key", "question": "ask", "reference": "reply"}) == [("7", ("Why?",), "So.")]
    with pytest.raises(SDRRLError, match="no column nothing. There are: key, ask, reply"):
        read(path, columns={"question": "nothing"})
    with pytest.raises(SDRRLError, match="name the right columns in `columns`"):
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


@pytest.mark.parametrize("name, text, expected", cases("questions", "file_cases.yaml"))
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_texts_of_files_are_read_as_they_are_written(tmp_path, name, text, expected, ending):
    (tmp_path / name).write_bytes(text.encode())
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    assert [[turns[0], reference] for _, turns, reference in read(tmp_path / f"{name}{ending}")] == expected


@pytest.mark.parametrize("name, text, named", cases("refused_files", "file_cases.yaml"))
def test_files_that_would_be_read_wrongly_are_refused(tmp_path, name, text, named):
    (tmp_path / name).write_text(text)
    with pytest.raises(SDRRLError, match=named):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", ["gz", "bz2", "zst"])
def test_compressed_files_are_read_wherever_files_are(tmp_path, ending):
    def compress(name, text):
        (tmp_path / f"{name}.{ending}").write_bytes(COMPRESS[ending](text.encode()))
        return str(tmp_path / f"{name}.{ending}")

    assert [turns for _, turns, _ in read(compress("s.csv", "question\nWhy?\n"))] == [("Why?",)]
    texts = {tag: compress(tag, text) for tag, text in (("en", "Yes.\n"), ("pt", "Sim.\n"))}
    assert sentences([texts]) == [{"en": "Yes.", "pt": "Sim."}]
    assert read_lexicon(compress("words.tsv", "dog\tcão\n"), "en", "pt") == {"dog": "cão"}


@pytest.mark.parametrize("row, turns, reference, system, unused", cases("rows", "file_cases.yaml"))
def test_columns_are_used_or_named(tmp_path, capsys, row, turns, reference, system, unused):
    (seed,) = Seeds({"path": str(write_json_lines(tmp_path / "s.jsonl", [row]))})
    assert seed == Seed("row-1", tuple("\n\n".join(parts) for parts in turns), reference, system)
    warning = capsys.readouterr().err
    assert f"not used: {unused}. Name" in warning if unused else not warning


def test_data_sets_are_read_by_split_and_a_part_of_it(tmp_path):
    folders = [tmp_path / name for name in ("data", "saved", "one")]
    Dataset.from_list(ROWS).to_csv(folders[0] / "validation.csv")
    DatasetDict({"validation": Dataset.from_list(ROWS)}).save_to_disk(folders[1])
    for folder in folders[:2]:
        assert read(folder, split="validation") == EXPECTED
        assert read(folder, split="validation[:1]") == EXPECTED[:1]
        with pytest.raises(SDRRLError, match="Cannot read"):
            read(folder, split="train")
    Dataset.from_list(ROWS).save_to_disk(folders[2])
    assert read(folders[2], split="train[50%:]") == EXPECTED[1:]
    file = write_json_lines(tmp_path / "s.jsonl", ROWS)
    assert read(file, split="train[1:]") == EXPECTED[1:]


def test_of_several_configurations_one_must_be_named_and_types_stay_text(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "train.csv").write_text(f"id,question,answer\n007,{name}?,NA\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.csv\n" for name in ("a", "b"))
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(SDRRLError, match=r"`name` None(.|\n)*configs: \['a', 'b'\]"):
        read(tmp_path / "data")
    assert read(tmp_path / "data", name="b") == [("007", ("b?",), "NA")]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_the_rows_are_those_of_the_file_that_is_there(tmp_path, form):
    """Not of one whose name is a pattern that fits, nor of the one that was there at the same time of the clock."""
    for name, row in (("set[1]", ROWS[0]), ("set1", ROWS[1])):
        path = tmp_path / name / ("train.parquet" if form == "folder" else f"a::b.{form}")
        path.parent.mkdir()
        for text in ("old", row["instruction"]):
            data, stream = Dataset.from_list([row | {"instruction": text}]), io.BytesIO()
            data.to_json(stream) if form == "jsonl" else data.to_parquet(stream)
            path.write_bytes(stream.getvalue())
            os.utime(path, (1, 1))
            if form == "folder" and name == "set[1]":
                with pytest.raises(SDRRLError, match="Rename it, or name its files"):
                    read(path.parent)
            else:
                ((_, turns, _),) = read(path.parent if form == "folder" else path)
                assert turns[0].startswith(text)


@pytest.mark.parametrize("path", ["loop.jsonl", "loop", "x" * 300 + ".csv", "x" * 300, "a\0.jsonl", "a\0", "pipe.csv"])
def test_paths_that_cannot_be_read_are_named(tmp_path, path):
    for name in ("loop.jsonl", "loop"):
        (tmp_path / name).symlink_to(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SDRRLError, match="Cannot read|no file or folder|only once"):
        read(tmp_path / path)


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
    assert sentences([aligned, {"path": jsonl, "split": "train[:1]"}]) == [*PAIRS, PAIRS[0]]
    assert sentences([aligned], ("pt", "th")) == PAIRS  # a corpus need not have all languages


def test_files_that_are_not_aligned_or_lack_a_language_are_refused(tmp_path, aligned):
    (tmp_path / "pt").write_text("Um.\n")
    with pytest.raises(SDRRLError, match="line 2: one file is shorter"):
        sentences([aligned])
    for rows, named in (
        ([{"de": "Ja."}], "p.jsonl: no column pt, but de"),
        ([{"en": [1]}, {"de": "Ja."}, {"de": "Nein."}], "p.jsonl: no column pt, but de"),
        ([{"en": [1], "pt": "x"}], "line 1: .* must be text"),
        ([{"translation": "x"}], "line 1: .* must be text"),
        ([], "p.jsonl is empty"),
    ):
        with pytest.raises(SDRRLError, match=named):
            sentences([str(write_json_lines(tmp_path / "p.jsonl", rows))])
    for file in aligned.values():
        Path(file).write_text("")
    with pytest.raises(SDRRLError, match="en and .*pt is empty"):
        sentences([aligned])


@pytest.mark.parametrize("cell", [None, "x", ["x"]])
def test_a_broken_translation_is_a_bad_row_or_beside_the_columns_of_the_languages(tmp_path, capsys, cell):
    rows = [{"translation": cell}, *({"translation": pair} for pair in PAIRS), PAIRS[0] | {"translation": cell}]
    found = sentences([str(write_json_lines(tmp_path / "p.jsonl", rows))])
    assert found == [{"en": "", "": ""}, *PAIRS, PAIRS[0]] and "Bad rows: 1 of 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "pair, reason", [*cases("sentences"), ({"en": "The sky " * 400, "pt": "O céu azul " * 300}, "too_long")]
)
def test_bad_sentences_are_rejected_with_a_reason(tmp_path, pair, reason):
    (pair,) = read_parallel([str(write_json_lines(tmp_path / "p.jsonl", [{"pt": "", **pair}]))], "en", ["pt"])
    assert reject_sentence(pair, "en") == reason


def test_questions_that_differ_in_signs_or_marks_are_different_ones():
    texts = ["What is 7 + 3?", "What is 7 * 3?", "What is 7.3?", "What is 73?", "C++", "C#", "C", "की", "का"]
    assert len({key_of(text) for text in texts}) == len(texts)
    assert len({key_of(text) for text in ("Hi, there.", "hi  there", "Hi there!", "“Hi there”")}) == 1
