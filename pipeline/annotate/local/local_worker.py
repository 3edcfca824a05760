"""A process of the local engine: a worker at the end of a pipe.

The parent sends the job, then tables of fetched images. The worker answers with one of the messages below. It ends
where the parent closes the pipe, and also where the parent dies.
"""

import os
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from typing import NamedTuple

import pyarrow as pa

from pipeline.annotate.reporter import RunProgress
from pipeline.annotate.worker import Worker
from schemas.errors import CamlakeError


class Ready(NamedTuple):
    """The network is loaded; ``pid`` is the worker's number for the system."""

    pid: int


class Began(NamedTuple):
    """The work ``key`` begins; the parent answers how often it has begun since it last finished."""

    key: str


class Finished(NamedTuple):
    """The work ``key`` has finished."""

    key: str


class Done(NamedTuple):
    """The rows of a table come next, as an Arrow stream; ``progress`` is what they add to that of the run."""

    progress: RunProgress


class Failed(NamedTuple):
    """An error that is not a matter of one image, with its traceback; the worker ends."""

    error: CamlakeError
    traceback: str


class PipeAttempts:
    """The Attempts of ``pipeline.annotate.crash_isolation``, counted by the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def begin(self, key: str) -> int:
        """Return how often the work ``key`` has begun since it last finished, this time included."""
        self._pipe.send(Began(key))
        count: int = self._pipe.recv()
        return count

    def finish(self, key: str, *, wait: bool = False) -> None:
        """Set the count of the work ``key`` to 0. A pipe keeps the order, so that nothing is to be waited for."""
        self._pipe.send(Finished(key))


def without_pandas() -> None:
    """Let pyarrow find no pandas in this process, which only workers are forked from.

    pyarrow looks for pandas when it makes its first array, so that each worker would spend a second on the import.
    """
    sys.meta_path.insert(0, _NoPandas)
    pa.array([0])
    sys.meta_path.remove(_NoPandas)


class _NoPandas:
    """A finder of modules for which there is no pandas."""

    @classmethod
    def find_spec(cls, name: str, *_: object) -> None:
        """Raise ModuleNotFoundError for pandas."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def serve(pipe: Connection, number: int, gpus: int) -> None:
    """Answer the parent's tables until the pipe ends; worker ``number`` takes one of the machine's ``gpus``."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = _own_gpu(number, gpus)
    try:
        _serve(pipe)
    except (EOFError, ConnectionError):
        return  # The parent is gone or wants no more rows.


def _serve(pipe: Connection) -> None:
    try:
        job, state = pickle.loads(pipe.recv_bytes())
        work = Worker(job, state, PipeAttempts(pipe))
        pipe.send(Ready(os.getpid()))
        while True:
            worked = work(table_of(pipe.recv_bytes()))
            pipe.send(Done(worked.progress))
            pipe.send_bytes(stream_of(worked.rows))
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # Any other error would end the child in silence.
        pipe.send(Failed(_in_one_line(error), traceback.format_exc()))


def stream_of(table: pa.Table) -> pa.Buffer:
    """Return a table as an Arrow stream; unlike a pickle it has the bytes of a slice only."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table_of(stream: bytes) -> pa.Table:
    """Return the table in an Arrow stream, without a copy."""
    return pa.ipc.open_stream(stream).read_all()


def _own_gpu(number: int, gpus: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[number % gpus] if len(visible) >= gpus and visible[0] else str(number % gpus)


def _in_one_line(error: Exception) -> CamlakeError:
    if isinstance(error, CamlakeError):
        return error
    text = str(error).strip().splitlines()
    return CamlakeError(f"{type(error).__name__}: {text[0] if text else 'no message'} (--debug shows where)")
