"""Run ids sort by when their runs began, whatever camlake made them, and name files that are known again."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pipeline.storage.lake.commit import finish_run, remove_leftovers, start_run
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import DATA_NAME, RUN_ID, LakePaths, new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.records import load_runs
from tests.fake_lake import DATE, MODEL, FakeLake, manifest_of, rows_of

START = datetime(2026, 11, 23, 14, 8, 23, 998_700, tzinfo=UTC)
EARLIER = "20261123T140823-ffffff"
"""An id of the same second as it was before ids had milliseconds."""


@pytest.fixture
def clock(monkeypatch):
    """Let each new id be made a millisecond after the last, with random bits that sort the other way."""
    state = SimpleNamespace(ids=0)

    def now(_):
        state.ids += 1
        return START + timedelta(milliseconds=state.ids - 1)

    monkeypatch.setattr("pipeline.storage.lake.layout.datetime", SimpleNamespace(now=now))
    falling = SimpleNamespace(token_hex=lambda n_bytes: f"{256**n_bytes - state.ids:0{2 * n_bytes}x}")
    monkeypatch.setattr("pipeline.storage.lake.layout.secrets", falling)


@pytest.mark.usefixtures("clock")
def test_ids_of_one_second_sort_by_time():
    ids = [new_run_id() for _ in range(4)]
    assert ids[:2] == ["20261123T140823.998-ffffff", "20261123T140823.999-fffffe"]
    assert ids[2:] == ["20261123T140824.000-fffffd", "20261123T140824.001-fffffc"]
    assert sorted([*ids, EARLIER]) == [EARLIER, *ids]


@pytest.mark.usefixtures("clock")
def test_a_run_begun_in_the_same_second_covers_what_the_one_before_left(tmp_path):
    lake = FakeLake(str(tmp_path / "out"))
    dead, later = new_run_id(), new_run_id()
    for run_id, planned, done in ((dead, {"a": "v1", "b": "v1"}, {"a": "v1"}), (later, {"b": "v1"}, {"b": "v1"})):
        with Lease.acquire(lake.fs, lake.root, run_id) as lease:
            remove_leftovers(lake.fs, lake.root)
            manifest = manifest_of(run_id, planned=len(planned))
            start_run(lake.fs, lake.root, manifest)
            lake.write_plan(run_id, planned)
            lake.commit(run_id, lease.generation, "000000", rows_of(run_id, done))
            if run_id == later:
                finish_run(lake.fs, lake.root, manifest, lease.generation)
    assert [run.run_id for run in load_runs(lake.fs, lake.root)] == [dead, later]
    assert verify(lake.fs, lake.root).problems == ()


@pytest.mark.parametrize("run_id", [EARLIER, new_run_id()], ids=["earlier", "new"])
def test_both_kinds_of_ids_are_known(run_id):
    assert RUN_ID.fullmatch(run_id)
    name = LakePaths("out").data_path("boxes", MODEL, DATE, run_id, "000007-abc").rpartition("/")[2]
    assert DATA_NAME.fullmatch(name)[1] == run_id


@pytest.mark.parametrize("name", ["lease", "20261123T140823", "20261123T140823.1-ffffff", "20261123T140823-"])
def test_other_names_are_no_run_ids(name):
    assert not RUN_ID.fullmatch(name)
