from collections import Counter

import pytest

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.items import Item, Items
from sdrrl_trl.transfer.mix import forms_of, make_record, quotas


def item(i, *targets):
    texts = {target: [f"Pergunta {i}?", f"Resposta {i}."] for target in targets or ("pt",)}
    return Item(f"q{i}", (f"Question {i}?",), f"Answer {i}.", None, texts, {"pt": [f"Pergunta {i}?", f"Answer {i}."]})


SENTENCE = Item("parallel-1", texts={"en": ["Sentence number 1 is here."], "pt": ["A frase número 1 está aqui."]})


def records(item, side="question", direction="source"):
    return [make_record(item, *form, "en", direction) for form in forms_of(item, "en", side)]


def turns(record):
    row = record.to_row()
    return row["prompt"][-1]["content"], row["completion"][0]["content"]


def test_all_combinations_of_languages_are_made():
    made = [(record.kind, *turns(record)) for record in records(item(0))]
    pivot = "[English question]\nQuestion 0?\n\n[English answer]\nAnswer 0.\n\n[Portuguese answer]\nResposta 0."
    assert made == [
        ("source", "Question 0?", "Answer 0."),
        ("target", "Pergunta 0?", "Resposta 0."),
        ("target_to_source", "Pergunta 0?\n\nResponda em inglês.", "Answer 0."),
        ("source_to_target", "Question 0?\n\nAnswer in Portuguese.", "Resposta 0."),
        ("pivot", "Pergunta 0?", pivot),
        ("code_switch", "Pergunta 0?", "Answer 0."),
        ("code_switch", "Pergunta 0?\n\nAnswer in Portuguese.", "Resposta 0."),
    ]
    languages = [(record.question_language, record.answer_language) for record in records(item(0))]
    assert languages == [
        ("en", "en"),
        ("pt", "pt"),
        ("pt", "en"),
        ("en", "pt"),
        ("pt", "pt"),
        ("en", "en"),
        ("en", "pt"),
    ]


def test_code_switched_target_texts_are_answered_in_the_target_language_or_the_source_language():
    switched = Item(
        "q", ("Question?",), "Answer.", None, {"pt": ["Pergunta?", "Resposta."]}, {"pt": ["Question?!", "Resposta."]}
    )
    made = [record for record in records(switched, direction="target") if record.kind == "code_switch"]
    assert [turns(record) for record in made] == [
        ("Question?!", "Resposta."),
        ("Question?!\n\nResponda em inglês.", "Answer."),
    ]


def test_a_switched_answer_goes_with_its_question_only():
    assert [record.kind for record in records(item(0), side="answer")].count("code_switch") == 1


def test_earlier_turns_are_translated_and_the_hint_is_in_the_last_one():
    long = Item("q", ("Hi", "Hello", "How?"), "So.", "Be kind.", {"pt": ["Oi", "Olá", "Como?", "Assim."]})
    row = next(record for record in records(long) if record.kind == "target_to_source").to_row()
    assert [(message["role"], message["content"]) for message in row["prompt"]] == [
        ("system", "Be kind."),
        ("user", "Oi"),
        ("assistant", "Olá"),
        ("user", "Como?\n\nResponda em inglês."),
    ]


def test_parallel_sentences_give_both_directions_and_a_completion():
    made = {(r.kind, r.question_language): turns(r) for r in records(SENTENCE)}
    assert made.keys() == {("translation", "en"), ("translation", "pt"), ("completion", "pt")}
    question, answer = made["translation", "en"]
    assert question.endswith("\n\nSentence number 1 is here.") and "Portuguese" in question
    assert answer == "A frase número 1 está aqui."
    question, answer = made["translation", "pt"]
    assert "inglês" in question and answer == "Sentence number 1 is here."
    question, answer = made["completion", "pt"]
    assert question.endswith("\n\nA frase número") and answer == "1 está aqui."


