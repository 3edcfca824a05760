"""What the actors have done so far, told to the driver while Ray Data runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
        self._begun: dict[str, int] = {}

    def begin(self, key: str) -> int:
        """Return how often the work ``key`` was begun without being finished, this time included."""
        self._begun[key] = self._begun.get(key, 0) + 1
        return self._begun[key]

    def finish(self, key: str) -> None:
        """Forget the work ``key``."""
        self._begun.pop(key, None)

    def add(self, images: int, rejected: int, busy_s: float) -> None:
        """Count a table that an actor finished."""
        images_so_far, rejected_so_far, busy_so_far_s = self._done
        self._done = Done(images_so_far + images, rejected_so_far + rejected, busy_so_far_s + busy_s)

    def read(self) -> Done:
        """Return the sums so far."""
        return self._done


def start_tally() -> Any:
    """Return a tally on the driver's own machine, which lives as long as the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Tally.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@contextmanager
def following(tally: Any, advance: Callable[[int, int], None]) -> Iterator[Callable[[], Done]]:
    """Tell ``advance`` twice a second how much is done; give a function that returns what all actors have done."""
    stop = threading.Event()

    def read() -> Done:
        done: Done = ray.get(tally.read.remote())
        return done

    def poll() -> None:
        while not stop.wait(POLL_S):
            try:
                done = read()
            except ray.exceptions.RayError:
                return  # The cluster is going away; the write reports why.
            advance(done.images + done.rejected, done.rejected)

    thread = threading.Thread(target=poll, name="camlake-progress", daemon=True)
    thread.start()
    try:
        yield read
    finally:
        stop.set()
        thread.join(timeout=10)
