"""Two runs on one output never interleave."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage.filesystems import connect
from pipeline.storage.lake import lease as lease_module
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease import Lease, assert_generation_held
from pipeline.storage.lake.whole_objects import list_dir
from schemas.errors import LeaseError, StoreError
from schemas.options.config import StorageConfig

HOLD = """
import sys, time
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.lease import Lease
from schemas.options.config import StorageConfig
from schemas.errors import LeaseError
fs, root = connect(sys.argv[1], StorageConfig())
sys.stdin.readline()
try:
    Lease.acquire(fs, root, sys.argv[2])
    print("held", flush=True)
except LeaseError as error:
    print("refused", error, flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["local", "memory", "s3", "ceph"])
def output(request, tmp_path) -> tuple[AbstractFileSystem, str]:
    if request.param == "local":
        return connect(str(tmp_path / "out [1] 'x'"), StorageConfig())
    if request.param == "memory":
        return connect(f"memory://{uuid.uuid4().hex}/out", StorageConfig())
    store = request.getfixturevalue(request.param)
    return connect(f"s3://{store.bucket()}/out", store.storage)


def lease_files(fs, root) -> list[str]:
    return [Path(path).name for path in list_dir(fs, LakePaths(root).full("_runs/lease"))]


def holder_of(fs, root) -> dict:
    name = lease_files(fs, root)[-1]
    return json.loads(fs.cat_file(LakePaths(root).full(f"_runs/lease/{name}")))


