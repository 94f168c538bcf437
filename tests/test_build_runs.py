"""Runs of the whole builder: interrupted, shared by processes, with many rows, with faulty engines."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_json_lines
from datasets import load_dataset
from stub_engines import StubGenerator, StubTranslator, build, content, rejected_of, sentence

from sdrrl_trl import SDRRLError
from sdrrl_trl.transfer.publish import load_manifest, summary
from sdrrl_trl.transfer.rows import KINDS


def test_all_kinds_are_made_and_what_is_dropped_is_kept_elsewhere(whole):
    data = load_dataset(str(whole))
    assert set(data["train"]["kind"]) == {"source", "target", "target_to_source", "source_to_target", "code_switch"}
    assert {(row["source_id"], row["reason"]) for row in rejected_of(whole)} == {
        ("long", "question_too_long"),
        ("again", "duplicate"),
    }
    for row in data["train"]:
        if row["kind"] == "code_switch":
            assert "`code " in row["prompt"][0]["content"]
            words = row["prompt"][0]["content"].lower().replace(".", "").split()
            assert set(StubTranslator.VOCABULARY.values()) & set(words)
    manifest = load_manifest(whole)
    found = {"texts": 80, "with_masks": 40, "lost_masks": 0, "words": 480, "switched_words": 67}
    assert manifest["counts"]["translated"]["pt"] == found
    assert "in 40 of 80 texts; lost by the translator in 0" in summary(manifest)
    assert "code-switched, pt: 67 of the 480 words" in summary(manifest)


# Number and hash of the records by split, made by the builder of the first edition (commit a627d0d)
GOLDEN = {
    "train": "195 78ac89a64e85b23d77e265ddbb7f6cf33f7899e301b4989507d62a00357230a6",
    "test": "72 c5d9b37f603edc3556140570a38975368934dfaa51aa911f63f61f64bd658263",
}


def test_the_records_are_those_that_the_first_edition_made_of_the_same_answers(stub_seeds, parallel, tmp_path):
    options = {"proportions": dict.fromkeys(KINDS, 1), "size": 10**6, "test_size": 0.3, "parallel": parallel}
    folder = build(stub_seeds, tmp_path / "set", **options)
    for split, rows in load_dataset(str(folder)).items():
        lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
        assert f"{len(lines)} {hashlib.sha256(''.join(lines).encode()).hexdigest()}" == GOLDEN[split]


def build_slowly(seeds, folder, logs):
    build(seeds, folder, StubGenerator(logs / "asked", pause=0.04), StubTranslator(logs / "sent", pause=0.04))


def test_killed_at_20_random_moments_the_bytes_are_the_same_and_only_shards_are_repeated(stub_seeds, whole, tmp_path):
    folder, rng, kills, builds = tmp_path / "killed", random.Random(0), 0, 0
    fork = multiprocessing.get_context("fork")
    while kills < 20 or not builds:
        process = fork.Process(target=build_slowly, args=(stub_seeds, folder, tmp_path))
        process.start()
        process.join(rng.uniform(0.05, 0.4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:  # finished: once more from the start
            assert content(folder) == content(whole)
            shutil.rmtree(folder)
            builds += 1
    build_slowly(stub_seeds, folder, tmp_path)
    assert content(folder) == content(whole)
    repeated = {}
    for log, most in (("asked", 3), ("sent", 3 * 5)):  # questions and sentences of a shard
        lines, of_one = ((tmp_path / name).read_text().count("\n") for name in (log, f"whole_{log}"))
        repeated[log] = lines - (builds + 1) * of_one
        assert repeated[log] <= most * kills, log
    assert sum(repeated.values()) > 0  # it was killed at work


def test_two_processes_give_the_same_bytes_as_one_and_share_the_work(stub_seeds, whole, tmp_path):
    script = Path(__file__).parent / "distributed_build.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{script.parents[1]}:{script.parent}"}
    command = [*launcher, stub_seeds, str(tmp_path / "two"), str(tmp_path), "2"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert content(tmp_path / "two") == content(whole)
    assert result.stderr.count("42 questions") == 1  # one process speaks
    for log in ("asked", "sent"):
        shares = [(tmp_path / f"{log}-{rank}").read_text().splitlines() for rank in range(2)]
        assert min(map(len, shares)) > 0.3 * len(shares[0] + shares[1])
        together = Counter((tmp_path / f"whole_{log}").read_text().splitlines())
        assert Counter(shares[0] + shares[1]) == together  # each shard is done by one of them


def test_a_run_goes_on_from_what_any_process_has_left(stub_seeds, whole, tmp_path):
    """A shard that a killed second process had finished, and one that was damaged since."""
    folder, log = tmp_path / "whole" / "stages" / "answer", tmp_path / "asked"
    for number in (0, 2, 3):
        (folder / f"{number:05}.jsonl").unlink()
    damaged = folder / "00001.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (whole / "manifest.json").unlink()
    before = content(whole, missing="manifest.json")
    build(stub_seeds, whole, generator=StubGenerator(log))
    assert {name: content(whole)[name] for name in before} == before
    assert len(log.read_text().splitlines()) == 4 * 3


def test_each_distinct_segment_of_a_shard_is_sent_once(stub_seeds, tmp_path):
    log = tmp_path / "sent"
    build(stub_seeds, tmp_path / "set", shard_size=100, translator=StubTranslator(log))
    assert max(Counter(log.read_text().splitlines()).values()) == 1


class Faulty(StubTranslator):
    """Spoils the translation of some segments."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def translate(self, texts, source, target):
        return [self.spoil(t) for t in super().translate(texts, source, target)]


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda text: None if "Rio" in text else text, "_empty"),
        (lambda text: "" if "Rio" in text else text, "_empty"),
        (lambda text: "The sky is blue and very large" if "Rio" in text else text, "_wrong_lang"),
        (lambda text: text + " Rio e céu sobre a casa grande." * 9 if "Rio" in text else text, "_length|_repet"),
    ],
)
def test_bad_translations_are_rejected_with_a_reason_and_nothing_is_lost(stub_seeds, tmp_path, spoil, reason):
    folder = build(stub_seeds, tmp_path / "set", proportions={"source": 1, "target": 1}, translator=Faulty(spoil))
    rejected = [row for row in rejected_of(folder) if row["stage"] == "translate"]
    assert rejected and all(re.search(reason, row["reason"]) for row in rejected)
    data = load_dataset(str(folder))
    assert not {row["source_id"] for row in rejected} & {
        row["source_id"] for split in data.values() for row in split if row["kind"] == "target"
    }


