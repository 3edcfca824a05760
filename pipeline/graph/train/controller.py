"""Runs the processes of a training through Ray Train, and starts them again on the rest of the cluster after a loss.

Ray Train 2.60 has its own elasticity, ``ScalingConfig(num_workers=(least, most))`` with ``FailureConfig``. It was tried
in place of this loop: it restarted two processes after the loss of a machine and finished all epochs. Four things are
missing:

- It gives the driver no message: the training case of ``tests/test_multinode.py`` failed at "going on after epoch".
- It has one limit for all failures and never resets its count. An exception of the code and a lost lease each got 4
  starts, where ``tests/test_controller.py`` allows 2 and 1. A process that was killed at its start got no other try.
- It waits without a message for processes that no machine can hold: after 40 s a process with 5 CPUs on a machine with
  4 CPUs had neither begun nor failed.
- By its source (``ElasticScalingPolicy``) it takes any number of processes between the limits, even one that does not
  divide ``batch_size``, and never changes the CPUs of a process. So a smaller cluster may have no CPU for the tasks
  that feed the processes.
"""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError

from pipeline.graph.progress import answer, following
from pipeline.graph.train.capacity import fits_a_node, in_words, machine_now, no_room
from pipeline.graph.train.checkpoints import Epoch, Progress
from pipeline.graph.train.failures import CodeError, LostError, NoRoomError, reason
from pipeline.graph.train.plan import TrainJob, WorkerPlan, replan_workers
from pipeline.graph.train.ray_train_private import QuietTrainer, limit_start, no_retries, remove_own_placement_groups
from pipeline.graph.train.train_progress import epochs_done, following_epochs, start_train_progress
from pipeline.graph.train.train_worker import SharedRefs, learn
from pipeline.models.weights.state_fitting import State
from pipeline.storage.truth.labelled_images import LabelledImages
from schemas.errors import CamlakeError, InputError, LeaseError, UsageError

RETRIES = 3
"""Most losses of processes, machines or connections in a row without a new epoch.

Ray notices about 15 s late that a machine is lost, so one lost machine can cost two starts.
"""
CODE_RETRIES = 1
"""Most failures of the code in a row without a new epoch; most such errors occur again."""
ROOM_WITHIN_S = 30
"""Seconds that a start waits for room on the cluster; then it is planned again for the cluster as it is then."""
MACHINES_WITHIN_S = 600
MACHINES_EVERY_S = 10
"""How long and how often, in seconds, a training looks for machines while the cluster is too small for any plan."""


def fit(
    job: TrainJob,
    state: State,
    train: LabelledImages,
    val: LabelledImages,
    advance: Callable[[int, int], None],
    on_epoch: Callable[[Epoch], None],
    say: Callable[[str], None],
) -> Progress:
    """Train until the training has ended, from the resume state at the output where there is one; return the progress.

    Twice a second ``advance`` gets the numbers of images done and of rejected images. ``on_epoch`` gets the figures of
    each epoch that ends. ``say`` gets a line whenever the processes start again or wait. While other work uses the
    cluster, the training waits for room without a limit.

    Raises CamlakeError where the processes failed more often in a row than ``RETRIES`` or ``CODE_RETRIES`` allow, where
    the cluster was too small for ``MACHINES_WITHIN_S``, where no machine can hold even one process, and where the
    progress actor is lost.
    """
    limit_start(ROOM_WITHIN_S)
    progress = start_train_progress()
    refs = SharedRefs(ray.put(state), ray.put(train.plan), ray.put(val.plan), progress)
    tries, last_wait = _Tries(), ""
    with following_epochs(progress, advance, on_epoch):
        while (problem := _attempt(job, refs)) is not None:
            done = epochs_done(progress)
            tries.count(problem, done)
            workers = _replanned(job, say)
            if workers == job.workers and isinstance(problem, NoRoomError):
                last_wait = _say_wait(workers, last_wait, say)
            else:
                onward = "" if done is None else f", going on after epoch {done}" if done else ", from the beginning"
                say(f"{problem}; starting {in_words(workers)}{onward}")
                job, last_wait = replace(job, workers=workers), ""
    return job.files.resume()[0]


