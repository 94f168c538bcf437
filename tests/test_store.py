import sqlite3

import pytest

from sdrrl_trl import SDRRLError
from sdrrl_trl.stages import clear_stage
from sdrrl_trl.transfer.store import Store


OPTIONS = {"model": "a", "n": 1}


def put(tmp_path, rows, rank=0):
    with Store(tmp_path / "s", OPTIONS, rank) as store:
        store.put(rows)


def read(tmp_path, *ids):
    with Store(tmp_path / "s", OPTIONS) as store:
        store.merge()
        assert len(store) == len(ids)
        return [store[id] for id in ids]


def test_what_was_put_is_read_back_by_the_next_run(tmp_path):
    put(tmp_path, {"b": {"x": "ü"}, "a": 1})
    assert read(tmp_path, "a", "b") == [1, {"x": "ü"}]


def test_process_0_takes_the_rows_of_all_processes(tmp_path):
    for rank in range(3):
        put(tmp_path, {f"row-{rank}": rank}, rank)
    assert read(tmp_path, "row-0", "row-1", "row-2") == [0, 1, 2]
    put(tmp_path, {"row-3": 3}, 1)  # it goes on
    assert read(tmp_path, "row-0", "row-1", "row-2", "row-3") == [0, 1, 2, 3]


def test_a_process_knows_what_it_and_earlier_runs_have_finished(tmp_path):
    put(tmp_path, {"old": 0})
    with Store(tmp_path / "s", OPTIONS, rank=1) as store:
        store.put({"own": 1})
        assert "old" in store and "own" in store and "new" not in store


def test_other_options_are_refused_by_name_and_nothing_is_lost(tmp_path):
    put(tmp_path, {"a": 1})
    with pytest.raises(SDRRLError, match=r"n: was 1, is 2.*--overwrite_stage s"):
        Store(tmp_path / "s", {"model": "a", "n": 2})
    assert read(tmp_path, "a") == [1]


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path / "s", OPTIONS)
    store.put({"a": 1})
    with pytest.raises(sqlite3.IntegrityError):
        store.put({"b": 2, "a": 3})
    assert len(store) == 1 and store["a"] == 1


def test_a_flipped_byte_is_noticed(tmp_path):
    store = Store(tmp_path / "s", OPTIONS)
    store.put({"a": "hello"})
    store.close()
    file = tmp_path / "s" / "rank_0.sqlite"
    file.write_bytes(file.read_bytes().replace(b'"hello"', b'"hellp"'))
    with pytest.raises(SDRRLError, match="does not fit its hash"):
        read(tmp_path, "a")


def test_a_truncated_file_is_noticed(tmp_path):
    store = Store(tmp_path / "s", OPTIONS)
    store.put({str(i): "x" * 1000 for i in range(20)})
    store.close()
    file = tmp_path / "s" / "rank_0.sqlite"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(SDRRLError, match="damaged"):
        read(tmp_path, *map(str, range(20)))


def test_only_a_folder_made_by_a_stage_is_cleared(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SDRRLError, match="not deleted"):
        clear_stage(tmp_path, "s")
    assert (tmp_path / "thesis.txt").exists()
    put(tmp_path, {"a": 1})
    with pytest.raises(SDRRLError, match="holds the results of the stage 's', not of 'other'"):
        clear_stage(tmp_path / "s", "other")
    assert read(tmp_path, "a") == [1]


def test_a_cleared_stage_is_gone(tmp_path):
    put(tmp_path, {"a": 1})
    clear_stage(tmp_path / "s", "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("damage", ["", "[]", "null", "{", '{"n": 1}'])
def test_damaged_options_are_refused(tmp_path, damage):
    put(tmp_path, {"a": 1})
    (tmp_path / "s" / "options.json").write_text(damage)
    with pytest.raises(SDRRLError, match="options.json"):
        Store(tmp_path / "s", OPTIONS)


def test_rows_without_their_options_are_refused(tmp_path):
    put(tmp_path, {"a": 1})
    (tmp_path / "s" / "options.json").unlink()
    with pytest.raises(SDRRLError, match="nobody knows what the rows are"):
        Store(tmp_path / "s", {"model": "b"})
