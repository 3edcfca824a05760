"""What the actors have done so far, told to the driver while Ray works."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.5
ANSWERS_WITHIN_S = 10
"""What is not answered by then is asked anew with the next poll: nobody waits for a machine that is gone."""

Found = TypeVar("Found")


class RunProgress(NamedTuple):
    """Sums over all actors since the start of the run."""

    images: int
    rejected: int
    busy_s: float
    """Seconds that actors spent in the network and on its results, added up."""


@ray.remote(num_cpus=0)
class ProgressActor:
    """Adds up the actors' reports; takes no CPU of the plan."""

    def __init__(self) -> None:
        self._done = RunProgress(0, 0, 0.0)
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
        self._done = RunProgress(images_so_far + images, rejected_so_far + rejected, busy_so_far_s + busy_s)

    def read(self) -> RunProgress:
        """Return the sums so far."""
        return self._done


def start_progress() -> Any:
    """Return a new ProgressActor beside the driver."""
    return beside_driver(ProgressActor)


class ActorAttempts:
    """The Attempts of ``pipeline.annotate.crash_isolation``, counted by a ProgressActor; travels to every worker."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, key: str) -> int:
        """Return how often the work ``key`` was begun without being finished, this time included."""
        count: int = ray.get(self._actor.begin.remote(key))
        return count

    def finish(self, key: str, *, wait: bool = False) -> None:
        """Forget the work ``key``; with ``wait`` return only when it is forgotten."""
        forgotten = self._actor.finish.remote(key)
        if wait:
            ray.get(forgotten)


def beside_driver(kind: Any) -> Any:
    """Return a new actor of this class on the driver's own machine, which lives as long as the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return kind.options(scheduling_strategy=here).remote()


def answer(method: Any, *arguments: Any) -> Any:
    """Return what an actor's method gives; raises RayError, also where it takes more than ``ANSWERS_WITHIN_S``."""
    return ray.get(method.remote(*arguments), timeout=ANSWERS_WITHIN_S)


@contextmanager
def following(read: Callable[[], Found], show: Callable[[Found], None]) -> Iterator[None]:
    """Show twice a second what ``read`` returns while the body works, and once more when it has ended well.

    One call at a time, and none after the block, whose screen may be gone then; so its end waits for a call under way.
    What Ray could not read is left out: whether the work is lost, the body says.
    """
    ended = threading.Event()

    def look() -> None:
        try:
            found = read()
        except ray.exceptions.RayError:
            return
        show(found)

    def poll() -> None:
        while not ended.wait(POLL_S):
            look()

    thread = threading.Thread(target=poll, name="camlake-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    look()
