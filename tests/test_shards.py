from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from sdrrl_trl import SDRRLError
from sdrrl_trl.stages import check_options, clear_stage
from sdrrl_trl.transfer.shards import Stage, map_shards, read_shards
from sdrrl_trl.utils import check_output_dir, locked


@dataclass(frozen=True)
class Row:
    text: str
    numbers: tuple[int, ...]


ROWS = [Row(f"ü\u2028{i}", (i,)) for i in range(10)]


@pytest.fixture
def stage(tmp_path):
    return Stage("answer", tmp_path / "stages" / "answer", {"model": "a", "n": 1})


def run(stage, rows=ROWS):
    """Makes what is missing; returns how many rows each shard had that was made."""
    made = []

    def double(shard):
        made.append(len(shard))
        return [replace(row, numbers=row.numbers * 2) for row in shard]

    map_shards(rows, double, stage, size=4, total=len(ROWS))
    return made


def test_rows_are_cut_once_and_read_back_in_their_order(stage):
    assert run(stage) == [4, 4, 2]
    assert sorted(path.name for path in stage.folder.glob("*.jsonl")) == [f"0000{n}.jsonl" for n in range(3)]
    assert list(read_shards(stage.folder, Row)) == [Row(row.text, row.numbers * 2) for row in ROWS]


def test_what_is_there_is_done_and_the_rows_are_not_read_again(stage):
    run(stage)
    (stage.folder / "00099.jsonl").write_text("of somebody else")
    assert run(stage, rows=(1 / 0 for _ in "x")) == []
    (stage.folder / "00001.jsonl").unlink()
    (stage.folder / ".00001.jsonl.1.tmp").write_text("by a process that was killed")
    assert run(stage) == [4] and not list(stage.folder.glob(".*"))
    assert list(read_shards(stage.folder, Row)) == [Row(row.text, row.numbers * 2) for row in ROWS]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[: data.rindex(b"{")],  # the last line, with the number of rows
        lambda data: data.split(b"\n", 1)[1],
        lambda data: data.replace(b"numbers", b"n\xffmbers", 1),
    ],
    ids=["empty", "half", "without end", "without beginning", "not text"],
)
def test_a_damaged_shard_is_noticed_and_done_again_alone(stage, damage):
    run(stage)
    path = stage.folder / "00001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(SDRRLError, match="00001.jsonl is damaged. Run the same command again"):
        list(read_shards(stage.folder, Row))
    assert run(stage) == [4]
    assert path.read_bytes() == whole


def test_a_shard_that_fails_leaves_nothing_and_those_before_it_stay(stage):
    def fails(shard):
        if shard[0] is ROWS[4]:
            raise RuntimeError("no")
        return shard

    with pytest.raises(RuntimeError):
        map_shards(ROWS, fails, stage, 4, len(ROWS))
    assert sorted(path.name for path in stage.folder.iterdir()) == ["00000.jsonl", "options.json"]


def test_other_options_are_refused_by_name_and_nothing_is_lost(stage):
    run(stage)
    with pytest.raises(SDRRLError, match=r"n: was 1, is 2.*--overwrite_stage answer"):
        run(replace(stage, options={"model": "a", "n": 2}))
    assert len(list(read_shards(stage.folder, Row))) == 10


@pytest.mark.parametrize("damage", [None, "", "[]", "null", "{", '{"n": 1}'])
def test_missing_or_damaged_options_are_refused(stage, damage):
    run(stage)
    (stage.folder / "options.json").write_text(damage or "")
    if damage is None:
        (stage.folder / "options.json").unlink()
    with pytest.raises(SDRRLError, match="options.json"):
        run(stage)


def test_only_what_a_stage_has_written_is_cleared(stage, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for refused in (clear_stage, partial(check_options, options={})):
        with pytest.raises(SDRRLError, match="holds thesis.txt, "):
            refused(tmp_path, stage="answer")
    run(stage)
    with pytest.raises(SDRRLError, match="holds the results of the stage 'answer', not of 'other'"):
        clear_stage(stage.folder, "other")
    (stage.folder / "mine").mkdir()
    (stage.folder / "mine" / "thesis.txt").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(SDRRLError, match="holds mine/thesis.txt, which the stage 'answer' has not written"):
        clear_stage(stage.folder, "answer")
    assert len(list(read_shards(stage.folder, Row))) == 10
    (stage.folder / "mine" / "thesis.txt").rename(tmp_path / "link")
    clear_stage(stage.folder, "answer")
    assert not list(stage.folder.iterdir()) and (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("place", ["link", "."])
def test_a_folder_may_be_a_link_or_the_one_we_are_in(stage, monkeypatch, place):
    run(stage)
    stage.folder.with_name("link").symlink_to(stage.folder)
    monkeypatch.chdir(stage.folder if place == "." else stage.folder.parent)
    with locked(Path(place)):
        clear_stage(Path(place), "answer")
    assert run(stage) == [4, 4, 2]


def test_a_lock_needs_nothing_but_its_folder_and_goes_with_leftovers_of_killed_processes(stage):
    run(stage)
    (stage.folder.parent / ".manifest.json.1.tmp").write_text("half a line")
    (stage.folder.parent / ".mine.tmp").write_text("of somebody else")
    with locked(stage.folder.parent):
        assert {path.name for path in stage.folder.parent.glob(".*")} == {".lock", ".mine.tmp"}
        assert [path.name for path in stage.folder.parents[1].iterdir()] == ["stages", "timings.json"]
        with pytest.raises(SDRRLError, match="is in use"), locked(stage.folder.parent):
            pass
    with pytest.raises(SDRRLError, match="is the root of a disk"):
        check_output_dir(Path("/"), 0)
    for wrong in (stage.folder / "00001.jsonl", stage.folder / ("x" * 300), stage.folder / "\0"):
        with pytest.raises(SDRRLError, match="Cannot write|There can be no"):
            check_output_dir(wrong, 0)
            with locked(wrong):
                pass