def start_holder(out: str, run_id: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, out, run_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_one_holds_and_the_next_follows(output):
    fs, root = output
    with Lease.acquire(fs, root, "one") as first:
        first.assert_held()
        assert first.generation == 1
        with pytest.raises(LeaseError) as refused:
            Lease.acquire(fs, root, "two")
        text = str(refused.value)
        assert "run one" in text
        assert str(os.getpid()) in text
        assert holder_of(fs, root)["host"] in text
        assert "UTC" in text
        assert "\n" not in text
        first.assert_held()
    assert holder_of(fs, root)["released"] is True
    with Lease.acquire(fs, root, "two") as second:
        assert second.generation == 2
        assert lease_files(fs, root) == ["00000002.json"]
        with pytest.raises(LeaseError, match="took this output over"):
            first.assert_held()
        with pytest.raises(LeaseError, match="took this output over"):
            assert_generation_held(fs, root, 1)
        assert_generation_held(fs, root, 2)


class Unlocked:
    """Stands in for the lock of one process: threads then race as processes do."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_of_many_threads_one_wins(output, monkeypatch):
    fs, root = output
    if not isinstance(fs, MemoryFileSystem):
        monkeypatch.setattr(lease_module, "_creating", Unlocked())
    barrier = threading.Barrier(8)

    def attempt(number: int) -> Lease | LeaseError:
        barrier.wait()
        try:
            return Lease.acquire(fs, root, f"run{number}")
        except LeaseError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, range(8)))
    won = [result for result in results if isinstance(result, Lease)]
    assert len(won) == 1
    won[0].assert_held()
    assert lease_files(fs, root) == ["00000001.json"]
    won[0].release()


def test_of_many_processes_one_wins_and_a_killed_one_is_followed_at_once(tmp_path):
    out = str(tmp_path / "out")
    holders = [start_holder(out, f"run{number}") for number in range(4)]
    for holder in holders:
        holder.stdin.write("go\n")
        holder.stdin.flush()
    said = [holder.stdout.readline().split()[0] for holder in holders]
    assert sorted(said) == ["held", "refused", "refused", "refused"]
    fs, root = connect(out, StorageConfig())
    with pytest.raises(LeaseError, match=f"run{said.index('held')} "):
        Lease.acquire(fs, root, "late")
    for holder in holders:
        stop(holder)
    began = time.monotonic()
    with Lease.acquire(fs, root, "late") as lease:
        assert lease.generation == 2
    assert time.monotonic() - began < 10


def test_a_holder_on_another_machine_is_believed_until_it_expires(output):
    fs, root = output
    gone = Lease.acquire(fs, root, "gone", ttl_s=1000)
    gone._stop.set()
    gone._thread.join()
    path = LakePaths(root).full("_runs/lease/00000001.json")
    holder = json.loads(fs.cat_file(path)) | {"pid": 2**30, "machine": "elsewhere", "host": "elsewhere"}
    fs.pipe_file(path, json.dumps(holder).encode())
    with pytest.raises(LeaseError, match="on elsewhere"):
        Lease.acquire(fs, root, "next")
    fs.pipe_file(path, json.dumps(holder | {"expires_at": "2020-01-01T00:00:00Z"}).encode())
    with Lease.acquire(fs, root, "next") as lease:
        assert lease.generation == 2


def test_it_is_renewed_while_it_is_held(output):
    fs, root = output
    with Lease.acquire(fs, root, "one", ttl_s=2) as lease:
        first = holder_of(fs, root)["expires_at"]
        time.sleep(3)
        assert holder_of(fs, root)["expires_at"] > first
        lease.assert_held()
        with pytest.raises(LeaseError):
            Lease.acquire(fs, root, "two")


def test_a_holder_that_was_taken_over_stops_and_leaves_the_new_one_alone(output):
    fs, root = output
    old = Lease.acquire(fs, root, "old", ttl_s=0.4)
    taken = json.loads(fs.cat_file(LakePaths(root).full("_runs/lease/00000001.json"))) | {"run_id": "new", "nonce": "n"}
    fs.pipe_file(LakePaths(root).full("_runs/lease/00000002.json"), json.dumps(taken).encode())
    old._thread.join(5)
    assert not old._thread.is_alive()
    with pytest.raises(LeaseError, match="took this output over"):
        old.assert_held()
    old.release()
    assert holder_of(fs, root) == taken


def test_real_stores_heed_the_condition(object_store, monkeypatch):
    """Where they did not, acquiring would wait SETTLE_S."""
    monkeypatch.setattr(lease_module, "SETTLE_S", 60)
    fs, root = connect(f"s3://{object_store.bucket()}/out", object_store.storage)
    began = time.monotonic()
    Lease.acquire(fs, root, "one").release()
    assert time.monotonic() - began < 30


class Failing(MemoryFileSystem):
    """A store that stops taking writes."""

    protocol = "failing"
    cachable = False
    broken = False

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if self.broken:
            raise OSError("the store is down")
        super().pipe_file(path, value, mode=mode, **kwargs)


def test_renewals_that_fail_past_expiry_lose_it():
    fs = Failing()
    lease = Lease.acquire(fs, "/failing", "one", ttl_s=0.5)
    fs.broken = True
    time.sleep(0.2)
    lease.assert_held()
    time.sleep(0.8)
    with pytest.raises(LeaseError, match=r"could not be renewed for 0.5 s: .*the store is down"):
        lease.assert_held()
    fs.broken = False
    lease.release()


def test_a_store_that_refuses_is_said_so():
    fs = Failing()
    fs.broken = True
    with pytest.raises(StoreError, match="the store is down"):
        Lease.acquire(fs, "/failing", "one")


class Careless(MemoryFileSystem):
    """A store that ignores the condition of a conditional write; each process has its own client."""

    protocol = "careless"
    cachable = False

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        time.sleep(0.05)
        super().pipe_file(path, value, mode="overwrite", **kwargs)


def test_where_the_store_ignores_the_condition_the_last_writer_wins(monkeypatch):
    monkeypatch.setattr(lease_module, "SETTLE_S", 1.0)
    barrier = threading.Barrier(4)

    monkeypatch.setattr(lease_module, "_creating", Unlocked())

    def attempt(number: int) -> Lease | None:
        barrier.wait()
        try:
            return Lease.acquire(Careless(), "/careless", f"run{number}")
        except LeaseError:
            return None

    with ThreadPoolExecutor(4) as pool:
        won = [lease for lease in pool.map(attempt, range(4)) if lease]
    assert len(won) == 1
    won[0].assert_held()
    won[0]._renew()
    won[0].release()


def test_a_half_created_local_lease_is_taken_over(tmp_path):
    fs, root = LocalFileSystem(), str(tmp_path)
    (tmp_path / "_runs" / "lease").mkdir(parents=True)
    (tmp_path / "_runs" / "lease" / "00000003.json").touch()
    with Lease.acquire(fs, root, "one") as lease:
        assert lease.generation == 4


def test_a_late_winner_of_an_old_generation_does_not_hold(tmp_path, monkeypatch):
    """It looked while generation 1 was the newest, slept, and creates 2 after 2 and 3 came and 2 was removed."""
    fs, root = LocalFileSystem(), str(tmp_path)
    Lease.acquire(fs, root, "first").release()
    real, calls = lease_module._refuse_if_held, []

    def overtaken(fs, root, generation, ttl_s):
        real(fs, root, generation, ttl_s)
        if not calls:
            calls.append(generation)
            for name in ("second", "third"):
                Lease.acquire(fs, root, name).release()

    monkeypatch.setattr(lease_module, "_refuse_if_held", overtaken)
    with Lease.acquire(fs, root, "late") as lease:
        assert lease.generation == 4
        lease.assert_held()
        assert lease_files(fs, root) == ["00000004.json"]
    assert calls == [1]
