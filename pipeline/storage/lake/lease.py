"""A lease on an output, so that two runs never write to it at the same time.

The lease has generations, ``_runs/lease/<generation>.json``. The run that created the highest generation holds the
lease. A generation is created by a conditional write, which fails where the generation exists: of several runs that try
at the same time only one succeeds. A run takes the lease over by creating the next generation. The former holder finds
that generation and stops, independent of its clock.
"""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from fsspec import AbstractFileSystem
from pydantic import AwareDatetime

from pipeline.storage.filesystems import is_local
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import parse_record
from pipeline.storage.lake.whole_objects import list_dir, read_whole, remove_many, write_whole
from pipeline.storage.store_failures import store_errors
from schemas.errors import LeaseError, StoreError
from schemas.runs import Record

RENEWALS_PER_TTL = 4
"""Three renewals in a row may fail before the lease is lost."""

SETTLE_S = 2.0
"""Wait before reading back on stores that ignore the condition: longer than a listing and a small write take."""

_ATTEMPTS = 5
_creating = threading.Lock()


class _Holder(Record):
    """The content of a generation: who holds the lease."""

    run_id: str
    host: str
    machine: str
    pid: int
    process_started: str
    expires_at: AwareDatetime
    released: bool = False
    probe: bool = False
    nonce: str


class Lease:
    """The right to write to an output. ``acquire`` makes it, and a thread renews it until ``release``."""

    def __init__(self, fs: AbstractFileSystem, root: str, holder: _Holder, generation: int, ttl_s: float) -> None:
        """``acquire`` calls this and starts the thread; ``generation`` is the generation that it created."""
        self.generation = generation
        self._fs, self._root, self._holder, self._ttl_s = fs, root, holder, ttl_s
        self._good_until = time.monotonic() + ttl_s
        self._lost: str | None = None
        self._failure: StoreError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="camlake-lease", daemon=True)

    @classmethod
    def acquire(cls, fs: AbstractFileSystem, root: str, run_id: str, ttl_s: float = 60.0) -> Self:
        """Return the lease on ``root``, renewed every quarter of ``ttl_s`` seconds.

        A lease that was released, that has expired or whose holder was a process of this machine that has ended is
        taken over at once. The clocks of machines that share an output should agree to within ``ttl_s``; where they
        don't, a live holder may lose its lease, but two runs never hold it together. A lease that can't be read has
        expired ``ttl_s`` after it was written. Raises LeaseError while another
        run holds the lease, StoreError where the store refuses to write it.
        """
        holder = _this_process(run_id, ttl_s)
        for _ in range(_ATTEMPTS):
            generations = _generations(fs, root)
            newest = generations[-1] if generations else 0
            _refuse_if_held(fs, root, newest, ttl_s)
            if _create(fs, _path(root, newest + 1), holder) and _generations(fs, root)[-1] == newest + 1:
                lease = cls(fs, root, holder, newest + 1, ttl_s)
                remove_many(fs, [_path(root, old) for old in generations])
                lease._thread.start()
                return lease
        raise LeaseError(f"{root}: other runs keep taking this output's lease; try again when they have ended")

    def assert_held(self) -> None:
        """Raise LeaseError where another run took the lease over, or where it expired before it could be renewed."""
        if self._lost:
            raise LeaseError(self._lost)
        if time.monotonic() > self._good_until:
            why = f": {self._failure}" if self._failure else ""
            raise LeaseError(f"{self._root}: the lease could not be renewed for {self._ttl_s:g} s{why}")
        assert_generation_held(self._fs, self._root, self.generation)

    def release(self) -> None:
        """Stop renewing the lease and mark it as released, unless another run holds it by now."""
        self._stop.set()
        self._thread.join(self._ttl_s)
        if not self._lost and _generations(self._fs, self._root)[-1:] == [self.generation]:
            self._write(self._holder.model_copy(update={"released": True}))

    def __enter__(self) -> Self:
        """Return the lease."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release the lease, also after an exception."""
        self.release()

    def _renew_until_stopped(self) -> None:
        while not self._lost and not self._stop.wait(self._ttl_s / RENEWALS_PER_TTL):
            try:
                self._renew()
            except LeaseError as error:
                self._lost = str(error)
            except StoreError as error:
                self._failure = error

    def _renew(self) -> None:
        began = time.monotonic()
        assert_generation_held(self._fs, self._root, self.generation)
        current = _read(self._fs, _path(self._root, self.generation))
        if current is None or current.nonce != self._holder.nonce:
            raise LeaseError(f"{self._root}: another run overwrote this run's lease; this run has stopped")
        self._write(self._holder.model_copy(update={"expires_at": _after(self._ttl_s)}))
        self._good_until = began + self._ttl_s

    def _write(self, holder: _Holder) -> None:
        write_whole(self._fs, _path(self._root, self.generation), _encode(holder))


