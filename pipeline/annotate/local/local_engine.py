"""The local engine: annotates on one machine without Ray.

This process fetches the images, gives tables of them to a few worker processes, and commits the rows that come back.
"""

import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import takewhile
from queue import SimpleQueue
from socket import SHUT_RDWR, socket
from threading import Event

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.annotate.crash_isolation import TRIES, died_at_start
from pipeline.annotate.image_reader import encoded_bytes
from pipeline.annotate.job import Job
from pipeline.annotate.local.local_server import worker_server
from pipeline.annotate.local.local_worker import Began, Done, Failed, Finished, Ready, stream_of, table_of
from pipeline.annotate.reporter import RunProgress
from pipeline.annotate.resources import LOGICAL_PER_CORE, Machine
from pipeline.annotate.stopping import stop_requested
from pipeline.annotate.worker import Worked
from pipeline.storage.lake.plan.planning import PlanSlice
from pipeline.storage.prefetch import chain_ahead, map_ahead
from schemas.errors import CamlakeError

READERS = 2
"""Slices that are fetched at the same time; the requests of one slice run side by side too."""
TABLES_AHEAD = 2
"""Most fetched tables of a slice in memory."""


def this_machine() -> Machine:
    """Return the size of this machine."""
    cores = os.cpu_count() or 1
    return Machine(cores * LOGICAL_PER_CORE, torch.cuda.device_count(), cores)


def run_local(
    slices: Sequence[PlanSlice],
    job: Job,
    state: dict[str, Tensor],
    follow: Callable[[RunProgress], None],
) -> RunProgress:
    """Annotate the planned slices in worker processes and return the sums over all of them.

    ``state`` has the network's weights. ``follow`` gets the sums so far after each table. Raises CamlakeError with one
    line for what is not a matter of one image; earlier commits stay. Raises Stopped after a signal, when the tables
    that were begun are committed, or those of them that came back in time.
    """
    total = RunProgress()

    def read(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        nonlocal total
        for table in tables:
            total = total.plus(RunProgress(bytes_in=encoded_bytes(table)))
            yield from _parts(table, job.compute.runtime.batch_size)

    def counted(worked: Iterable[Worked | None]) -> Iterator[pa.Table]:
        nonlocal total
        try:
            for rows, progress in filter(None, worked):
                total = total.plus(progress)
                follow(total)
                yield rows
        except CamlakeError:
            if not stop.is_set():  # After a signal, what came back before is still committed.
                raise

    tables = chain_ahead((job.reader.read_slices(one) for one in slices), READERS, TABLES_AHEAD)
    batches = read(tables)
    pool = _Pool(job, state)
    with stop_requested(pool.end) as stop, closing(pool):
        begun = takewhile(lambda batch: not stop.is_set(), batches)
        rows = counted(map_ahead(partial(pool.work, stop), begun, 2 * job.compute.actors[1]))
        groups = enumerate(_groups(rows, job.commit.images_per_commit))
        for _ in map_ahead(lambda group: job.commit(*group), groups, 2):
            pass
    return total


def _parts(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), size):
        yield table.slice(start, size)


def _groups(tables: Iterable[pa.Table], size: int) -> Iterator[list[pa.Table]]:
    """Yield lists of tables: the first table with rows alone, then lists of at least ``size`` rows, but for the last.

    So the first images are committed at once, and what would fail every commit fails in the run's first seconds.
    """
    group: list[pa.Table] = []
    wanted = 1
    for table in tables:
        group.append(table)
        if sum(map(len, group)) >= wanted:
            yield group
            group, wanted = [], size
    if group:
        yield group


class _Pool:
    """The worker processes of a run."""

    def __init__(self, job: Job, state: dict[str, Tensor]) -> None:
        payload, begun = pickle.dumps((job, state), protocol=5), Counter[str]()
        gpus = torch.cuda.device_count() if job.compute.runtime.device == "cuda" else 0
        self._processes = [_LocalProcess(number, gpus, payload, begun) for number in range(job.compute.actors[1])]
        self._idle: SimpleQueue[_LocalProcess] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def work(self, stop: Event, images: pa.Table) -> Worked | None:
        """Give a table to an idle worker and return its rows, None where ``stop`` is set by then; threads may call it.

        Raises CamlakeError for what is not a matter of one image.
        """
        process = self._idle.get()
        try:
            return None if stop.is_set() else process.work(images)
        finally:
            self._idle.put(process)

    def end(self) -> None:
        """End the processes; the work that they have begun raises CamlakeError."""
        for process in self._processes:
            process.end()

    def close(self) -> None:
        """End the processes when no thread works any more."""
        for process in self._processes:
            process.close()


class _LocalProcess:
    """A worker process and the pipe to it; a process that died is replaced."""

    def __init__(self, number: int, gpus: int, payload: bytes, begun: Counter[str]) -> None:
        """``begun`` counts, for all processes, how often each work began and did not finish."""
        self._number, self._gpus, self._payload, self._begun = number, gpus, payload, begun
        self._deaths_at_start = 0
        self._closed = False
        self._start()

    def work(self, images: pa.Table) -> Worked:
        """Return the rows of a table; raises CamlakeError for what is not a matter of one image."""
        stream = stream_of(images)
        while True:
            try:
                rows, progress = self._answer(stream)
            except (EOFError, OSError):  # Also one that died in the middle of a message.
                self._replace()
            else:
                return Worked(table_of(rows), progress)

    def end(self) -> None:
        """End the process; another thread that waits for its answer gets the end of the pipe."""
        self._closed = True
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        with suppress(OSError), socket(fileno=os.dup(self._pipe.fileno())) as ours:
            ours.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """End the process and close the pipe; no thread may wait for an answer."""
        self.end()
        self._pipe.close()

    def _start(self) -> None:
        self._pid: int | None = None
        self._pipe = worker_server().fork(self._number, self._gpus)
        with suppress(ConnectionError):  # A process that died at once is found where its answer is read.
            self._pipe.send_bytes(self._payload)

    def _answer(self, stream: pa.Buffer) -> tuple[bytes, RunProgress]:
        if self._pid:
            self._pipe.send_bytes(stream)
        while True:
            match self._pipe.recv():
                case Ready(pid):
                    self._pid, self._deaths_at_start = pid, 0
                    self._pipe.send_bytes(stream)
                case Began(key):
                    self._begun[key] += 1
                    self._pipe.send(self._begun[key])
                case Finished(key):
                    del self._begun[key]
                case Done(progress):
                    return self._pipe.recv_bytes(), progress
                case Failed(error, trace):
                    raise error from RuntimeError(trace)

    def _replace(self) -> None:
        """Start another process; raises CamlakeError where processes die before they can work."""
        self._pipe.close()
        if self._closed:
            raise CamlakeError("stopped")
        if self._pid is None:
            self._deaths_at_start += 1
            if self._deaths_at_start >= TRIES:  # The tables that wait for this process fail too.
                raise died_at_start()
        self._start()
