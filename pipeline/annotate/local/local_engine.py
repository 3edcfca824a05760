"""The local engine: annotates on one machine without Ray.

This process fetches the images, gives tables of them to a few worker processes, and commits the rows that come back.
"""

import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from queue import SimpleQueue

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.annotate.commit_stage import commit_rows
from pipeline.annotate.crash_isolation import TRIES, died_at_start
from pipeline.annotate.image_reader import encoded_bytes
from pipeline.annotate.job import Job
from pipeline.annotate.local.local_server import worker_server
from pipeline.annotate.local.local_worker import Began, Done, Failed, Finished, Ready, stream_of, table_of
from pipeline.annotate.reporter import RunProgress
from pipeline.annotate.resources import LOGICAL_PER_CORE, Machine
from pipeline.annotate.stopping import stop_requested
from pipeline.annotate.worker import Worked
from pipeline.storage.lake.planning import PlanSlice
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
    that were begun are committed.
    """
    total = RunProgress()

    def read(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        nonlocal total
        for table in tables:
            total = total.plus(RunProgress(bytes_in=encoded_bytes(table)))
            yield from _parts(table, job.compute.runtime.batch_size)

    def counted(worked: Iterable[Worked]) -> Iterator[pa.Table]:
        nonlocal total
        for rows, progress in worked:
            total = total.plus(progress)
            follow(total)
            yield rows

    tables = chain_ahead((job.reader.read_slices(one) for one in slices), READERS, TABLES_AHEAD)
    batches = read(tables)
    with stop_requested() as stop, _processes(job, state) as work:
        begun = takewhile(lambda batch: not stop.is_set(), batches)
        rows = counted(map_ahead(work, begun, 2 * job.compute.actors[1]))
        groups = enumerate(_groups(rows, job.images_per_commit))
        for _ in map_ahead(lambda group: commit_rows(job, *group), groups, 2):
            pass
    return total


def _parts(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(table), size):
        yield table.slice(start, size)


def _groups(tables: Iterable[pa.Table], size: int) -> Iterator[list[pa.Table]]:
    """Yield lists of tables; each list but the last one has at least ``size`` rows."""
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(map(len, group)) >= size:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def _processes(job: Job, state: dict[str, Tensor]) -> Iterator[Callable[[pa.Table], Worked]]:
    """Run the workers during the block; the function gives a table to an idle one, and threads may call it."""
    payload, begun = pickle.dumps((job, state), protocol=5), Counter[str]()
    gpus = torch.cuda.device_count() if job.compute.runtime.device == "cuda" else 0
    processes = [_Process(number, gpus, payload, begun) for number in range(job.compute.actors[1])]
    idle: SimpleQueue[_Process] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def work(images: pa.Table) -> Worked:
        process = idle.get()
        try:
            return process.work(images)
        finally:
            idle.put(process)

    try:
        yield work
    finally:
        for process in processes:
            process.close()


class _Process:
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
                done = self._answer(stream)
            except (EOFError, OSError):  # Also one that died in the middle of a message.
                self._replace()
            else:
                return Worked(table_of(done.rows), done.progress)

    def close(self) -> None:
        """End the process."""
        self._closed = True
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._pipe.close()

    def _start(self) -> None:
        self._pid: int | None = None
        self._pipe = worker_server().fork(self._number, self._gpus)
        with suppress(ConnectionError):  # A process that died at once is found where its answer is read.
            self._pipe.send_bytes(self._payload)

    def _answer(self, stream: bytes) -> Done:
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
                case Done() as done:
                    return done
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