def test_lost_masks_are_rescued_in_pieces_and_counted(stub_seeds, tmp_path):
    spoiled = Faulty(lambda text: text.replace("ZX1Q", ""))
    folder = build(stub_seeds, tmp_path / "set", translator=spoiled)
    assert json.loads((folder / "manifest.json").read_text())["counts"]["translated"]["pt"]["lost_masks"] == 40
    rows = [row for row in load_dataset(str(folder), split="train") if row["kind"] == "target"]
    assert rows and all("`code " in row["prompt"][0]["content"] for row in rows)


def test_reference_answers_need_no_model_and_rewriting_shows_them_to_it(tmp_path):
    rows = [{"instruction": f"{sentence(str(i))}", "output": sentence(f"a{i}")} for i in range(12)]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    options = {"answer_source": "reference", "lexicon": None}
    folder = build(seeds, tmp_path / "set", **options, generator=None)
    answers = {row["completion"][0]["content"] for row in load_dataset(str(folder), split="train")}
    assert answers & {row["output"] for row in rows}
    log = tmp_path / "asked"
    options["answer_source"] = "rewrite"
    build(seeds, tmp_path / "re", **options, generator=StubGenerator(log))
    assert all(row["output"] in log.read_text() for row in rows)
    write_json_lines(seeds, [*rows, {"id": "bare", "instruction": "Hello?"}])
    with pytest.raises(SDRRLError, match="bare has none"):
        build(seeds, tmp_path / "x", **options, generator=None)


def test_thoughts_are_taken_off_and_unfinished_ones_reject_the_row(stub_seeds, tmp_path):
    class Thinking(StubGenerator):
        def generate(self, conversations):
            answers = super().generate(conversations)
            return [
                type(a)(f"<think>Hm {a.text}</think>\n{a.text}" if i else "<think>Hm", a.finish_reason, 9)
                for i, a in enumerate(answers)
            ]

    folder = build(stub_seeds, tmp_path / "set", generator=Thinking())
    reasons = Counter(row["reason"] for row in rejected_of(folder))
    assert reasons["empty"] == 14  # the first of each batch of three
    texts = [row["completion"][0]["content"] for row in load_dataset(str(folder), split="train")]
    assert not any("think>" in text for text in texts)


def test_a_dry_run_shows_the_counts_and_writes_nothing(stub_seeds, tmp_path, capsys):
    build(stub_seeds, tmp_path / "set", dry_run=True, max_new_tokens=10_000)
    output = capsys.readouterr().out
    for part in ("42 questions", "at most 420,000 tokens; at 1,000 tokens/s at most 0.12 h", "target", "into pt"):
        assert part in output, output
    assert not (tmp_path / "set").exists()


def test_inspect_shows_samples_and_no_control_characters(stub_seeds, tmp_path):
    class Colourful(StubGenerator):
        def generate(self, conversations):
            answers = super().generate(conversations)
            return [type(answer)(f"\x1b[31m\x9b\u202e\t{answer.text}", "stop", 9) for answer in answers]

    from sdrrl_trl.transfer.inspect import inspect_transfer_set

    folder = build(stub_seeds, tmp_path / "set", generator=Colourful())
    output = inspect_transfer_set(folder, n=1, width=80)
    for part in (
        "== source en-en |",
        "== code_switch en-pt |",
        "== rejected: answer/question_too_long en | long",
        "[...]",
    ):
        assert part in output
    assert output.count("== source en-en |") == 1
    assert "\\x1b[31m\\x9b\\u202e\\t" in output
    assert all(char.isprintable() or char == "\n" for char in output)


