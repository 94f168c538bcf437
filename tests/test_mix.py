import json
from collections import Counter
from dataclasses import replace

import pytest
from conftest import cases

from sdrrl_trl import SDRRLError, TransferConfig
from sdrrl_trl.transfer.mix import Mix, quotas, records_of
from sdrrl_trl.transfer.rows import Answer, Pair, key_of


def answer(i):
    return Answer(f"q{i}", key_of(f"Question {i}?"), (f"Question {i}?",), f"Answer {i}.")


def pair(i):
    source, target = (f"Question {i}?", f"Answer {i}."), (f"Pergunta {i}?", f"Resposta {i}.")
    return Pair(f"q{i}", "pt", source, target)


TEXTS = ("Sentence number 1 is here.",), ("A frase número 1 está aqui.",)
SENTENCE = Pair("parallel-1", "pt", *TEXTS, is_sentence=True)


def records(*rows, switched=None):
    return [record for row in rows for record in records_of(row, "en", switched)]


def turns(record):
    row = record.to_row()
    return row["prompt"][-1]["content"], row["completion"][0]["content"]


def test_all_combinations_of_languages_are_made():
    found = records(answer(0), pair(0), switched="Pergunta 0?!")
    made = [(record.kind, record.question_language, record.answer_language, *turns(record)) for record in found]
    assert made == [
        ("source", "en", "en", "Question 0?", "Answer 0."),
        ("target", "pt", "pt", "Pergunta 0?", "Resposta 0."),
        ("target_to_source", "pt", "en", "Pergunta 0?\n\nResponda em inglês.", "Answer 0."),
        ("source_to_target", "en", "pt", "Question 0?\n\nAnswer in Portuguese.", "Resposta 0."),
        ("code_switch", "en", "en", "Pergunta 0?!", "Answer 0."),
        ("code_switch", "en", "pt", "Pergunta 0?!\n\nAnswer in Portuguese.", "Resposta 0."),
    ]
    assert [record.language for record in found] == ["en"] + ["pt"] * 5
    assert len(records(pair(0))) == 3


def test_earlier_turns_are_translated_and_the_hint_is_in_the_last_one():
    long = Pair("q", "pt", ("Hi", "Hello", "How?", "So."), ("Oi", "Olá", "Como?", "Assim."), "Be kind.")
    row = next(record for record in records(long) if record.kind == "target_to_source").to_row()
    roles, texts = zip(*(message.values() for message in row["prompt"]), strict=True)
    assert roles == ("system", "user", "assistant", "user")
    assert texts == ("Be kind.", "Oi", "Olá", "Como?\n\nResponda em inglês.")


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
    sentences = [replace(SENTENCE, source_id=f"parallel-{i}") for i in range(30)]
    prompts = [turns(records(sentence)[1])[0] for sentence in sentences]
    assert len(set(prompts)) >= 2 and prompts == [turns(records(sentence)[1])[0] for sentence in sentences]


def test_a_sentence_without_its_source_is_only_completed():
    assert [record.kind for record in records(replace(SENTENCE, source=()))] == ["completion"]


AVAILABLE = Counter({("source", "en"): 40, ("target", "pt"): 40, ("target", "th"): 10, ("translation", "pt"): 20})


def config(folder=".", **options):
    options = {"parallel": "corpus", "target_languages": ["pt"], **options}
    return TransferConfig("seeds", str(folder), "model", **options)


@pytest.mark.parametrize("options, expected", cases("quotas"))
def test_kinds_stand_in_the_declared_proportions_and_the_set_is_as_large_as_the_scarcest_or_the_size_allows(
    options, expected
):
    chosen = quotas(AVAILABLE, config(**options))
    assert {f"{kind} {language}": n for (kind, language), n in chosen.items()} == expected


