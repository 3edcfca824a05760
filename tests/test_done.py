"""What is done is known, whatever a dead run left behind."""

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.storage.lake import commit
from pipeline.storage.lake.commit import done_images, finish_run, remove_leftovers, start_run
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.records import committed_settings, load_runs
from pipeline.storage.lake.whole_objects import list_data_files
from schemas.errors import StoreError
from schemas.reasons import Reason
from schemas.runs import CommitRecord, RunManifest
from tests.fake_lake import DATE, MODEL, SETTINGS, START, image_id, manifest_of, rows_of


def test_what_a_dead_worker_half_wrote_is_gone_when_the_run_ends(local):
    run_id = new_run_id()
    manifest = manifest_of(run_id, planned=1)
    start_run(local.fs, local.root, manifest)
    half = f"{local.root}/images/model={MODEL}/date={DATE}/.part-{run_id}-000007-0a.parquet.0b.camlake-tmp"
    with Lease.acquire(local.fs, local.root, run_id) as lease:
        local.commit(run_id, lease.generation, "000000", rows_of(run_id, {"a": "v1"}))
        local.fs.pipe_file(half, b"half")
        local.write_plan(run_id, {"a": "v1"})
        finish_run(local.fs, local.root, manifest, lease.generation)
    assert not local.fs.exists(half)
    assert verify(local.fs, local.root).problems == ()


def test_leftovers_of_a_dead_run_are_removed(lake):
    whole = lake.run({"a": "v1"})
    dead = lake.run({"b": "v1", "c": "v1"}, {"d": Reason.EMPTY}, tasks=2, finish=False)
    lost = lake.path(f"_runs/{dead.run_id}/commits/000001.json")
    lake.fs.rm_file(lost)
    kept_by_user = lake.path(f"boxes/model={MODEL}/notes.txt")
    lake.fs.pipe_file(kept_by_user, b"mine")
    before = list_data_files(lake.fs, lake.root)
    with Lease.acquire(lake.fs, lake.root, "next"):
        removed, interrupted = remove_leftovers(lake.fs, lake.root)
        assert remove_leftovers(lake.fs, lake.root) == ([], [])
    assert interrupted == [dead.run_id]
    part = f"model={MODEL}/date={DATE}/part-{dead.run_id}-000001-"
    assert [path.rpartition("-")[0] + "-" for path in removed] == [
        f"{table}/{part}" for table in sorted(["images", "boxes", "heatmaps", "features"])
    ]
    assert set(list_data_files(lake.fs, lake.root)) == set(before) - set(removed)
    manifest = load_runs(lake.fs, lake.root)[1]
    assert manifest.status == "interrupted"
    assert manifest.ended_at is not None
    assert (manifest.counts.annotated, manifest.counts.rejected) == (1, 1)
    assert manifest.counts.rejected_by_reason == {"empty": 1}
    assert {file.path for file in (*whole.files, *manifest.files)} | {
        f"boxes/model={MODEL}/notes.txt"
    } == list_data_files(lake.fs, lake.root).keys()


def test_leftovers_of_half_written_local_files_are_removed(local):
    run = local.run({"a": "v1"})
    folder = f"{local.root}/images/model={MODEL}/date={DATE}"
    for path in (f"{folder}/.part.parquet.0a.camlake-tmp", f"{local.root}/_runs/{run.run_id}/.x.json.0b.camlake-tmp"):
        local.fs.pipe_file(path, b"half")
    remove_leftovers(local.fs, local.root)
    assert [path for path in local.fs.find(local.root) if path.endswith("camlake-tmp")] == []
    assert len(list_data_files(local.fs, local.root)) == 4


def test_a_record_that_comes_while_leftovers_are_removed_does_not_count(local, monkeypatch):
    """A late worker commits between the reading of the records and the writing of the manifest."""
    dead = local.run({"a": "v1"}, open_inputs=["b"], finish=False)
    original = commit.write_record

    def late(fs, path, record):
        monkeypatch.setattr(commit, "write_record", original)
        monkeypatch.setattr(commit, "assert_generation_held", lambda *_: None)
        local.commit(dead.run_id, 1, "000009", rows_of(dead.run_id, {"b": "v1"}))
        original(fs, path, record)

    monkeypatch.setattr(commit, "write_record", late)
    with Lease.acquire(local.fs, local.root, "next"):
        removed, _ = remove_leftovers(local.fs, local.root)
    assert {path.partition("/")[0] for path in removed} == {"images", "boxes", "heatmaps", "features"}
    assert load_runs(local.fs, local.root)[0].counts.annotated == 1
    local.run({"b": "v1"})
    assert verify(local.fs, local.root).problems == ()


