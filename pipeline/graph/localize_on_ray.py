"""The Ray engine of ``camlake localize``: each task localizes one commit of the source, on any machine of a cluster.

Ray Data would add nothing: the plan has the tasks already, they read and commit by themselves, and no rows come back.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import ray

from pipeline.annotate.reporter import RunProgress, SaidOnce
from pipeline.annotate.stopping import DRAIN_S, stop_requested
from pipeline.graph.progress import POLL_S, answer, following, start_progress
from pipeline.graph.ray_errors import in_one_line
from pipeline.outputs.heads.localize import Localize
from pipeline.outputs.rebox_plan import Work
from pipeline.storage.patience import PATIENCE

_TASKS_A_CPU = 2
"""One task runs while the next one waits, by which an autoscaler sees that there is more to do."""


def work_on_ray(opened: Localize, say: Callable[[str], None], advance: Callable[[int], None]) -> None:
    """Commit all works of a begun run on the Ray to which this process is connected.

    ``say`` gets a line where the store fails for long, ``advance`` the number of inputs that are done so far. A task
    that dies with its process or its machine is tried again. Raises CamlakeError with one line where that does not
    help; what was begun by then is still committed. Raises Stopped after a signal, when the tasks that run have
    committed, or when that takes too long.
    """
    progress, notes, late = start_progress(), SaidOnce(say), threading.Event()
    shared, works = ray.put(opened.sendable()), deque(enumerate(opened.works))
    task: Any = ray.remote(num_cpus=1)(_localize_commit)
    at_work: list[Any] = []
    done = 0

    def follow(told: RunProgress) -> None:
        notes(told.notes)

    with stop_requested(late.set) as stop, following(partial(answer, progress.read), follow):
        try:
            while True:
                while works and len(at_work) < _most_at_work() and not stop.is_set():
                    at_work.append(task.remote(shared, *works.popleft(), progress))
                if not at_work or late.is_set():
                    return
                ready, at_work = ray.wait(at_work, timeout=POLL_S)
                done += sum(ray.get(ready))
                advance(done)
        except ray.exceptions.RayError as error:
            raise in_one_line(error) from error
        finally:
            _end(at_work, 0.0 if stop.is_set() else DRAIN_S)


def _most_at_work() -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(_TASKS_A_CPU * resources.get("CPU", 1.0)))


def _end(tasks: list[Any], within_s: float) -> None:
    """Wait for the tasks of a run that failed, and cancel those that take longer: a cluster outlives the run."""
    if not tasks:
        return
    ended, left = ray.wait(tasks, num_returns=len(tasks), timeout=within_s)
    for task in left:
        ray.cancel(task)
    for task in ended:
        with suppress(ray.exceptions.RayError):  # The run's error is the first one.
            ray.get(task)


def _localize_commit(opened: Localize, number: int, work: Work, progress: Any) -> int:
    with PATIENCE.patient(progress.note.remote):
        return opened.reconnected().localize_commit(number, work)