def test_a_non_commercial_translator_is_told(stub_seeds, tmp_path, capsys):
    class NonCommercial(StubTranslator):
        def describe(self):
            return {"engine": "stub", "licence": "CC-BY-NC-4.0"}

    build(stub_seeds, tmp_path / "set", translator=NonCommercial())
    assert "warning: the translator is under CC-BY-NC-4.0" in capsys.readouterr().err


def test_files_that_are_not_ours_are_not_replaced(stub_seeds, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text("mine")
    with pytest.raises(SDRRLError, match="holds README.md, which `sdrrl build` has not written"):
        build(stub_seeds, tmp_path / "set")
    assert (tmp_path / "set" / "README.md").read_text() == "mine"


def test_a_run_does_not_go_on_with_another_engine(stub_seeds, whole):
    class Other(StubGenerator):
        def describe(self):
            return {"engine": "other"}

    with pytest.raises(SDRRLError, match="engine: was {'engine': 'stub'}, is {'engine': 'other'}"):
        build(stub_seeds, whole, generator=Other())


def test_a_mix_that_fails_leaves_the_finished_set_as_it_was(stub_seeds, whole):
    before = content(whole)
    with pytest.raises(SDRRLError, match="no record of"):
        build(stub_seeds, whole, size=1, overwrite_stage="mix")
    build(stub_seeds, whole)
    assert content(whole) == before


def test_test_questions_come_into_training_neither_by_parallel_data_nor_by_other_conversations(tmp_path):
    texts = [f"{sentence(str(i), 8)}" for i in range(30)]
    rows = [{"id": f"q{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]
    answer = {"role": "assistant", "content": "The light."}
    rows += [
        {"id": f"m{i}", "messages": [*row["messages"], answer, {"role": "user", "content": sentence(f"m{i}")}]}
        for i, row in enumerate(rows)
    ]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    pairs = [{"en": text, "pt": StubTranslator._words(text)} for text in texts]
    parallel = str(write_json_lines(tmp_path / "parallel.jsonl", pairs))
    options = {"parallel": parallel, "test_size": 0.3, "lexicon": None}
    folder = build(seeds, tmp_path / "set", **options)
    data = {name: list(rows) for name, rows in load_dataset(str(folder)).items()}
    asked = {row["prompt"][-1]["content"] for row in data["test"] if row["kind"] in ("source", "target")}
    assert len(asked) >= 20
    for row in data["train"]:
        text = "\n".join(message["content"] for message in (*row["prompt"], *row["completion"]))
        assert not [question for question in asked if question in text]
    reasons = Counter((row["stage"], row["reason"]) for row in rejected_of(folder))
    assert reasons["mix", "held_out"] and reasons["parallel", "held_out"]


def test_a_language_without_any_record_is_an_error_and_not_silence(stub_seeds, tmp_path):
    class OnlyPortuguese(StubTranslator):
        def translate(self, texts, source, target):
            return super().translate(texts, source, target) if "sw" not in (source, target) else [""] * len(texts)

    options = {"target_languages": ["pt", "sw"], "lexicon": None}
    with pytest.raises(SDRRLError, match="no record of: target sw, .*translate/question_empty sw 40"):
        build(stub_seeds, tmp_path / "set", translator=OnlyPortuguese(), **options)


def test_sentences_without_a_pair_are_rejected_with_a_reason(stub_seeds, parallel, tmp_path):
    options = {"parallel": parallel, "test_size": 0}
    folder = build(stub_seeds, tmp_path / "set", **options)
    reasons = Counter(row["reason"] for row in rejected_of(folder) if row["stage"] == "parallel")
    assert reasons == {"no_pair": 2, "duplicate": 1}


@pytest.mark.parametrize(
    "options, named",
    [
        ({"size": 1}, "no record of.*Available: code_switch pt 76"),
        ({"test_size": 0.99}, "no record of"),
        ({"seeds": {"path": "x.jsonl", "split": "test"}}, "x.jsonl has no `name` or `split`"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_done(stub_seeds, tmp_path, options, named):
    log = tmp_path / "asked"
    with pytest.raises(SDRRLError, match=named):
        build(options.pop("seeds", stub_seeds), tmp_path / "set", generator=StubGenerator(log), **options)
    assert not log.exists() and not (tmp_path / "set").exists()


@pytest.mark.parametrize("broken", [lambda a: a[:-1], lambda a: ["text"] * len(a)])
def test_answers_that_do_not_fit_the_questions_stop_the_stage(stub_seeds, tmp_path, broken):
    class Broken(StubGenerator):
        def generate(self, conversations):
            return broken(super().generate(conversations))

    with pytest.raises(SDRRLError, match="cannot be matched with their originals"):
        build(stub_seeds, tmp_path / "set", generator=Broken())
