"""What the actors have done so far, told to the driver while Ray Data runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray

POLL_S = 0.5


class Done(NamedTuple):
    """Sums over all actors since the start of the run."""

    images: int
    rejected: int
    busy_s: float
    """Seconds that actors spent in the network and on its results, added up."""


@ray.remote(num_cpus=0)
class Tally:
    """Adds up the actors' reports; takes no CPU of the plan."""

    def __init__(self) -> None:
        self._done = Done(0, 0, 0.0)

    def add(self, images: int, rejected: int, busy_s: float) -> None:
        """Count a table that an actor finished."""
        images_so_far, rejected_so_far, busy_so_far_s = self._done
        self._done = Done(images_so_far + images, rejected_so_far + rejected, busy_so_far_s + busy_s)

    def read(self) -> Done:
        """Return the sums so far."""
        return self._done


@contextmanager
def following(tally: Any, advance: Callable[[int, int], None]) -> Iterator[None]:
    """Tell ``advance`` twice a second how many inputs are done and how many of them were rejected."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            try:
                done: Done = ray.get(tally.read.remote(), timeout=5)
            except ray.exceptions.RayError:
                return  # The cluster is going away; the write reports why.
            advance(done.images + done.rejected, done.rejected)

    thread = threading.Thread(target=poll, name="camlake-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
