"""Runs of the whole builder: interrupted, shared by processes, with many rows."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from builder import scale, segments_sent
from stub_engines import StubGenerator, StubTranslator, answer_with_model, build, content, rows_of

from sdrrl_trl.transfer.rows import KINDS


# Number and hash of the records, made by the builder of the first edition (commit a627d0d). It held no sentences out
GOLDEN = {
    "train": "168 3219c37899e6e5f7c0da3b6e91e2200cea5cf4a09f7d5de0058da32c80ec459b",
    "test": "72 c5d9b37f603edc3556140570a38975368934dfaa51aa911f63f61f64bd658263",
    "sentences": "27 fa2df035ea85873e3af0dcdc8b7b355541c94e5b5eabe5eec1da9a4b7570406c",
}


def test_the_records_are_those_that_the_first_edition_made_of_the_same_answers(stub_seeds, parallel, tmp_path):
    options = {"proportions": dict.fromkeys(KINDS, 1), "size": 10**6, "test_size": 0.3, "parallel": parallel}
    folder = build(stub_seeds, tmp_path / "set", **options)
    found = {name: [] for name in GOLDEN}
    for split in ("train", "test"):
        for row in rows_of(folder, split):
            name = "sentences" if row["kind"] in ("translation", "completion") else split
            found[name].append(json.dumps({key: row[key] for key in row if key != "truncated"}, sort_keys=True))
    for name, lines in found.items():
        assert f"{len(lines)} {hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()}" == GOLDEN[name]


def build_slowly(seeds, folder, logs):
    build(seeds, folder, StubGenerator(logs / "asked", 0.04), StubTranslator(logs / "sent", 0.04))


def test_killed_at_20_random_moments_the_bytes_are_the_same_and_only_shards_are_repeated(stub_seeds, whole, tmp_path):
    folder, rng, kills, builds = tmp_path / "killed", random.Random(0), 0, 0
    fork = multiprocessing.get_context("fork")
    while kills < 20:
        process = fork.Process(target=build_slowly, args=(stub_seeds, folder, tmp_path))
        process.start()
        process.join(rng.uniform(0.05, 0.9))
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


def test_two_processes_give_the_same_bytes_as_one_and_share_the_work(stub_seeds, whole, tmp_path, tiny_model):
    script = Path(__file__).parent / "stub_engines.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{script.parents[1]}:{script.parent}"}
    command = [*launcher, stub_seeds, str(tmp_path / "two"), str(tmp_path), tiny_model]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert content(tmp_path / "two") == content(whole)
    assert result.stderr.count("42 questions") == 1  # one process speaks
    for log in ("asked", "sent"):
        shares = [(tmp_path / f"{log}-{rank}").read_text().splitlines() for rank in range(2)]
        assert min(map(len, shares)) > 0.3 * len(shares[0] + shares[1])
        together = Counter((tmp_path / f"whole_{log}").read_text().splitlines())
        assert Counter(shares[0] + shares[1]) == together  # each shard is done by one of them
    # The same for answers that a model samples, and for a run that goes on after a kill
    sampled = answer_with_model(stub_seeds, tmp_path / "sampled", tiny_model)
    assert len(sampled) == 14
    for folder in ("two_sampled", "sampled"):
        (tmp_path / folder / "stages" / "answer" / "00003.jsonl").unlink()
        assert answer_with_model(stub_seeds, tmp_path / folder, tiny_model) == sampled


def test_a_run_goes_on_from_what_any_process_has_left(stub_seeds, whole, tmp_path):
    """A shard that a killed second process had finished, and one that was damaged since."""
    folder, log = tmp_path / "whole" / "stages" / "answer", tmp_path / "asked"
    for number in (0, 2, 3):
        (folder / f"{number:05}.jsonl").unlink()
    damaged = folder / "00001.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    before = content(whole)
    (whole / "manifest.json").unlink()
    assert content(build(stub_seeds, whole, StubGenerator(log))) == before
    assert len(log.read_text().splitlines()) == 4 * 3


def test_memory_does_not_grow_from_1000_to_20000_questions_and_rows_take_little_time():
    small, large = scale((1_000, 20_000)).values()
    assert large["peak"] <= 1.3 * small["peak"]
    assert large["rows"] / large["cpu_seconds"] >= 1_000  # engines give some tens


def test_fewer_segments_are_sent_than_there_are_sentences():
    loop, sent, distinct = segments_sent()
    assert 0 < distinct <= sent < loop
