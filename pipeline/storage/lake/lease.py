"""A lease on an output, so that two runs never write to it at the same time.

The lease has generations, ``_runs/lease/<generation>.json``. The run that created the highest generation holds the
lease. A generation is created by a conditional write, which fails where the generation exists: of several runs that try
at the same time only one succeeds. A run takes the lease over by creating the next generation. The former holder finds
that generation and stops, independent of its clock.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local, read_object
from pipeline.storage.lake.lease_holder import (
    Holder,
    after,
    generation_path,
    list_generations,
    read_holder,
    this_process,
)
from pipeline.storage.lake.whole_objects import remove_many, write_whole
from pipeline.storage.patience import HURRIED_S, PATIENCE, ask_store
from pipeline.storage.store_failures import store_errors
from schemas.errors import HeldError, LeaseError, StoreError

RENEWALS_PER_TTL = 4
"""Three renewals in a row may fail before the lease is lost."""

SETTLE_S = 2.0
"""Wait before reading back on stores that ignore the condition: longer than a listing and a small write take."""

LOOK_EVERY_S = 5.0
"""Longest time between two looks at a lease that is waited for."""

_ATTEMPTS = 5
_creating = threading.Lock()


class Lease:
    """The right to write to an output. ``acquire`` makes it, and a thread renews it until ``release``."""

    def __init__(self, fs: AbstractFileSystem, root: str, holder: Holder, generation: int, ttl_s: float) -> None:
        """``acquire`` calls this and starts the thread; ``generation`` is the generation that it created."""
        self.generation = generation
        self._fs, self._root, self._holder, self._ttl_s = fs, root, holder, ttl_s
        self._good_until = time.monotonic() + ttl_s
        self._lost: LeaseError | None = None
        self._failure: StoreError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="camlake-lease", daemon=True)

    @classmethod
    def acquire(
        cls, fs: AbstractFileSystem, root: str, run_id: str, ttl_s: float = 60.0, *, force: bool = False
    ) -> Self:
        """Return the lease on ``root``, renewed every quarter of ``ttl_s`` seconds.

        A lease that was released, that has expired or whose holder was a process of this machine that has ended is
        taken over at once. The clocks of machines that share an output should agree to within ``ttl_s``; where they
        don't, a live holder may lose its lease, but two runs never hold it together. A lease that can't be read has
        expired ``ttl_s`` after it was written. With ``force`` the lease is taken from any holder, which then stops.
        Raises HeldError while another run holds the lease, StoreError where the store refuses to write it.
        """
        for _ in range(_ATTEMPTS):
            generations = list_generations(fs, root)
            newest = generations[-1] if generations else 0
            if not force:
                _refuse_if_held(fs, root, newest, ttl_s)
            holder, began_s = this_process(run_id, ttl_s), time.monotonic()
            if _create(fs, generation_path(root, newest + 1), holder) and list_generations(fs, root)[-1] == newest + 1:
                lease = cls(fs, root, holder, newest + 1, ttl_s)
                if time.monotonic() - began_s > ttl_s / RENEWALS_PER_TTL:  # The store took long.
                    lease._renew()
                lease._thread.start()
                with suppress(StoreError):  # The next holder removes them.
                    remove_many(fs, [generation_path(root, old) for old in generations])
                return lease
        raise HeldError(f"{root}: other runs keep taking this output's lease; try again when they have ended")

    def assert_held(self) -> None:
        """Raise LeaseError where another run took the lease over, or where it expired before it could be renewed."""
        if self._lost:
            raise self._lost
        if time.monotonic() > self._good_until:
            why = f": {self._failure}" if self._failure else ""
            raise LeaseError(f"{self._root}: the lease could not be renewed for {self._ttl_s:g} s{why}")
        assert_generation_held(self._fs, self._root, self.generation)

    def release(self) -> None:
        """Stop renewing the lease and mark it as released, unless another run holds it by now.

        Where the store is out of order, the lease is left to expire.
        """
        self._stop.set()
        with PATIENCE.hurried(), suppress(StoreError):
            self._thread.join(min(self._ttl_s, 2 * HURRIED_S))
            if not self._lost and list_generations(self._fs, self._root)[-1:] == [self.generation]:
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
                self._lost = error
            except StoreError as error:
                self._failure = error

    def _renew(self) -> None:
        began = time.monotonic()
        assert_generation_held(self._fs, self._root, self.generation)
        current = read_holder(self._fs, generation_path(self._root, self.generation))
        if current is None or current.nonce != self._holder.nonce:
            raise HeldError(f"{self._root}: another run overwrote this run's lease; this run has stopped")
        self._write(self._holder.model_copy(update={"expires_at": after(self._ttl_s)}))
        self._good_until = began + self._ttl_s

    def _write(self, holder: Holder) -> None:
        write_whole(self._fs, generation_path(self._root, self.generation), holder.encoded)


def silent(text: str) -> None:
    """Say nothing: for callers who do not want to hear of a wait."""


@contextmanager
def lease_when_free(
    fs: AbstractFileSystem, root: str, run_id: str, wait_s: float = 0.0, say: Callable[[str], None] = silent
) -> Iterator[Lease]:
    """Hold the lease on ``root`` during the block, in which the process is patient with the store.

    While another run holds it, wait up to ``wait_s`` seconds; ``say`` gets a line then, and where the store fails for
    long. Raises HeldError where another run holds the lease after that, StoreError where the store refuses.
    """
    list_generations(fs, root)  # A wrong URL fails here, before the process is patient.
    with PATIENCE.patient(say), acquire_waiting(fs, root, run_id, wait_s, say) as lease:
        yield lease


def acquire_waiting(
    fs: AbstractFileSystem,
    root: str,
    run_id: str,
    wait_s: float,
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Return the lease on ``root`` as ``lease_when_free`` does; tests give their own ``clock`` and ``sleep``."""
    deadline_s, waited = clock() + wait_s, False
    while True:
        try:
            lease = Lease.acquire(fs, root, run_id)
        except HeldError as error:
            left_s = deadline_s - clock()
            if left_s <= 0:
                raise
            if not waited:
                say(f"waiting {'without limit' if left_s == math.inf else f'up to {left_s:.0f} s'}: {error}")
            waited = True
            sleep(min(left_s, LOOK_EVERY_S * random.uniform(0.5, 1)))
        else:
            if waited:
                say("the output is free; going on")
            return lease


