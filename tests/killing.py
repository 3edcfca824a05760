"""Kill a command in the middle of its work, as a lost machine would."""

import subprocess
import time
from collections.abc import Callable, Sequence

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
