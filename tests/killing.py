"""End a command in the middle of its work: kill it, as a lost machine would, or ask it to stop, as a system does."""

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.jobs_on import ROOT

WITHIN_S = 240
LOOKS_EVERY_S = 0.02


def kill_when(words: Sequence[str], far_enough: Callable[[], bool]) -> None:
    """Run a command and send it SIGKILL once ``far_enough()`` is true; the test fails if the command ends earlier."""
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WITHIN_S
        while not far_enough():
            assert process.poll() is None, "the command ended before it could be killed"
            assert time.monotonic() < deadline, f"nothing to kill for after {WITHIN_S} s"
            time.sleep(LOOKS_EVERY_S)
    finally:
        process.kill()
        process.wait()


class Ending(NamedTuple):
    """How a command ended after a signal."""

    status: int
    last_line: str
    """The last line of its standard error."""
    took_s: float
    """From the signal to the end of the process."""
    left: list[psutil.Process]
    """Those of its processes that were still alive a minute later."""


def stop_at_first_commit(words: Sequence[str], out: Path, number: signal.Signals) -> Ending:
    """Run a command that writes to the folder ``out`` and send it a signal at the first commit there."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said) as process,
    ):
        try:
            while not list(out.glob("_runs/*/commits/*.json")):
                assert process.poll() is None, "the command ended before its first commit"
                time.sleep(LOOKS_EVERY_S)
            family = psutil.Process(process.pid).children(recursive=True)
            asked_s = time.monotonic()
            process.send_signal(number)
            status = process.wait(WITHIN_S)
            took_s = time.monotonic() - asked_s
        finally:
            process.kill()
        _, left = psutil.wait_procs(family, timeout=60)
        said.seek(0)
        return Ending(status, said.read().splitlines()[-1], took_s, left)
