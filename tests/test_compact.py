"""``camlake compact``: the same current rows from fewer files, at every moment, also after a kill at any point."""

import json
from pathlib import Path

import pytest

from pipeline.outputs import reader
from pipeline.storage.lake import records
from pipeline.storage.lake.commit import remove_strays
from pipeline.storage.lake.compaction import compact as compacting
from pipeline.storage.lake.integrity.repair import repair
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.records import load_compactions, load_runs
from pipeline.storage.lake.whole_objects import list_data_files
from schemas.errors import LeaseError, StoreError, UsageError
from schemas.options.compact import CompactConfig
from schemas.reasons import Reason
from tests.compacting import OTHER, WRITTEN, age, compact, done_ids, globbed, rows
from tests.fake_lake import MODEL, FakeLake, problems


def test_fewer_files_hold_the_same_current_rows(output, capfd):
    before, done, facts = rows(output), done_ids(output), verify(output.fs, output.root).facts
    compact(output)
    assert rows(output) == before
    assert problems(output) == []
    assert len(list_data_files(output.fs, output.root)) == 5
    assert "dropped" in capfd.readouterr().out
    assert {table: globbed(output, table) for table in WRITTEN} == {table: len(before[table]) for table in WRITTEN}
    assert done_ids(output) == done, "annotate has nothing to do"
    after = verify(output.fs, output.root).facts
    assert after["endings dropped by compact"] == 3
    assert (after["images superseded"], facts["images superseded"]) == (0, 3)
    assert all(after[name] == facts[name] for name in ("images annotated", "images rejected", "inputs planned"))


def test_a_second_call_finds_nothing_to_do_and_later_runs_go_on(output, capfd):
    compact(output)
    files = list_data_files(output.fs, output.root)
    compact(output)
    assert list_data_files(output.fs, output.root) == files
    output.run({"c": "v2", "f": "v1"}, {"g": Reason.EMPTY})
    expected = rows(output)
    assert problems(output) == []
    compact(output)
    assert (rows(output), problems(output)) == (expected, [])
    assert len(list_data_files(output.fs, output.root)) == 5


def test_replaced_files_stay_for_the_grace_period(output, capfd):
    before, files = rows(output), list_data_files(output.fs, output.root)
    n_rows = {table: globbed(output, table) for table in WRITTEN}
    with reader.open(output.out) as early:
        compact(output, grace="1d")
        assert len(early.arrow("boxes")) == len(before["boxes"])
    assert "go with the first run" in capfd.readouterr().out
    assert files.keys() < list_data_files(output.fs, output.root).keys()
    assert rows(output) == before
    assert {table: globbed(output, table) for table in WRITTEN} == n_rows, "a glob sees the old files only"
    assert problems(output) == []
    compact(output, grace="1d")
    assert "left as it is; the files that an earlier compaction replaced" in capfd.readouterr().out
    age(output)
    with reader.open(output.out) as early:
        output.run({"new": "v1"})
        assert len(early.arrow("boxes")) == len(before["boxes"]), "a reader that opened before still reads"
    assert problems(output) == []
    assert {table: globbed(output, table) for table in ("images", "boxes")} == {"images": 6, "boxes": 12}
    age(output)
    output.run({"newer": "v1"})
    assert not [path for path in list_data_files(output.fs, output.root) if path.endswith(".compacted")]
    assert problems(output) == []


def test_a_grace_period_that_ends_during_a_run_hides_no_row_from_a_glob(output):
    n_rows = {table: globbed(output, table) for table in WRITTEN}
    compact(output, grace="1d")
    age(output)
    remove_strays(output.fs, output.root, load_runs(output.fs, output.root))
    assert {table: globbed(output, table) for table in WRITTEN} == n_rows, "until the compaction is settled"
    assert problems(output) == []


def test_while_files_are_named_a_glob_sees_rows_of_one_table_twice_at_most(output, monkeypatch):
    compact(output, grace="1d")
    age(output)
    real, tables = records.remove_many, []

    def removes(fs, paths):
        n_rows = {table: (globbed(output, table), len(current[table])) for table in WRITTEN}
        tables.append([table for table, (seen, own) in n_rows.items() if seen > own + superseded[table]])
        real(fs, paths)

    current = rows(output)
    superseded = {table: globbed(output, table) - len(current[table]) for table in WRITTEN}
    monkeypatch.setattr(records, "remove_many", removes)
    records.settle_compactions(output.fs, output.root)
    assert tables == [[table] for table in sorted(WRITTEN)]
    assert {table: globbed(output, table) for table in WRITTEN} == {table: len(current[table]) for table in WRITTEN}


