"""The server of the local engine's workers: a process that imports the network's libraries once and forks on demand.

A forked worker starts in a tenth of a second and shares the memory of the imports. It is not forked from the run's own
process, whose threads may hold locks at that moment. ``multiprocessing``'s fork server would import the main module of
the user's program again, which runs a program without ``if __name__ == "__main__"`` a second time.
"""

import atexit
import functools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

_ORDER = struct.Struct("ii")
"""What the server gets with the worker's end of a pipe: the number of the worker, and how many GPUs there are."""
# ``camlake`` comes first: the import makes the process use camlake's packages, whatever the working folder holds.
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; import camlake; from pipeline.annotate.local.local_server import main; main()"
)


class WorkerServer:
    """The side of the run's process: starts the server, and asks it for workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        # In a session of its own: Ctrl-C reaches only the run's process, which then ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    @property
    def ended(self) -> bool:
        """Return whether the server process has ended."""
        return self._process.poll() is not None

    def fork(self, number: int, gpus: int) -> Connection:
        """Return the pipe to a new worker, which runs ``local_worker.serve``; where none starts, the pipe ends."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock, suppress(ConnectionError):
            socket.send_fds(self._control, [_ORDER.pack(number, gpus)], [theirs.fileno()])
        return Connection(ours.detach())

    def close(self) -> None:
        """End the server; its workers end with their pipes."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def worker_server() -> WorkerServer:
    """Return this process's server, which starts at the first call and ends with this process."""
    if _server().ended:
        _server().close()
        _server.cache_clear()
    return _server()


@functools.cache
def _server() -> WorkerServer:
    server = WorkerServer()
    atexit.register(server.close)
    return server


def main() -> None:
    """Fork a worker for each order of the run's process, until that process ends."""
    from pipeline.annotate.local.local_worker import serve, without_pandas  # noqa: PLC0415 - imports the network's libraries

    without_pandas()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The system removes ended workers.
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        order, pipes, _, _ = socket.recv_fds(control, _ORDER.size, 1)
        if not order:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            serve(Connection(pipes[0]), *_ORDER.unpack(order))
            os._exit(0)
        os.close(pipes[0])
