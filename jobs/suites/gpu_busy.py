"""The share of their time that the GPUs run kernels, asked of nvidia-smi."""

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
    """Return the mean of all GPUs, in [0, 1], over the last moments; raises UsageError where nvidia-smi can't say."""
    try:
        told = subprocess.run(COMMAND, capture_output=True, text=True, check=True, timeout=ANSWERS_WITHIN_S).stdout
        return statistics.mean(float(line) for line in told.splitlines()) / 100
    except (OSError, subprocess.SubprocessError, ValueError) as error:  # the last one for "[N/A]" and for no line
        raise UsageError(f"nvidia-smi does not tell the utilization of the GPU: {error}") from error


@contextmanager
def following_busy_share() -> Iterator[list[tuple[float, float]]]:
    """Give a list that fills while the block runs: pairs of a moment (time.time) and the share of the GPUs then.

    Moments at which nvidia-smi gives no answer are left out.
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