@pytest.mark.parametrize("option", ["grace", "expire_older_than"])
def test_a_time_beyond_the_calendar_is_refused(option):
    with pytest.raises(UsageError, match=r"allowed: up to 36500d, a hundred years$"):
        CompactConfig.resolve({"out": "labels", option: "9999999d"})


def test_a_tombstone_keeps_what_it_hides(output):
    run_id = load_runs(output.fs, output.root)[0].run_id
    hidden = output.run({}, {"d": Reason.DELETED})
    before = rows(output)
    compact(output)
    assert (rows(output), problems(output)) == (before, [])
    with reader.open(output.out) as opened:
        query = "SELECT run_id FROM all_images WHERE uri = 'd'"
        assert opened.sql(query).fetchall() == [(run_id,)]
        assert hidden.run_id in {row["run_id"] for row in opened.arrow("quarantine").to_pylist()}


def test_expired_models_and_images_are_gone_and_accounted_for(output):
    output.run({"a": "v1"}, {"x": Reason.EMPTY}, model=OTHER)
    with pytest.raises(UsageError, match="--expire-model 'none': this output has"):
        compact(output, expire_model="none")
    compact(output, expire_model=OTHER)
    assert problems(output) == []
    with reader.open(output.out) as opened:
        assert opened.models == [MODEL]
    assert done_ids(output, OTHER) == set()
    compact(output, expire_older_than="1s")
    assert problems(output) == []
    assert rows(output)["images"] == []
    assert globbed(output, "quarantine") == 0
    output.run({"a": "v1"})
    assert len(rows(output)["images"]) == 1
    assert problems(output) == []


def test_only_the_holder_of_the_lease_compacts(output):
    with Lease.acquire(output.fs, output.root, "r"), pytest.raises(LeaseError):
        compact(output)
    with pytest.raises(StoreError, match="no camlake output here"):
        compact(FakeLake(f"{output.out}-none"))
    with pytest.raises(UsageError, match="--grace '1x': allowed: a number with s, m, h, d or w"):
        compact(output, grace="1x")


def test_files_of_the_wanted_size_are_left_alone(output, monkeypatch):
    commits = records.counted_commits(output.fs, output.root, load_runs(output.fs, output.root))
    assert list(compacting._groups(commits, set(), file_bytes=1)) == []
    assert [len(group) for group in compacting._groups(commits, {0}, file_bytes=1)] == [1]
    assert [len(group) for group in compacting._groups(commits, set(), file_bytes=10**9)] == [len(commits)]


def test_damage_is_found_and_undone_while_the_old_files_are_there(output):
    before = rows(output)
    compact(output, grace="1d")
    one = load_compactions(output.fs, output.root)[0]
    output.fs.rm_file(output.path(one.files[0].path))
    assert any("committed, but gone" in line for line in problems(output))
    assert any("undone with its merged files" in line for line in repair(output.fs, output.root))
    assert (rows(output), problems(output)) == (before, [])
    compact(output)
    one = load_compactions(output.fs, output.root)[0]
    assert one.dropped
    Path(output.path(one.dropped.path)).write_bytes(b"")
    assert any("list of dropped rows is lost" in line for line in problems(output))
    with pytest.raises(StoreError, match="files that it was made from are gone"):
        repair(output.fs, output.root)


def test_repair_leaves_a_sound_compaction_alone(output):
    compact(output)
    before = rows(output)
    assert repair(output.fs, output.root) == []
    assert (rows(output), problems(output)) == (before, [])
    path = records.compaction_path(output.root, load_compactions(output.fs, output.root)[0])
    changed = json.loads(Path(path).read_text())
    changed["replaced"] = changed["replaced"][1:]
    Path(path).write_text(json.dumps(changed))
    assert any("changed since it was written" in line for line in problems(output))
