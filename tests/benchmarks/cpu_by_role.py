"""Count the CPU seconds of this process and of all its descendants, by the role of each process."""

import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

SAMPLE_S = 0.5
DRIVER = "driver"
_ROLES = (
    (DRIVER, DRIVER),
    ("ray::MapWorker", "actors"),
    ("ray::ProgressActor", "progress actor"),
    ("ray::_", "Ray Data's own actors"),
    ("ray::", "readers, decoders, writers"),
    ("gcs_server", "gcs"),
    ("raylet", "raylets"),
)
"""Pairs of the beginning of a process's title or of its program's name, and a role. The first match gives the role.

A worker runs tasks of a few milliseconds in turn, so reading, decoding and writing cannot be counted separately.
"""


class _Usage(NamedTuple):
    cpu_s: float
    title: str


class CpuByRole:
    """A context manager that samples the CPU seconds of the processes while its ``with`` block runs."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._booked: defaultdict[str, float] = defaultdict(float)
        self._own_s = 0.0
        """CPU seconds of the sampling itself; they are not counted for the driver."""
        self._last: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cpu-by-role", daemon=True)

    def __enter__(self) -> Self:
        """Start sampling; CPU seconds before this moment do not count."""
        self._last = {pid: usage.cpu_s for pid, usage in _family().items()}
        self._samples = [(time.perf_counter(), {})]
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def between(self, start_s: float, end_s: float) -> dict[str, float]:
        """Return the CPU seconds of each role between two moments of time.perf_counter, from the nearest samples."""
        first, last = (min(self._samples, key=lambda sample: abs(sample[0] - at))[1] for at in (start_s, end_s))
        return {role: cpu_s - first.get(role, 0.0) for role, cpu_s in sorted(last.items())}

    def _follow(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        for pid, usage in _family().items():
            self._booked[_role(usage.title)] += usage.cpu_s - self._last.get(pid, 0.0)
            self._last[pid] = usage.cpu_s
        self._booked[DRIVER] -= time.thread_time() - self._own_s
        self._own_s = time.thread_time()
        self._samples.append((time.perf_counter(), self._booked.copy()))


def _role(title: str) -> str:
    program = Path(title.partition(" ")[0]).name
    return next((role for begin, role in _ROLES if title.startswith(begin) or program == begin), "helpers of Ray")


def _family() -> dict[int, _Usage]:
    """Return the usage of this process and of all its descendants by process id; this process has the title DRIVER."""
    driver = psutil.Process()
    found = {driver.pid: _Usage(_cpu_s(driver), DRIVER)}
    for process in driver.children(recursive=True):
        try:
            found[process.pid] = _Usage(_cpu_s(process), " ".join(process.cmdline()).strip())
        except psutil.Error:  # The process has ended.
            continue
    return found


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
