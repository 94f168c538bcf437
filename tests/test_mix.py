from collections import Counter

import pytest

from sdrrl_trl.transfer.mix import Item, held_out, mix, parallel_records, records_of


ITEMS = [
    Item(f"q{i}", f"key {i}", f"Question {i}?", f"Answer {i}.", {"pt": (f"Pergunta {i}?", f"Resposta {i}.")})
    for i in range(40)
]
SENTENCES = [{"en": f"Sentence number {i} is here.", "pt": f"A frase número {i} está aqui."} for i in range(10)]
NAMES = {"en": "English", "pt": "Portuguese"}


def all_records():
    records = [record for item in ITEMS for record in records_of(item, "en")]
    return records + parallel_records(SENTENCES, "en", ["pt"], NAMES)


def test_the_four_combinations_of_languages_are_made():
    rows = {record.kind: record.to_row(None) for record in records_of(ITEMS[0], "en")}
    turns = {kind: (row["prompt"][0]["content"], row["completion"][0]["content"]) for kind, row in rows.items()}
    pivot = ("[English question]\nQuestion 0?\n\n[English answer]\nAnswer 0.\n\n[Portuguese answer]\nResposta 0.",)
    assert turns.pop("pivot") == ("Pergunta 0?", *pivot)
    assert turns == {
        "source": ("Question 0?", "Answer 0."),
        "target": ("Pergunta 0?", "Resposta 0."),
        "target_to_source": ("Pergunta 0?\n\nResponda em inglês.", "Answer 0."),
        "source_to_target": ("Question 0?\n\nAnswer in Portuguese.", "Resposta 0."),
    }
    assert rows["target_to_source"]["question_language"] == "pt"
    assert rows["target_to_source"]["answer_language"] == "en"


def test_parallel_sentences_give_both_directions_and_a_completion():
    records = parallel_records(SENTENCES[:1], "en", ["pt"], NAMES)
    assert [(r.kind, r.question, r.answer) for r in records] == [
        (
            "translation",
            "Translate this into Portuguese:\n\nSentence number 0 is here.",
            "A frase número 0 está aqui.",
        ),
        ("translation", "Translate this into English:\n\nA frase número 0 está aqui.", "Sentence number 0 is here."),
        ("completion", "Continue este texto:\n\nA frase número", "0 está aqui."),
    ]


@pytest.mark.parametrize(
    "proportions",
    [{"source": 1, "target": 1}, {"source": 2, "target": 3, "translation": 1, "completion": 0.5}, {"completion": 7}],
)
def test_kinds_stand_in_the_declared_proportions_and_no_record_twice(proportions):
    mixed = mix(all_records(), proportions, seed=0)
    counts = Counter(record.kind for record in mixed)
    unit = sum(counts.values()) / sum(proportions.values())
    for kind, share in proportions.items():
        assert abs(counts[kind] - unit * share) <= 1
    assert set(counts) == set(proportions)
    assert len(set(mixed)) == len(mixed)
    available = Counter(record.kind for record in all_records())
    assert any(counts[kind] == available[kind] for kind in proportions)  # as large as the scarcest kind allows


def test_the_mix_depends_on_the_seed_alone():
    proportions = {"source": 1, "target": 2}
    assert mix(all_records(), proportions, 1) == mix(all_records(), proportions, 1)
    assert mix(all_records(), proportions, 1) != mix(all_records(), proportions, 2)


def test_held_out_questions_stay_held_out_when_others_come():
    ids = [f"q{i}" for i in range(100)]
    few, many = held_out(ids, 0.2, seed=3), held_out([*ids, *(f"new{i}" for i in range(10))], 0.2, seed=3)
    assert len(few) == 20 and len(many) == 22
    assert len(few & many) >= 17  # newcomers push out at most as many as they are among the held-out
    assert held_out(ids, 0.0, seed=3) == set()
    assert len(held_out(ids[:3], 0.1, seed=3)) == 1
