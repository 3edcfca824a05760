"""CPU seconds of this process and of all that it started, told apart by what they do. Linux only: it reads /proc."""

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

SAMPLE_S = 0.5
DRIVER = "driver"
_ROLES = (
    ("ray::MapWorker", "actors"),
    ("ray::ProgressActor", "progress actor"),
    ("ray::_", "Ray Data's own actors"),
    ("ray::", "readers, decoders, writers"),
    ("gcs_server", "gcs"),
    ("raylet", "raylets"),
)
"""Beginning of a title, or the program's name, and the role; the first that fits counts. Workers take turns at tasks
of a few ms, so what reads, decodes and writes can't be told apart."""


class _Process(NamedTuple):
    parent: int
    cpu_s: float
    title: str


class CpuByRole:
    """Samples the processes while its block runs."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._booked: defaultdict[str, float] = defaultdict(float)
        self._own_s = 0.0
        """CPU seconds of the sampling itself, which are no work of the driver's."""
        self._last: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cpu-by-role", daemon=True)

    def __enter__(self) -> Self:
        """Count from here on; what the processes used before does not count."""
        self._last = {pid: process.cpu_s for pid, process in family().items()}
        self._samples = [(time.perf_counter(), {})]
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def between(self, start_s: float, end_s: float) -> dict[str, float]:
        """Return the CPU seconds of each role between the samples next to two moments of time.perf_counter."""
        first, last = (min(self._samples, key=lambda sample: abs(sample[0] - at))[1] for at in (start_s, end_s))
        return {role: cpu_s - first.get(role, 0.0) for role, cpu_s in sorted(last.items())}

    def _follow(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        for pid, process in family().items():
            self._booked[_role(pid, process.title)] += process.cpu_s - self._last.get(pid, 0.0)
            self._last[pid] = process.cpu_s
        self._booked[DRIVER] -= time.thread_time() - self._own_s
        self._own_s = time.thread_time()
        self._samples.append((time.perf_counter(), self._booked.copy()))


def _role(pid: int, title: str) -> str:
    if pid == os.getpid():
        return DRIVER
    program = Path(title.partition(" ")[0]).name
    return next((role for begin, role in _ROLES if title.startswith(begin) or program == begin), "helpers of Ray")


def family() -> dict[int, _Process]:
    """Return this process and all of its descendants."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    alive = {pid: process for pid in numbers if (process := _read(Path("/proc") / str(pid)))}
    found: dict[int, _Process] = {}
    for pid, process in alive.items():
        line = pid
        while line in alive and line != os.getpid():
            line = alive[line].parent
        if line == os.getpid():
            found[pid] = process
    return found


def _read(folder: Path) -> _Process | None:
    """Return what /proc says of a process; None for one that has ended."""
    try:
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return _Process(int(stat[1]), (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), title)


def peak_bytes() -> int:
    """Return the most memory that this process has held so far, pages of mapped libraries included.

    Not ru_maxrss, which begins with what the parent process held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
