"""Runs of the whole builder: interrupted, shared by processes, with many rows, with faulty engines."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_json_lines
from datasets import Dataset, load_dataset
from stub_engines import StubGenerator, StubTranslator, sentence

from sdrrl_trl import SDRRLError, TransferConfig, build_transfer_set


def config(seeds, folder, **options):
    base = {"seeds": str(seeds), "output_dir": str(folder), "model_name_or_path": "stub", "target_languages": ["pt"]}
    base |= {"batch_size": 3, "translation_batch_size": 5, "lexicon": "translator", "back_translation_chrf": 20.0}
    return TransferConfig(**base | options)


def content(folder: Path) -> dict[str, bytes]:
    names = ("train.parquet", "test.parquet", "rejected.parquet", "manifest.json", "README.md")
    return {name: (Path(folder) / name).read_bytes() for name in names}


@pytest.fixture
def seeds(tmp_path):
    rows = [{"id": f"q{i}", "instruction": f"{sentence(str(i), 8)} See `code {i}` now."} for i in range(40)]
    rows += [{"id": "long", "instruction": "word " * 300_000}, {"id": "again", "instruction": rows[3]["instruction"]}]
    return str(write_json_lines(tmp_path / "seeds.jsonl", rows))


@pytest.fixture
def whole(seeds, tmp_path):
    """A set built without interruption by one process."""
    return build_transfer_set(config(seeds, tmp_path / "whole"), StubGenerator(), StubTranslator())


def test_all_kinds_are_made_and_what_is_dropped_is_kept_elsewhere(whole):
    data = load_dataset(str(whole))
    assert set(data["train"]["kind"]) == {"source", "target", "target_to_source", "source_to_target", "code_switch"}
    rejected = {(row["source_id"], row["reason"]) for row in Dataset.from_parquet(str(whole / "rejected.parquet"))}
    assert rejected == {("long", "too_long"), ("again", "duplicate")}
    switched = [row for row in data["train"] if row["kind"] == "code_switch"]
    for row in switched:
        assert "`code " in row["prompt"][0]["content"]
        words = row["prompt"][0]["content"].lower().replace(".", "").split()
        assert set(StubTranslator.VOCABULARY.values()) & set(words)
    manifest = json.loads((whole / "manifest.json").read_text())
    counts = manifest["counts"]["code_switch"]["pt"]
    assert 0.1 < counts["switched"] / counts["words"] < 0.5
    assert manifest["counts"]["masks"]["pt"] == {"texts": 80, "with_masks": 40, "lost": 0, "rescued": 0}


def build_and_die(seeds, folder, logs):
    engines = StubGenerator(logs / "asked", pause=0.06), StubTranslator(logs / "sent", pause=0.06)
    build_transfer_set(config(seeds, folder), *engines)


def test_killed_at_20_random_moments_the_bytes_are_the_same_and_nothing_is_done_twice(seeds, whole, tmp_path):
    folder, rng, kills = tmp_path / "killed", random.Random(0), 0
    fork = multiprocessing.get_context("fork")
    while kills < 20:
        process = fork.Process(target=build_and_die, args=(seeds, folder, tmp_path))
        process.start()
        process.join(rng.uniform(0.05, 0.35))
        assert process.is_alive(), f"it was done after {kills} kills"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    build_and_die(seeds, folder, tmp_path)
    assert content(folder) == content(whole)
    for log, batch in (("asked", 3), ("sent", 5)):
        lines = (tmp_path / log).read_text().splitlines()
        assert len(lines) - len(set(lines)) <= batch * kills, log  # at most the batch in flight of each kill


def test_two_processes_give_the_same_bytes_as_one_and_share_the_work(seeds, whole, tmp_path):
    script = Path(__file__).parent / "distributed_build.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    command = [*launcher, seeds, str(tmp_path / "two"), str(tmp_path), "2"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert content(tmp_path / "two") == content(whole)
    assert result.stderr.count("training tokens") == 1  # one process speaks
    for log in ("asked", "sent"):
        shares = [(tmp_path / f"{log}-{rank}").read_text().splitlines() for rank in range(2)]
        assert min(map(len, shares)) > 0.3 * len(shares[0] + shares[1])
        assert not set(shares[0]) & set(shares[1])


def test_a_run_may_go_on_with_another_number_of_processes(seeds, whole, tmp_path):
    """Rows that a killed process 1 has left are taken over by a run of one process."""
    from sdrrl_trl.transfer.plan import Plan
    from sdrrl_trl.transfer.seeds import Seeds
    from sdrrl_trl.transfer.store import Store

    options = config(seeds, tmp_path / "set")
    folder, recorded = (
        tmp_path / "set" / "stages" / "generate",
        Plan(options, StubGenerator(), StubTranslator()).options("generate"),
    )
    Store(folder, recorded).close()
    batch = list(Seeds(seeds).batches(3, 20_000))[1]
    with Store(folder, recorded, rank=1) as store:
        answers = StubGenerator().generate([[{"content": seed.turns[-1]}] for seed in batch])
        store.put({seed.id: vars(answer) for seed, answer in zip(batch, answers, strict=True)})
    log = tmp_path / "asked"
    build_transfer_set(options, StubGenerator(log), StubTranslator())
    assert content(tmp_path / "set") == content(whole)
    assert not {repr(seed.turns[-1]) for seed in batch} & set(log.read_text().splitlines())


def test_each_distinct_segment_is_sent_once(seeds, tmp_path):
    log = tmp_path / "sent"
    build_transfer_set(config(seeds, tmp_path / "set"), StubGenerator(), StubTranslator(log))
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
        (
            lambda text: "The sky is blue and very large" if "Rio" in text else text,
            "_wrong_lang|_back",
        ),
        (lambda text: text + " Rio e céu sobre a casa grande." * 9 if "Rio" in text else text, "_length|_repet|_back"),
    ],
)
def test_bad_translations_are_rejected_with_a_reason_and_nothing_is_lost(seeds, tmp_path, spoil, reason):
    import re

    folder = build_transfer_set(
        config(seeds, tmp_path / "set", proportions={"source": 1, "target": 1}), StubGenerator(), Faulty(spoil)
    )
    rejected = [row for row in Dataset.from_parquet(str(folder / "rejected.parquet")) if row["stage"] == "translate"]
    assert rejected and all(re.search(reason, row["reason"]) for row in rejected)
    data = load_dataset(str(folder))
    assert not {row["source_id"] for row in rejected} & {
        row["source_id"] for split in data.values() for row in split if row["kind"] == "target"
    }


def test_lost_masks_are_rescued_in_pieces_and_counted(seeds, tmp_path):
    folder = build_transfer_set(
        config(seeds, tmp_path / "set", back_translation_chrf=0.0),
        StubGenerator(),
        Faulty(lambda text: text.replace("ZX1Q", "")),
    )
    assert json.loads((folder / "manifest.json").read_text())["counts"]["masks"]["pt"]["lost"] == 40
    rows = [row for row in load_dataset(str(folder), split="train") if row["kind"] == "target"]
    assert rows and all("`code " in row["prompt"][0]["content"] for row in rows)


def test_reference_answers_need_no_model_and_rewriting_shows_them_to_it(tmp_path):
    rows = [{"instruction": f"{sentence(str(i))}", "output": sentence(f"a{i}")} for i in range(12)]
    seeds = write_json_lines(tmp_path / "seeds.jsonl", rows)
    folder = build_transfer_set(config(seeds, tmp_path / "set", answer_source="reference"), None, StubTranslator())
    answers = {row["completion"][0]["content"] for row in load_dataset(str(folder), split="train")}
    assert answers & {row["output"] for row in rows}
    log = tmp_path / "asked"
    build_transfer_set(config(seeds, tmp_path / "re", answer_source="rewrite"), StubGenerator(log), StubTranslator())
    asked = log.read_text()
    assert all(row["output"] in asked for row in rows)
    write_json_lines(seeds, [*rows, {"id": "bare", "instruction": "Hello?"}])
    with pytest.raises(SDRRLError, match="bare has none"):
        build_transfer_set(config(seeds, tmp_path / "x", answer_source="reference"), None, StubTranslator())


def test_thoughts_are_taken_off_and_unfinished_ones_reject_the_row(seeds, tmp_path):
    class Thinking(StubGenerator):
        def generate(self, conversations):
            answers = super().generate(conversations)
            return [
                type(a)(f"<think>Hm {a.text}</think>\n{a.text}" if i else "<think>Hm", a.finish_reason, 9)
                for i, a in enumerate(answers)
            ]

    folder = build_transfer_set(config(seeds, tmp_path / "set"), Thinking(), StubTranslator())
    reasons = Counter(row["reason"] for row in Dataset.from_parquet(str(folder / "rejected.parquet")))
    assert reasons["empty"] == 14  # the first of each batch of three
    texts = [row["completion"][0]["content"] for row in load_dataset(str(folder), split="train")]
    assert not any("think>" in text for text in texts)


def test_a_dry_run_shows_the_counts_and_writes_nothing(seeds, tmp_path, capsys):
    options = {"dry_run": True, "tokens_per_second": 100.0, "price_per_million_tokens": 2.0, "max_new_tokens": 100}
    build_transfer_set(config(seeds, tmp_path / "set", licences={"seeds": "CC-BY-NC-4.0"}, **options))
    output = capsys.readouterr().out
    for part in ("41 questions", "at most 4,100 tokens", "0.01 h", "target", "seeds: CC-BY-NC-4.0 (non-commercial)"):
        assert part in output, output
    assert "licence of translator: Apache-2.0" in output
    assert not (tmp_path / "set").exists()


def test_inspect_shows_samples_of_each_kind_and_of_what_was_rejected(whole):
    from sdrrl_trl.transfer.inspect import inspect_transfer_set

    output = inspect_transfer_set(whole, n=1, width=80)
    for part in ("== source en-en |", "== code_switch en-pt |", "== rejected: seeds/too_long en | long", "[...]"):
        assert part in output
    assert output.count("== source en-en |") == 1


def test_the_share_of_rows_under_a_non_commercial_licence_is_told(seeds, tmp_path):
    shares = []
    for licences in ({}, {"seeds": "CC-BY-NC-4.0"}):
        folder = build_transfer_set(
            config(seeds, tmp_path / str(len(shares)), licences=licences), StubGenerator(), StubTranslator()
        )
        shares.append(json.loads((folder / "manifest.json").read_text())["counts"]["non_commercial"])
    assert shares == [0.0, 1.0]


def rows_of(folder):
    return {name: list(data) for name, data in load_dataset(str(folder)).items()}


def test_files_that_are_not_ours_are_not_replaced(seeds, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text("mine")
    with pytest.raises(SDRRLError, match="holds README.md, which `sdrrl build` has not written"):
        build_transfer_set(config(seeds, tmp_path / "set"), StubGenerator(), StubTranslator())
    assert (tmp_path / "set" / "README.md").read_text() == "mine"


def test_a_run_does_not_go_on_with_another_engine(seeds, whole):
    class Other(StubGenerator):
        def describe(self):
            return {"engine": "other"}

    with pytest.raises(SDRRLError, match="engine: was {'engine': 'stub'}, is {'engine': 'other'}"):
        build_transfer_set(config(seeds, whole), Other(), StubTranslator())


def test_a_mix_that_fails_leaves_the_finished_set_as_it_was(seeds, whole):
    before = content(whole)
    with pytest.raises(SDRRLError, match="no record of"):
        options = config(seeds, whole, size=1, overwrite_stage="mix")
        build_transfer_set(options, StubGenerator(), StubTranslator())
    build_transfer_set(config(seeds, whole), StubGenerator(), StubTranslator())
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
    pairs = [{"en": text, "pt": StubTranslator._words(text, StubTranslator.VOCABULARY)} for text in texts]
    parallel = str(write_json_lines(tmp_path / "parallel.jsonl", pairs))
    options = {"parallel": parallel, "test_size": 0.3, "proportions": None}
    data = rows_of(build_transfer_set(config(seeds, tmp_path / "set", **options), StubGenerator(), StubTranslator()))
    asked = {row["prompt"][-1]["content"] for row in data["test"] if row["kind"] in ("source", "target")}
    assert len(asked) >= 20
    for row in data["train"]:
        text = "\n".join(message["content"] for message in (*row["prompt"], *row["completion"]))
        assert not [question for question in asked if question in text]
    reasons = Counter(
        (row["stage"], row["reason"]) for row in Dataset.from_parquet(str(tmp_path / "set" / "rejected.parquet"))
    )
    assert reasons["mix", "held_out"] and reasons["parallel", "held_out"]


def test_a_language_without_any_record_is_an_error_and_not_silence(seeds, tmp_path):
    class OnlyPortuguese(StubTranslator):
        def translate(self, texts, source, target):
            return super().translate(texts, source, target) if "sw" not in (source, target) else [""] * len(texts)

    options = config(seeds, tmp_path / "set", target_languages=["pt", "sw"], lexicon=None, back_translation_chrf=0.0)
    with pytest.raises(SDRRLError, match="no record of: target sw, .*translate/question_empty sw 40"):
        build_transfer_set(options, StubGenerator(), OnlyPortuguese())


def test_sentences_without_a_pair_are_rejected_with_a_reason(seeds, tmp_path):
    pairs = [
        {"en": sentence(str(i)), "pt": StubTranslator._words(sentence(str(i)), StubTranslator.VOCABULARY)}
        for i in range(9)
    ]
    pairs += [{"pt": "Curto."}, {"en": "Only source here."}]
    parallel = str(write_json_lines(tmp_path / "parallel.jsonl", pairs))
    folder = build_transfer_set(
        config(seeds, tmp_path / "set", parallel=parallel, test_size=0), StubGenerator(), StubTranslator()
    )
    reasons = Counter(row["reason"] for row in Dataset.from_parquet(str(folder / "rejected.parquet")))
    assert reasons["no_pair"] == 2


@pytest.mark.parametrize(
    "options, named",
    [
        ({"size": 1}, "no record of.*There are 42 questions"),
        ({"test_size": 0.99}, "no record of"),
        ({"code_switch_rate": 0.0}, "does nothing with `code_switch_rate=0`"),
        ({"lexicon": ["a.tsv"]}, "must map languages to files"),
        ({"licences": {"seed": "MIT"}}, "`licences` must map seeds, parallel"),
        ({"licences": "MIT"}, "`licences` must map"),
        ({"columns": {"question": 3}}, "`columns` must map"),
        ({"source_language": "th", "target_languages": ["en"]}, "needs spaces between words"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_done(seeds, tmp_path, options, named):
    log = tmp_path / "asked"
    with pytest.raises(SDRRLError, match=named):
        build_transfer_set(config(seeds, tmp_path / "set", **options), StubGenerator(log), StubTranslator())
    assert not log.exists() and not (tmp_path / "set").exists()


@pytest.mark.parametrize("broken", [lambda a: a[:-1], lambda a: ["text"] * len(a)])
def test_answers_that_do_not_fit_the_questions_stop_the_stage(seeds, tmp_path, broken):
    class Broken(StubGenerator):
        def generate(self, conversations):
            return broken(super().generate(conversations))

    with pytest.raises(SDRRLError, match="cannot be matched with their questions"):
        build_transfer_set(config(seeds, tmp_path / "set"), Broken(), StubTranslator())
