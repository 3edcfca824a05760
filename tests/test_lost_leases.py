"""A lease that another run takes during an outage of the store: who lost it commits nothing, the other goes on."""

import pytest

from pipeline.storage.lake.commit import finish_run, remove_leftovers, start_run
from pipeline.storage.lake.lease import Lease, lease_when_free
from pipeline.storage.lake.records import load_runs
from pipeline.storage.lake.whole_objects import list_data_files
from schemas.errors import HeldError
from tests.fake_lake import manifest_of, problems, rows_of
from tests.faulty_store import FakeTime, patient_in, stored_lake

OLD, NEW = "20261130T020000.000-aaaaaa", "20261130T030000.000-bbbbbb"
URIS = {"s3://b/0.jpg": "v1", "s3://b/1.jpg": "v1"}


@pytest.fixture
def lake(monkeypatch):
    return stored_lake(monkeypatch)


def run_to_its_end(lake, run_id, lease):
    """Annotate what no run has committed."""
    uris = {} if any(run.files for run in load_runs(lake.fs, lake.root)) else URIS
    manifest = manifest_of(run_id, planned=len(uris))
    start_run(lake.fs, lake.root, manifest)
    lake.write_plan(run_id, uris)
    lake.commit(run_id, lease.generation, "000000", rows_of(run_id, uris))
    finish_run(lake.fs, lake.root, manifest, lease.generation)


@pytest.mark.parametrize("loses_answers", [False, True], ids=["nothing is done", "answers are lost"])
@pytest.mark.parametrize(
    ("verb", "part"),
    [
        pytest.param("put", "/features/", id="a data file"),
        pytest.param("put", "/images/", id="the last data file"),
        pytest.param("put", "/commits/", id="the record"),
        pytest.param("list", "/lease", id="the lease"),
        pytest.param("put", "aaaaaa/manifest.json", id="the manifest"),
    ],
)
def test_a_run_that_lost_its_lease_in_an_outage_commits_nothing(lake, monkeypatch, verb, part, loses_answers):
    """The outage begins with a request of the old run, and ends when the new run has taken over and is complete."""
    time, store = FakeTime(), lake.store
    patient_in(time, monkeypatch)
    store.loses_answers = loses_answers

    def fails(asked, path):
        if (asked, part in path, OLD in path or "/lease" in path) != (verb, True, True):
            return False
        if not time.at and time.now_s == 0:
            time.at.append((90, taken_over))
        return time.now_s < 90

    def taken_over():
        store.down = lambda asked, path: False
        # As if the lease had expired: its true minute is too long for a test.
        with Lease.acquire(lake.fs, lake.root, NEW, force=True) as lease:
            remove_leftovers(lake.fs, lake.root, lease.generation)
            run_to_its_end(lake, NEW, lease)

    def meet_the_outage():
        with lease_when_free(lake.fs, lake.root, OLD) as lease:
            store.down = fails
            run_to_its_end(lake, OLD, lease)

    with pytest.raises(HeldError):
        meet_the_outage()
    assert time.now_s >= 90
    with Lease.acquire(lake.fs, lake.root, "next") as lease:
        remove_leftovers(lake.fs, lake.root, lease.generation)  # This store can't hide what the old run wrote late.
    old, new = load_runs(lake.fs, lake.root)
    assert (old.status, new.status) == ("interrupted", "complete")
    kept = verb == "put" and part == "/commits/" and loses_answers  # The store had the record before the takeover.
    assert (old.counts.annotated, new.counts.annotated) == ((2, 0) if kept else (0, 2))
    counted = [file.path for run in (old, new) for file in run.files]
    assert sorted(list_data_files(lake.fs, lake.root)) == sorted(counted)
    assert problems(lake) == []
