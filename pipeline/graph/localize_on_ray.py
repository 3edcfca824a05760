"""The Ray engine of ``camlake localize``: each task localizes one commit of the source, on any machine of a cluster.

Ray Data would add nothing: the plan has the tasks already, they read and commit by themselves, and no rows come back.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import ray

from pipeline.annotate.stopping import DRAIN_S
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.ray_errors import in_one_line
from pipeline.outputs.heads.localize import Localize


def work_on_ray(opened: Localize, address: str | None, advance: Callable[[int], None]) -> None:
    """Commit all works of a begun run on Ray; ``advance`` gets the number of inputs that are done so far.

    A task that dies with its process or its machine is tried again. Raises CamlakeError with one line where that does
    not help; what was committed by then stays.
    """
    with ray_cluster(address):
        shared, done = ray.put(opened), 0
        tasks = [_localize_commit.remote(shared, number) for number in range(len(opened.works))]
        try:
            while tasks:
                (ready,), tasks = ray.wait(tasks)
                done += ray.get(ready)
                advance(done)
        except ray.exceptions.RayError as error:
            raise in_one_line(error) from error
        finally:
            _end(tasks)


def _end(tasks: list[ray.ObjectRef[int]]) -> None:
    """End what is left of a run that failed or was stopped, because a cluster outlives it."""
    for task in tasks:
        ray.cancel(task)
    deadline_s = time.monotonic() + DRAIN_S
    for task in tasks:
        with suppress(ray.exceptions.RayError):
            ray.get(task, timeout=max(0.0, deadline_s - time.monotonic()))


@ray.remote(num_cpus=1)
def _localize_commit(opened: Localize, number: int) -> int:
    return opened.localize_commit(number)