def test_late_records_of_an_interrupted_run_do_not_count(local):
    dead = local.run({"a": "v1"}, finish=False)
    local.run({"b": "v1"})
    late = CommitRecord(run_id=dead.run_id, task="000009", images=1, rejected=0, files=())
    local.fs.pipe_file(local.path(f"_runs/{dead.run_id}/commits/000009.json"), late.model_dump_json().encode())
    assert load_runs(local.fs, local.root)[0].counts.annotated == 1


def done_uris(lake, uris, **options) -> dict[str, str]:
    """Return uri → etag of what is done."""
    batches = list(done_images(lake.fs, lake.root, MODEL, **options))
    if not batches:
        return {}
    table = pa.Table.from_batches(batches)
    assert table.schema.names == ["image_id", "etag", "size_bytes", "modified_at"]
    names = {image_id(uri): uri for uri in uris}
    found = table["image_id"].to_pylist()
    assert len(set(found)) == len(found)
    assert pc.all(pc.equal(table["modified_at"], pa.scalar(START - timedelta(days=1)))).as_py()
    return {names[one]: etag for one, etag in zip(found, table["etag"].to_pylist(), strict=True)}


def test_done_is_what_the_latest_row_says(lake):
    uris = ["kept", "changed", "healed", "gone bad", "bad", "flaky", "retried"]
    assert done_uris(lake, uris) == {}
    bad, flaky = Reason.CORRUPT, Reason.FETCH_FAILED
    lake.run(
        {"kept": "v1", "changed": "v1", "gone bad": "v0", "retried": "v0"}, {"healed": flaky, "bad": bad, "flaky": bad}
    )
    lake.run({"changed": "v2", "healed": "v2"}, {"gone bad": bad, "flaky": flaky, "retried": flaky}, tasks=2)
    expected = {"kept": "v1", "changed": "v2", "healed": "v2", "gone bad": "v1", "bad": "v1"}
    assert done_uris(lake, uris) == expected
    assert done_uris(lake, uris, retry_rejected=True) == {"kept": "v1", "changed": "v2", "healed": "v2"}
    assert list(done_images(lake.fs, lake.root, "other-00000000")) == []


def test_done_counts_what_a_dead_run_committed(local):
    local.run({"a": "v1"}, finish=False)
    assert done_uris(local, ["a"]) == {"a": "v1"}


def test_a_damaged_file_is_a_store_error(local):
    run = local.run({"a": "v1"})
    path = next(file.path for file in run.files if file.table == "images")
    local.fs.rm_file(local.path(path))
    with pytest.raises(StoreError, match="camlake verify"):
        list(done_images(local.fs, local.root, MODEL))


def test_settings_are_those_of_the_newest_run_with_rows(local):
    assert committed_settings(local.fs, local.root, MODEL) is None
    local.run({"a": "v1"})
    empty = manifest_of("20300101T000000-abcdef").model_copy(update={"settings": {"topk": 99}})
    start_run(local.fs, local.root, empty)
    assert committed_settings(local.fs, local.root, MODEL) == SETTINGS
    assert committed_settings(local.fs, local.root, "other-00000000") is None


def test_documents_that_are_none_are_store_errors(local):
    run = local.run({"a": "v1"})
    path = local.path(f"_runs/{run.run_id}/manifest.json")
    newer = run.model_copy(update={"schema_version": 2})
    local.fs.pipe_file(path, newer.model_dump_json().encode())
    with pytest.raises(StoreError, match="schema version 2 is newer"):
        load_runs(local.fs, local.root)
    local.fs.pipe_file(path, run.model_dump_json().encode()[:100])
    with pytest.raises(StoreError, match="is no RunManifest") as refused:
        load_runs(local.fs, local.root)
    assert "\n" not in str(refused.value)
    assert RunManifest.model_validate_json(newer.model_dump_json()) == newer