class _Tries:
    """Counts failures in a row, losses and errors of the code separately; each new epoch sets both counts to 0."""

    def __init__(self) -> None:
        self._failed: Counter[bool] = Counter()
        self._known: int | None = None

    def count(self, problem: CamlakeError, done: int | None) -> None:
        """Count a failure after ``done`` epochs; raises CamlakeError where no other try is allowed."""
        if done is not None and done != self._known:
            self._failed.clear()
            self._known = done
        if isinstance(problem, NoRoomError):
            return
        of_code = isinstance(problem, CodeError)
        self._failed[of_code] += 1
        if self._failed[of_code] <= (CODE_RETRIES if of_code else RETRIES):
            return
        if not isinstance(problem, CodeError | LostError):
            raise problem
        detail = f" ({problem.detail})" if isinstance(problem, LostError) and problem.detail else ""
        times = f"{self._failed.total()} times in a row without a new epoch"
        raise CamlakeError(f"training failed {times}: {problem}{detail}") from problem


def _say_wait(workers: WorkerPlan, last_wait: str, say: Callable[[str], None]) -> str:
    """Report that the training waits for room, unless ``last_wait`` is the same text; return the text.

    Raises CamlakeError where no machine could hold even one process, so that the wait would never end.
    """
    if not fits_a_node(workers):
        raise CamlakeError(
            f"no machine of this Ray cluster could hold {in_words(replace(workers, workers=1))}; add a larger one, and"
            " run the same command again to go on"
        )
    text = f"{no_room(workers)}; waiting"
    if text != last_wait:
        say(text)
    return text


def _attempt(job: TrainJob, refs: SharedRefs) -> CamlakeError | None:
    """Run the processes; return None where the training has ended, else the failure that ended the processes.

    Raises CamlakeError for problems that no other try can solve.
    """
    workers, ended, starved = job.workers, threading.Event(), threading.Event()

    def starving() -> list[Any]:
        """Return the processes if too few CPUs are left to feed them, because they would wait without end."""
        return answer(refs.progress.processes) if machine_now().cpus < workers.least_cpus - 1e-6 else []

    def end(processes: list[Any]) -> None:
        if processes and not ended.is_set():
            starved.set()
            for process in processes:
                ray.kill(process)

    with tempfile.TemporaryDirectory(prefix="camlake-train-") as folder, following(starving, end):
        try:
            _trainer(job, refs, folder).fit()
        except (ray.train.TrainingFailedError, RayActorError) as error:
            problem = reason(error)
            remove_own_placement_groups()
        else:
            return None
        finally:
            ended.set()
    if isinstance(problem, UsageError | LeaseError | InputError):
        raise problem
    if starved.is_set() and isinstance(problem, LostError):
        # The processes were lost because ``end`` killed them.
        return LostError(f"too few CPUs are left to feed {in_words(workers)}")
    return problem


def _trainer(job: TrainJob, refs: SharedRefs, folder: str) -> QuietTrainer:
    workers = job.workers
    resources = {"CPU": workers.worker_cpus} | ({"GPU": 1.0} if workers.cuda else {})
    return QuietTrainer(
        learn,
        train_loop_config={"job": job, "refs": refs},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.workers,
            use_gpu=workers.cuda,
            resources_per_worker=resources,
            # GPUs exchange gradients fastest inside a machine. On CPUs a process gains a machine's caches and memory.
            placement_strategy="PACK" if workers.cuda else "SPREAD",
        ),
        run_config=ray.train.RunConfig(name="train", storage_path=folder, failure_config=no_retries()),
    )


def _replanned(job: TrainJob, say: Callable[[str], None]) -> WorkerPlan:
    """Return a plan of the processes for the present cluster; wait for machines where the cluster is too small.

    Raises CamlakeError where the cluster is still too small after ``MACHINES_WITHIN_S``.
    """
    deadline, said = time.monotonic() + MACHINES_WITHIN_S, ""
    while True:
        try:
            return replan_workers(job.workers, job.config.batch_size, machine_now())
        except UsageError as error:
            if time.monotonic() > deadline:
                waited = f"waited {MACHINES_WITHIN_S} s for machines"
                raise CamlakeError(f"{error}; {waited}; run the same command again to go on") from error
            if said != (said := f"{error}; waiting for machines"):
                say(said)
            time.sleep(MACHINES_EVERY_S)
