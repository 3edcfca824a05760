"""A writer that stalls while another run takes the output over never shows a row that a plain glob sees twice."""

import threading
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.filesystems import is_s3
from pipeline.storage.lake import commit
from pipeline.storage.lake.commit import Committer, remove_leftovers, start_run
from pipeline.storage.lake.integrity.repair import repair
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.records import committed_files, load_runs
from pipeline.storage.lake.staged import _abort, _uploads, remove_staged, stage
from pipeline.storage.lake.whole_objects import list_data_files, remove_many
from schemas.errors import LeaseError, StoreError
from tests.fake_lake import FakeLake, manifest_of, rows_of

IMAGES = {"a": "v1", "b": "v1"}
EARLIER = "20261122T050000.000-0a0a0a"
"""A run id before those of FakeLake."""


@pytest.fixture(params=["local", "s3", "ceph"])
def hiding(request, tmp_path) -> FakeLake:
    """Return an output on a store that can hide a staged file."""
    if request.param == "local":
        return FakeLake(str(tmp_path / "out [1]"))
    store = request.getfixturevalue(request.param)
    return FakeLake(f"s3://{store.bucket()}/out", store.storage)


class Reader:
    """Reads images by a plain glob all the while, and notes the images that it sees more than once."""

    def __init__(self, lake: FakeLake) -> None:
        self.lake, self.twice, self.rounds, self.stop = lake, [], 0, threading.Event()
        self.thread = threading.Thread(target=self.read)

    def __enter__(self) -> "Reader":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()

    def look(self) -> None:
        seen: list[str] = []
        for path in list_data_files(self.lake.fs, self.lake.root):
            if not path.startswith("images/") or not path.endswith(".parquet"):
                continue
            try:
                seen += pq.read_table(pa.BufferReader(self.lake.fs.cat_file(self.lake.path(path))))[
                    "image_id"
                ].to_pylist()
            except FileNotFoundError:
                continue
        self.twice += [each for each in set(seen) if seen.count(each) > 1]
        self.rounds += 1

    def read(self) -> None:
        self.look()
        while not self.stop.wait(0.3):
            self.look()


def stalls(monkeypatch, where: str, meanwhile) -> None:
    """Let the next commit stall at ``where`` until ``meanwhile`` has been called."""
    if where == "between the files":
        original = commit.stage

        def staged(fs, path, data):
            one = original(fs, path, data)
            if "/boxes/" in path:
                show = one.show
                one.show = lambda: (monkeypatch.setattr(commit, "stage", original), meanwhile(), show())
            return one

        monkeypatch.setattr(commit, "stage", staged)
        return
    owner, name, calls = {
        "before the check": (commit, "assert_generation_held", 2),
        "after the check": (Committer, "_show", 1),
        "before the second check": (commit, "assert_generation_held", 3),
        "before the record": (commit, "write_record", 1),
    }[where]
    original, made = getattr(owner, name), []

    def overtaken(*args):
        made.append(args)
        if len(made) == calls:
            monkeypatch.setattr(owner, name, original)
            meanwhile()
        return original(*args)

    monkeypatch.setattr(owner, name, overtaken)


@pytest.mark.parametrize(
    "where",
    ["before the check", "after the check", "between the files", "before the second check", "before the record"],
)
def test_a_stalled_writer_shows_nothing_after_a_takeover(hiding, monkeypatch, where):
    lake = hiding
    dead = EARLIER
    start_run(lake.fs, lake.root, manifest_of(dead, planned=2))
    lake.write_plan(dead, IMAGES)
    old = Lease.acquire(lake.fs, lake.root, dead)

    def taken_over() -> None:
        old.release()
        lake.run(IMAGES)

    with Reader(lake) as reader:
        stalls(monkeypatch, where, taken_over)
        if where == "before the record":
            lake.commit(dead, old.generation, "000000", rows_of(dead, IMAGES))
        else:
            with pytest.raises(LeaseError, match="took this output over"):
                lake.commit(dead, old.generation, "000000", rows_of(dead, IMAGES))
        reader.look()
    assert reader.rounds > 1
    assert reader.twice == []
    named = {file.path for file in committed_files(load_runs(lake.fs, lake.root))}
    assert named == set(list_data_files(lake.fs, lake.root))
    if is_s3(lake.fs):
        assert list(_uploads(lake.fs, lake.root)) == []
    assert verify(lake.fs, lake.root).problems == ()


def test_a_store_that_hides_nothing_is_safe_before_the_check(monkeypatch):
    lake = FakeLake(f"memory://{uuid.uuid4().hex}/out")
    dead = EARLIER
    old = Lease.acquire(lake.fs, lake.root, dead)

    def taken_over() -> None:
        old.release()
        lake.run(IMAGES)

    stalls(monkeypatch, "before the check", taken_over)
    with pytest.raises(LeaseError, match="took this output over"):
        lake.commit(dead, old.generation, "000000", rows_of(dead, IMAGES))
    named = {file.path for file in committed_files(load_runs(lake.fs, lake.root))}
    assert named == set(list_data_files(lake.fs, lake.root))


@pytest.mark.parametrize("clears", ["the next run", "repair"])
def test_what_a_dead_writer_staged_is_removed(hiding, clears):
    lake = hiding
    lake.run({"z": "v1"})
    before = list_data_files(lake.fs, lake.root)
    path = lake.path(f"boxes/model=m-1/date=2026-01-01/part-{new_run_id()}-000000-00000000.parquet")
    other = lake.path("boxes/model=m-1/date=2026-01-01/mine.parquet")
    staged = stage(lake.fs, path, b"x" * 1000)
    foreign = stage(lake.fs, other, b"y") if is_s3(lake.fs) else None
    assert not lake.fs.exists(path)
    if clears == "repair":
        repair(lake.fs, lake.root)
    else:
        with Lease.acquire(lake.fs, lake.root, "next"):
            remove_leftovers(lake.fs, lake.root)
    with pytest.raises(StoreError):
        staged.show()
    assert not lake.fs.exists(path)
    if foreign:  # the name of another program's upload is not camlake's
        foreign.show()
        remove_many(lake.fs, [other])
    assert list_data_files(lake.fs, lake.root) == before


def test_an_upload_that_is_gone_is_as_good_as_removed(object_store):
    """A repeated request finds no upload, where the answer to the first one was lost."""
    lake = FakeLake(f"s3://{object_store.bucket()}/out", object_store.storage)
    stage(lake.fs, lake.path("boxes/model=m-1/date=2026-01-01/part-20261122T050000.000-0a0a0a-0-00.parquet"), b"x")
    bucket = lake.root.split("/")[0]
    (upload,) = lake.fs.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]
    for _ in range(2):
        _abort(lake.fs, {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]})
    assert not lake.fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads")


def test_an_upload_of_several_parts_arrives_whole(object_store, monkeypatch):
    monkeypatch.setattr("pipeline.storage.lake.staged._PART_BYTES", 5 * 2**20)
    lake = FakeLake(f"s3://{object_store.bucket()}/out", object_store.storage)
    data = bytes(range(256)) * 2**15 + b"end" * 2**20
    path = lake.path("boxes/big.parquet")
    staged = stage(lake.fs, path, data)
    assert not lake.fs.exists(path)
    staged.show()
    assert lake.fs.cat_file(path) == data
    staged.show()  # the answer to the first request was lost
    staged.discard()
    assert lake.fs.cat_file(path) == data
    remove_staged(lake.fs, lake.root)