def assert_generation_held(fs: AbstractFileSystem, root: str, generation: int) -> None:
    """Raise LeaseError unless ``generation`` is still the highest. Workers call this before they commit."""
    newest = _generations(fs, root)[-1:]
    if not newest:
        raise LeaseError(f"{root}: the lease is gone; was the output removed while this run wrote to it?")
    if newest[0] != generation:
        raise LeaseError(
            f"{root}: another run took this output over (lease {newest[0]} > {generation}); this one stops"
        )


def _path(root: str, generation: int) -> str:
    layout = LakePaths(root)
    return layout.full(f"{layout.lease_dir}/{generation:08d}.json")


def _generations(fs: AbstractFileSystem, root: str) -> list[int]:
    layout = LakePaths(root)
    names = [Path(path).stem for path in list_dir(fs, layout.full(layout.lease_dir)) if path.endswith(".json")]
    return sorted(int(name) for name in names if name.isdecimal())


def _encode(holder: _Holder) -> bytes:
    return json.dumps(holder.model_dump(mode="json"), indent=1).encode()


def _after(ttl_s: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=ttl_s)


def _read(fs: AbstractFileSystem, path: str) -> _Holder | None:
    """Return the holder of a generation; None where a newer generation replaced it. Waits while it is being written."""
    for _ in range(20):
        data = read_whole(fs, path)
        if data is None:
            return None
        if data:
            return parse_record(_Holder, data, path)
        time.sleep(0.1)
    return None


def _refuse_if_held(fs: AbstractFileSystem, root: str, generation: int, ttl_s: float) -> None:
    try:
        holder = _read(fs, _path(root, generation)) if generation else None
    except StoreError:
        _refuse_if_new(fs, _path(root, generation), ttl_s)
        return
    if holder is None or holder.released or holder.expires_at <= datetime.now(UTC) or _is_dead(holder):
        return
    raise LeaseError(
        f"{root} is being written by run {holder.run_id} (process {holder.pid} on {holder.host}); wait for it to end: "
        f"a run that died loses its lease at {holder.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    )


def _refuse_if_new(fs: AbstractFileSystem, path: str, ttl_s: float) -> None:
    """Raise LeaseError where a lease that can't be read is younger than ``ttl_s``: a live holder renews it by then."""
    fs.invalidate_cache()
    with store_errors(f"the lease {path} can't be looked at"):
        expires_at = fs.modified(path) + timedelta(seconds=ttl_s)
    if expires_at > datetime.now(UTC):
        free = f"{expires_at:%Y-%m-%d %H:%M:%S} UTC"
        raise LeaseError(f"the lease {path} can't be read; unless a run renews it until then, it is free at {free}")


def _create(fs: AbstractFileSystem, path: str, holder: _Holder) -> bool:
    """Create a generation unless it exists, and return whether this call created it; raises StoreError."""
    data = _encode(holder)
    with store_errors(f"the lease {path} can't be written"):
        if is_local(fs):
            return _create_locally(Path(path), data)
        with _creating:  # fsspec's memory file system looks and writes in two steps
            return _create_in_store(fs, path, data, _encode(holder.model_copy(update={"probe": True})))


def _create_locally(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _create_in_store(fs: AbstractFileSystem, path: str, data: bytes, probe: bytes) -> bool:
    """Do the work of ``_create``. A second write with the same condition shows whether the store obeys the condition.

    On a store that ignores the condition the last writer wins. So each writer waits until all writers that checked
    before it have written, and then reads back which writer won.
    """
    for content in (data, probe):
        try:
            fs.pipe_file(path, content, mode="create")
        except OSError:  # Stores report a failed condition in many ways; the present object shows what happened.
            if not _stands(fs, path):
                raise
    if bytes(fs.cat_file(path)) == probe:
        time.sleep(SETTLE_S)
        return bytes(fs.cat_file(path)) == probe
    return bytes(fs.cat_file(path)) == data


def _stands(fs: AbstractFileSystem, path: str) -> bool:
    fs.invalidate_cache()
    return bool(fs.exists(path))


def _this_process(run_id: str, ttl_s: float) -> _Holder:
    return _Holder(
        run_id=run_id,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()) or "",
        expires_at=_after(ttl_s),
        nonce=secrets.token_hex(8),
    )


def _machine() -> str:
    """Return the running kernel and process namespace, within which process ids are unique; empty where unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _process_started(pid: int) -> str | None:
    """Return the start of a process in ticks since boot; None where the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_dead(holder: _Holder) -> bool:
    same_machine = holder.machine != "" and holder.machine == _machine()
    return same_machine and _process_started(holder.pid) != holder.process_started
