import json

import pytest
from conftest import write_json_lines
from datasets import Dataset

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.parallel import read_parallel, reject_sentence
from sdrrl_trl.transfer.seeds import Seeds


ROWS = [
    {"id": "a", "instruction": "Say hello.", "input": "", "output": "Hello!"},
    {"id": "b", "instruction": "Add these.", "input": "1 and 2", "output": "3"},
]


def read(path, **options):
    return [(seed.id, seed.turns, seed.reference) for seed in Seeds(str(path), **options)]


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
    with pytest.raises(SDRRLError, match="`columns` names quest"):
        read(path, columns={"quest": "ask"})
    with pytest.raises(SDRRLError, match="Name the right one in `columns`"):
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
    seeds = list(Seeds(str(path)))
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
        ([{"role": "user"}], "must list objects"),
        (["x"], "must list objects"),
        ("x", "must list objects"),
    ],
)
def test_broken_conversations_are_named_by_line(tmp_path, messages, named):
    path = write_json_lines(tmp_path / "s.jsonl", [{"messages": messages}])
    with pytest.raises(SDRRLError, match=f"line 1: .*({named})"):
        read(path)


def test_a_limit_takes_the_first_or_as_many_at_random_but_always_the_same(tmp_path):
    path = write_json_lines(tmp_path / "s.jsonl", [{"id": str(i), "instruction": f"Q {i}"} for i in range(100)])
    ids = [[row[0] for row in read(path, limit=5, random_seed=seed)] for seed in (None, 1, 1, 2)]
    assert ids[0] == ["0", "1", "2", "3", "4"]
    assert ids[1] == ids[2] != ids[3] and len(set(ids[1])) == 5 and ids[1] != ids[0]
    assert len(read(path, limit=1000, random_seed=1)) == 100


def test_batches_go_by_length_and_leave_out_what_is_too_long(tmp_path):
    texts = ["xxx", "x", "xx", "x" * 50, "xxxx"]
    seeds = Seeds(str(write_json_lines(tmp_path / "s.jsonl", [{"instruction": text} for text in texts])))
    batches = [[seed.turns[0] for seed in batch] for batch in seeds.batches(2, max_characters=10)]
    assert batches == [["x", "xx"], ["xxx", "xxxx"]] and seeds.count(10) == 4


PAIRS = [{"en": "The cat sleeps here.", "pt": "O gato dorme aqui."}, {"en": "Yes.", "pt": "Sim."}]


def sentences(corpora, languages=("en", "pt")):
    return [{tag: texts[0] for tag, texts in item.texts.items()} for item in read_parallel(corpora, languages)]


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
    assert sentences([aligned], ("en", "pt", "th")) == PAIRS  # a corpus need not have all languages


def test_files_that_are_not_aligned_are_refused(tmp_path):
    (tmp_path / "en").write_text("One.\nTwo.\n")
    (tmp_path / "pt").write_text("Um.\n")
    with pytest.raises(SDRRLError, match="line 2: one file is shorter"):
        sentences([{"en": str(tmp_path / "en"), "pt": str(tmp_path / "pt")}])
    path = str(write_json_lines(tmp_path / "p.jsonl", [{"de": "Ja."}]))
    with pytest.raises(SDRRLError, match="has no column en or pt"):
        sentences([path])
    path = str(write_json_lines(tmp_path / "q.jsonl", [{"en": 1, "pt": "x"}]))
    with pytest.raises(SDRRLError, match="line 1: the sentences must be text"):
        sentences([path])


@pytest.mark.parametrize(
    "pair, reason",
    [
        ({"en": "The cat sleeps here.", "pt": "O gato dorme aqui."}, None),
        ({"en": "The cat sleeps here " * 10, "pt": "O gato."}, "length_ratio"),
        ({"en": "The cat sleeps here.", "pt": "The cat sleeps here."}, "untranslated"),
        ({"en": "x" * 3000, "pt": "y" * 3000}, "too_long"),
        ({"en": "", "pt": " "}, "empty"),
    ],
)
def test_bad_pairs_are_rejected_with_a_reason(tmp_path, pair, reason):
    path = str(write_json_lines(tmp_path / "p.jsonl", [pair]))
    (item,) = read_parallel([path], ["en", "pt"])
    assert reject_sentence(item, "en") == reason
