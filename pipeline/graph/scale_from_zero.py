"""Waits for the first GPU of a cluster whose autoscaler brings GPU nodes when there is work for them.

So no GPU has to idle between two runs. The autoscaler is asked by a task that needs a GPU: unlike a request through
``ray.autoscaler.sdk``, which stays when this process is killed, a waiting task ends with its driver.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import ray
from ray.exceptions import RayError

from pipeline.annotate.resources import Machine
from pipeline.graph.autoscaler_private import is_launching
from pipeline.graph.ray_errors import in_one_line
from schemas.errors import CamlakeError, UsageError
from schemas.options.config import Device

NOTHING_COMES_AFTER_S = 30.0
"""How long an autoscaler may seem to do nothing; it looks at the waiting tasks every five seconds."""
GIVES_UP_AFTER_S = 1800.0
"""Longest wait in seconds. Where spot machines are sold out for longer, the next start of the job tries again."""
SAYS_EVERY_S = 60.0
POLL_S = 1.0


@ray.remote(num_cpus=0, max_retries=-1)
def _need_gpu() -> None:
    """Do nothing, on a GPU."""


def with_gpus(machine: Machine, device: Device, gpus: float, say: Callable[[str], None]) -> Machine:
    """Return the connected cluster with its first GPU, for which this waits where ``device`` is cuda and none is there.

    ``gpus`` is the share of a GPU, or the number of GPUs, that one worker takes. Raises UsageError where no autoscaler
    brings one, and CamlakeError where none comes within GIVES_UP_AFTER_S, or stays.
    """
    if device != "cuda" or machine.gpus or machine.cores is not None:
        return machine
    say("this cluster has no GPU yet; asking its autoscaler for one")
    started = seen = said = time.monotonic()
    task, waits = _need_gpu.options(num_gpus=gpus).remote(), True
    try:
        while not ray.wait([task], timeout=POLL_S)[0]:
            at_work = _seems_at_work()
            now = time.monotonic()
            seen = now if at_work else seen
            if now - seen > NOTHING_COMES_AFTER_S:
                raise UsageError(
                    "--device cuda: this Ray cluster has no GPU, and no autoscaler brings one; allowed here: cpu, auto"
                )
            if now - started > GIVES_UP_AFTER_S:
                raise CamlakeError(f"the cluster's autoscaler brought no GPU in {GIVES_UP_AFTER_S / 60:.0f} minutes")
            if now - said > SAYS_EVERY_S:
                said = now
                say(f"waiting for a GPU for {(now - started) / 60:.0f} min")
        waits = False
        ray.get(task)
    except RayError as error:
        raise in_one_line(error) from error
    finally:
        if waits:  # Ray 2.60 kills this process where a task is cancelled at the moment of its end.
            ray.cancel(task)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    found = resources.get("GPU", 0.0)
    if not found:
        raise CamlakeError("the cluster's first GPU came and went away again; run the same command again")
    say(f"a GPU is there after {time.monotonic() - started:.0f} s")
    return replace(machine, cpus=resources.get("CPU", machine.cpus), gpus=found)


def _seems_at_work() -> bool:
    """Return whether the autoscaler brings nodes; a look that fails says nothing of it, and the wait goes on."""
    try:
        return is_launching()
    except (RayError, OSError):
        return True