@pytest.mark.parametrize("options, missing", cases("no_records"))
def test_a_kind_or_language_without_records_is_refused(options, missing):
    with pytest.raises(SDRRLError, match=f"no record of: .*{missing}.* Available: source en 40, target pt 40"):
        quotas(AVAILABLE, config(**options))


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*map(vars, rows), {"rows": len(rows)}]
    (folder / "00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def mix_of(path, numbers=range(100), seed=1, **options):
    write(path / "answer", [answer(i) for i in numbers])
    write(path / "translate_pt", [pair(i) for i in numbers])
    return Mix(config(path, **{"parallel": None, "seed": seed, "test_size": 0.2, **options}), path, {})


def chosen(mix):
    mix.choose()
    return [row for split, row in mix.rows() if split == "train"]


def held_out(mix):
    return {row.source_id for row, is_test in mix if is_test}


def test_the_choice_depends_on_the_seed_alone_and_takes_as_many_as_decided(tmp_path):
    options = {"proportions": {"source": 3, "target": 5}, "size": 80}
    first, again, other = (chosen(mix_of(tmp_path, seed=seed, **options)) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 80
    assert Counter(row["kind"] for row in first) == {"source": 30, "target": 50}
    ids = [int(row["source_id"][1:]) for row in first]
    assert ids == sorted(ids)  # in the order of the questions


def test_held_out_questions_stay_held_out_when_others_come_and_are_never_chosen(tmp_path):
    mix = mix_of(tmp_path)
    few = held_out(mix)
    train = {row["source_id"] for row in chosen(mix)}
    assert len(few) == 20 and few.isdisjoint(train)
    many = held_out(mix_of(tmp_path, [*range(100), *range(1000, 1010)]))
    assert len(many) == 22
    assert len(few & many) >= 17  # newcomers push out at most as many as they are among the held-out
    assert not held_out(mix_of(tmp_path, test_size=0.0))
    assert len(held_out(mix_of(tmp_path, range(3), test_size=0.1))) == 1


@pytest.mark.parametrize("greeting, request_", [("Hi", "Go on, please!"), ("你好", "请继续")])
def test_short_turns_are_in_training_though_held_out_conversations_have_them(tmp_path, greeting, request_):
    long = "Why is the sky so blue?"
    conversations = [(greeting, "Yes?", f"Question {i}?", "So.", request_) for i in range(40)]
    conversations += [(greeting, "Yes?", long, "So.", f"Is it {i}?") for i in range(20)]
    rows = [
        Answer(f"{system}{i}", key_of(f"{system} {turns}"), turns, "So.", system)
        for system in ("Be kind.", "Be short.")
        for i, turns in enumerate(conversations)
    ]
    write(tmp_path / "answer", rows)
    write(tmp_path / "translate_pt", [Pair(r.source_id, "pt", (*r.turns, r.text), (*r.turns, r.text)) for r in rows])
    mix = list(Mix(config(tmp_path, parallel=None, test_size=0.2), tmp_path, {}))
    test = {row.turns for row, is_test in mix if is_test and isinstance(row, Answer)}
    left_out = {row.turns for row, _ in mix if row.reason == "mix/held_out" and isinstance(row, Answer)}
    # The same conversation under the other system message, and those with the same long question
    assert any(long in turns for turns in test) and any(long not in turns for turns in left_out & test)
    assert left_out - test == {turns for turns in conversations if long in turns} - test


def test_translations_of_other_answers_are_refused(tmp_path):
    mix_of(tmp_path)
    write(tmp_path / "translate_pt", [pair(i) for i in range(1, 101)])
    with pytest.raises(SDRRLError, match="not those of the answers.*--overwrite_stage translate"):
        Mix(config(tmp_path, parallel=None), tmp_path, {})
    write(tmp_path / "translate_pt", [pair(i) for i in range(100)])
    write(tmp_path / "translate_sw", [replace(pair(i), language="sw") for i in range(99)])  # the last one is missing
    with pytest.raises(SDRRLError, match="not those of the answers.*--overwrite_stage translate"):
        Mix(config(tmp_path, parallel=None, target_languages=["pt", "sw"]), tmp_path, {})


def sentence(i, **changes):
    texts = (f"Sentence number {i}.",), (f"A frase número {i}.",)
    return replace(Pair(f"parallel-{i}", "pt", *texts, is_sentence=True), **changes)


def mix_with_sentences(path, sentences, **options):
    write(path / "parallel", sentences)
    return mix_of(path, parallel="corpus", **options)


def sentences_in(mix, split):
    mix.choose()
    rows = (row for found, row in mix.rows() if found == split)
    return {row["source_id"] for row in rows if row["source_id"].startswith("parallel")}


def test_some_parallel_sentences_are_held_out_and_never_trained_on_under_another_translation(tmp_path):
    sentences = [sentence(i) for i in range(100)]
    mix = mix_with_sentences(tmp_path, sentences, proportions={"source": 1, "translation": 10})
    train, test = sentences_in(mix, "train"), sentences_in(mix, "test")
    assert len(test) == 20 and test.isdisjoint(train) and len(train) > 40
    held_out = next(pair for pair in sentences if pair.source_id in test)
    other = replace(held_out, source_id="parallel-1000", source=("Another sentence.",))
    mix = mix_with_sentences(tmp_path, [*sentences, other], proportions={"source": 1, "translation": 10})
    mix.choose()
    assert mix.rejected == {"mix/held_out pt": 1} or other.source_id in sentences_in(mix, "test")


@pytest.mark.parametrize("options, n", [({}, 200), ({"test_size": 0.0}, 0)])
def test_sentences_that_are_not_trained_on_are_all_held_out_up_to_two_hundred(tmp_path, options, n):
    sentences = [sentence(i) for i in range(250)] + [sentence(999, source=())]
    mix = mix_with_sentences(tmp_path, sentences, proportions={"source": 1, "target": 1}, **options)
    assert len(sentences_in(mix, "test")) == n and not sentences_in(mix, "train")


def test_a_language_with_few_parallel_sentences_has_its_share_of_those_held_out(tmp_path):
    few = [sentence(i, language="es", source=(f"Other sentence {i}.",)) for i in range(1000, 1030)]
    mix = mix_with_sentences(tmp_path, [*(sentence(i) for i in range(900)), *few], proportions={"source": 1})
    assert len(sentences_in(mix, "test")) == 200 + 30
