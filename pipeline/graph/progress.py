"""The progress of a run: an actor adds up the reports of the other actors, and the driver reads the sums."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.annotate.reporter import RunProgress

POLL_S = 0.5
ANSWERS_WITHIN_S = 10
"""Longest wait for an answer in seconds; then the next poll asks again, so that a lost machine stops nothing."""

T = TypeVar("T")


@ray.remote(num_cpus=0)
class ProgressActor:
    """Adds up the actors' reports; it takes none of the planned CPUs."""

    def __init__(self) -> None:
        self._done = RunProgress()
        self._begun: dict[str, int] = {}
        self._stopping = False

    def stop(self) -> None:
        """Ask the workers to begin nothing new."""
        self._stopping = True

    def stopping(self) -> bool:
        """Return whether the workers shall begin nothing new."""
        return self._stopping

    def begin(self, key: str) -> int:
        """Return how often the work ``key`` has begun since it last finished, this time included."""
        self._begun[key] = self._begun.get(key, 0) + 1
        return self._begun[key]

    def finish(self, key: str) -> None:
        """Set the count of the work ``key`` to 0."""
        self._begun.pop(key, None)

    def add(self, more: RunProgress) -> None:
        """Add what an actor or a task reports of a table."""
        self._done = self._done.plus(more)

    def note(self, text: str) -> None:
        """Keep a line that the user is to know."""
        self._done = self._done.plus(RunProgress(notes=(text,)))

    def read(self) -> RunProgress:
        """Return the sums so far."""
        return self._done


def start_progress() -> Any:
    """Return a new ProgressActor on the driver's machine."""
    return beside_driver(ProgressActor)


class ActorAttempts:
    """The Attempts of ``pipeline.annotate.crash_isolation``, counted by a ProgressActor; every worker gets a copy."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, key: str) -> int:
        """Return how often the work ``key`` has begun since it last finished, this time included."""
        count: int = ray.get(self._actor.begin.remote(key))
        return count

    def finish(self, key: str, *, wait: bool = False) -> None:
        """Set the count of the work ``key`` to 0; with ``wait`` return only when the count is 0."""
        forgotten = self._actor.finish.remote(key)
        if wait:
            ray.get(forgotten)


def beside_driver(kind: Any) -> Any:
    """Return a new actor of the class ``kind`` on the driver's machine, which is there as long as the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return kind.options(scheduling_strategy=here).remote()


def answer(method: Any, *arguments: Any) -> Any:
    """Return the result of an actor's method; raises RayError, also after ``ANSWERS_WITHIN_S`` without a result."""
    return ray.get(method.remote(*arguments), timeout=ANSWERS_WITHIN_S)


@contextmanager
def following(read: Callable[[], T], show: Callable[[T], None]) -> Iterator[None]:
    """Pass the result of ``read`` to ``show`` twice a second, and once more when the body has ended without an error.

    There is one call of ``show`` at a time and none after the block, because the screen may be closed then; the end of
    the block waits for a running call. After an error of Ray in ``read`` one call of ``show`` is left out; if the work
    itself is lost, the body raises the error.
    """
    ended = threading.Event()

    def look() -> None:
        try:
            state = read()
        except ray.exceptions.RayError:
            return
        show(state)

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