def test_sentences_have_several_wordings_but_always_the_same_one():
    sentences = [Item(f"parallel-{i}", texts=SENTENCE.texts) for i in range(30)]
    prompts = [turns(records(sentence)[1])[0] for sentence in sentences]
    assert len(set(prompts)) >= 2 and prompts == [turns(records(sentence)[1])[0] for sentence in sentences]


def test_a_sentence_without_its_source_is_only_completed():
    assert [record.kind for record in records(Item("p", texts={"pt": ["Uma frase bastante longa."]}))] == [
        "completion"
    ]


AVAILABLE = Counter({("source", "en"): 40, ("target", "pt"): 40, ("target", "th"): 10, ("translation", "pt"): 20})


@pytest.mark.parametrize(
    "proportions", [{"source": 1, "target": 1}, {"source": 2, "target": 3, "translation": 1}, {"translation": 7}]
)
def test_kinds_stand_in_the_declared_proportions_and_the_set_is_as_large_as_the_scarcest_allows(proportions):
    chosen = quotas(AVAILABLE, proportions, 1.0, None)
    total = sum(chosen.values())
    for kind, share in proportions.items():
        n = sum(count for (found, _), count in chosen.items() if found == kind)
        assert abs(n - total * share / sum(proportions.values())) <= 2
    assert any(chosen[cell] == AVAILABLE[cell] for cell in chosen)
    assert all(chosen[cell] <= AVAILABLE[cell] for cell in chosen)


def test_a_higher_temperature_gives_small_languages_a_larger_share():
    shares = [quotas(AVAILABLE, {"target": 1}, temperature, 20)["target", "th"] for temperature in (1.0, 2.0, 1e9)]
    assert shares == [4, 7, 10]  # of 20: by 1 : 4, by the square roots 1 : 2, alike


def test_a_size_that_cannot_be_reached_takes_all_there_is():
    assert quotas(AVAILABLE, {"source": 1, "translation": 1}, 1.0, 100) == {
        ("source", "en"): 40,
        ("translation", "pt"): 20,
    }


def test_a_kind_without_records_is_refused():
    with pytest.raises(SDRRLError, match="no record of the kinds completion"):
        quotas(AVAILABLE, {"source": 1, "completion": 1}, 1.0, None)


def fill(path, seed, n=100, new=0, share=0.2):
    items = Items(path / "items.sqlite", seed)
    for i in [*range(n), *range(1000, 1000 + new)]:
        assert items.add(item(i), f"key {i}")
    items.hold_out(share)
    for number, found in items:
        items.propose(number, found, forms_of(found, "en", "question"))
    return items


def chosen(items, quota):
    items.choose(quota)
    return [(found.source_id, *rest) for found, *rest in items.chosen()]


def test_the_choice_depends_on_the_seed_alone_and_takes_no_record_twice(tmp_path):
    quota = {("source", "en"): 30, ("target", "pt"): 50}
    first, again, other = (chosen(fill(tmp_path, seed), quota) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) != sorted(other) and len(set(first)) == len(first) == 80
    assert Counter(kind for _, kind, *_ in first[:40])["source"] in range(6, 25)  # mixed, not one after the other


def test_held_out_questions_stay_held_out_when_others_come_and_are_never_chosen(tmp_path):
    def held_out(items):
        return {found.source_id for found, *_ in items.held_out()}

    items = fill(tmp_path, 3)
    few = held_out(items)
    train = {source_id for source_id, *_ in chosen(items, items.available())}
    assert len(few) == 20 and few.isdisjoint(train) and len(train) == 80
    many = held_out(fill(tmp_path, 3, new=10))
    assert len(many) == 22
    assert len(few & many) >= 17  # newcomers push out at most as many as they are among the held-out
    assert not held_out(fill(tmp_path, 3, share=0.0))
    assert len(held_out(fill(tmp_path, 3, n=3, share=0.1))) == 1


def test_the_same_question_is_added_once(tmp_path):
    items = fill(tmp_path, 1, n=2)
    assert not items.add(item(5), "key 1") and len(items) == 2