def assert_generation_held(fs: AbstractFileSystem, root: str, generation: int) -> None:
    """Raise LeaseError unless ``generation`` is still the highest. Workers call this before they commit."""
    newest = list_generations(fs, root)[-1:]
    if not newest:
        raise LeaseError(f"{root}: the lease is gone; was the output removed while this run wrote to it?")
    if newest[0] != generation:
        raise HeldError(f"{root}: another run took this output over (lease {newest[0]} > {generation}); this one stops")


def _refuse_if_held(fs: AbstractFileSystem, root: str, generation: int, ttl_s: float) -> None:
    try:
        holder = read_holder(fs, generation_path(root, generation)) if generation else None
    except StoreError:
        _refuse_if_new(fs, generation_path(root, generation), ttl_s)
        return
    if holder is None or holder.is_free:
        return
    raise HeldError(
        f"{root} is being written by {holder.who}; --wait waits for its end; a run that died loses its lease at "
        f"{holder.until}"
    )


def _refuse_if_new(fs: AbstractFileSystem, path: str, ttl_s: float) -> None:
    """Raise HeldError where a lease that can't be read is younger than ``ttl_s``: a live holder renews it by then."""
    fs.invalidate_cache()
    with store_errors(f"the lease {path} can't be looked at"):
        expires_at = fs.modified(path) + timedelta(seconds=ttl_s)
    if expires_at > datetime.now(UTC):
        free = f"{expires_at:%Y-%m-%d %H:%M:%S} UTC"
        raise HeldError(f"the lease {path} can't be read; unless a run renews it until then, it is free at {free}")


def _create(fs: AbstractFileSystem, path: str, holder: Holder) -> bool:
    """Create a generation unless it exists, and return whether this call created it; raises StoreError."""
    data, probe = holder.encoded, holder.model_copy(update={"probe": True}).encoded

    def create() -> bool:
        if is_local(fs):
            return _create_locally(Path(path), data)
        with _creating:  # fsspec's memory file system looks and writes in two steps
            return _create_in_store(fs, path, data, probe)

    return ask_store(f"the lease {path} can't be written", create)


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

    It may be called again after a failure: a write whose answer was lost is found by its content, which has a nonce.

    On a store that ignores the condition the last writer wins. So each writer waits until all writers that checked
    before it have written, and then reads back which writer won.
    """
    for content in (data, probe):
        try:
            fs.pipe_file(path, content, mode="create")
        except OSError:  # Stores report a failed condition in many ways; the present object shows what happened.
            if not _stands(fs, path):
                raise
    if read_object(fs, path) == probe:
        time.sleep(SETTLE_S)
        return read_object(fs, path) == probe
    return read_object(fs, path) == data


def _stands(fs: AbstractFileSystem, path: str) -> bool:
    fs.invalidate_cache()
    return bool(fs.exists(path))
