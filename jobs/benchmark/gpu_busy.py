"""The share of time in which the GPUs run kernels, from nvidia-smi."""

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import UsageError

COMMAND = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
EVERY_S = 0.5
ANSWERS_WITHIN_S = 20.0


def busy_share() -> float:
    """Return the present busy share in [0, 1], the mean of all GPUs; raises UsageError where nvidia-smi gives none."""
    try:
        told = subprocess.run(COMMAND, capture_output=True, text=True, check=True, timeout=ANSWERS_WITHIN_S).stdout
        return statistics.mean(float(line) for line in told.splitlines()) / 100
    except (OSError, subprocess.SubprocessError, ValueError) as error:  # ValueError: "[N/A]", or no line at all
        raise UsageError(f"nvidia-smi does not tell the utilization of the GPU: {error}") from error


@contextmanager
def following_busy_share() -> Iterator[list[tuple[float, float]]]:
    """Yield a list that grows while the ``with`` block runs: pairs of a time (time.time) and the busy share at it.

    Times at which nvidia-smi gives no value are left out.
    """
    shares: list[tuple[float, float]] = []
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(EVERY_S):
            try:
                share = busy_share()
            except UsageError:
                continue
            shares.append((time.time(), share))

    thread = threading.Thread(target=follow, name="gpu-busy", daemon=True)
    thread.start()
    try:
        yield shares
    finally:
        ended.set()
        thread.join()
