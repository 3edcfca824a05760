"""Runs the processes of a training through Ray Train, and starts them anew on what is left when a machine is lost."""

import os
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
from ray.train.torch import TorchTrainer

from pipeline.graph.progress import answer, following
from pipeline.graph.train.capacity import fits_a_node, free_leftovers, in_words, machine_now, no_room
from pipeline.graph.train.checkpoints import Epoch, Progress
from pipeline.graph.train.failures import CodeError, LostError, NoRoomError, reason
from pipeline.graph.train.plan import plan_anew
from pipeline.graph.train.train_progress import epochs_done, following_board, start_board
from pipeline.graph.train.worker import SharedRefs, TrainJob, WorkerPlan, learn
from pipeline.models.weights.state_fitting import State
from pipeline.storage.truth.labelled_images import LabelledImages
from schemas.errors import CamlakeError, InputError, LeaseError, UsageError

RETRIES = 3
"""Times in a row that processes, machines or connections may be lost without a new epoch.

Ray notices some 15 s late that a machine is gone, so that one loss can cost two starts.
"""
CODE_RETRIES = 1
"""Times in a row that the code itself may fail without a new epoch: most of that comes again."""
ROOM_WITHIN_S = 30
"""How long a start waits for room on the cluster before it is planned anew with what the cluster has by then."""
MACHINES_WITHIN_S = 600
MACHINES_EVERY_S = 10
"""How long, and how often, a training looks for machines without which it can't be planned at all."""


def fit(
    job: TrainJob,
    state: State,
    train: LabelledImages,
    val: LabelledImages,
    advance: Callable[[int, int], None],
    tell: Callable[[Epoch], None],
    say: Callable[[str], None],
) -> Progress:
    """Train to the end and return what became of it; goes on from the output's state where there is one.

    ``advance`` is told twice a second how many images were seen and rejected, ``tell`` each epoch that ends here, and
    ``say`` in a line that processes start anew, or what they wait for: where others use the cluster, its room is waited
    for without end. Raises CamlakeError where the processes failed more often in a row than ``RETRIES`` or
    ``CODE_RETRIES`` allow, machines stayed away for ``MACHINES_WITHIN_S``, no machine could hold even one process, or
    the board is lost.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ROOM_WITHIN_S))
    board = start_board()
    given = SharedRefs(ray.put(state), ray.put(train.plan), ray.put(val.plan), board)
    tries, waits = _Tries(), ""
    with following_board(board, advance, tell):
        while (problem := _attempt(job, given)) is not None:
            done = epochs_done(board)
            tries.count(problem, done)
            layout = _planned_anew(job, say)
            if layout == job.layout and isinstance(problem, NoRoomError):
                waits = _waiting(layout, waits, say)
            else:
                onward = "" if done is None else f", going on after epoch {done}" if done else ", from the beginning"
                say(f"{problem}; starting {in_words(layout)}{onward}")
                job, waits = replace(job, layout=layout), ""
    return job.files.resume()[0]


class _Tries:
    """Counts the failures in a row, those of each kind on their own; each epoch that was written begins the count."""

    def __init__(self) -> None:
        self._failed: Counter[bool] = Counter()
        self._known: int | None = None

    def count(self, problem: CamlakeError, done: int | None) -> None:
        """Note why the processes ended after ``done`` epochs; raises CamlakeError where no other try is allowed."""
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


def _waiting(layout: WorkerPlan, said: str, say: Callable[[str], None]) -> str:
    """Say what is waited for, unless that was ``said``, and return it.

    Raises CamlakeError where waiting is no use, as no machine could hold even one process.
    """
    if not fits_a_node(layout):
        raise CamlakeError(
            f"no machine of this Ray cluster could hold {in_words(replace(layout, workers=1))}; add a larger one, and"
            " run the same command again to go on"
        )
    text = f"{no_room(layout)}; waiting"
    if text != said:
        say(text)
    return text


def _attempt(job: TrainJob, given: SharedRefs) -> CamlakeError | None:
    """Run the processes to the end of the training; return why they ended before it, None where they didn't.

    Raises CamlakeError for what no other try can mend.
    """
    layout, ended, starved = job.layout, threading.Event(), threading.Event()

    def starving() -> list[Any]:
        """Return the processes where the CPUs that are left can't feed them: they would wait for ever."""
        return answer(given.board.processes) if machine_now().cpus < layout.least_cpus - 1e-6 else []

    def end(processes: list[Any]) -> None:
        if processes and not ended.is_set():
            starved.set()
            for process in processes:
                ray.kill(process)

    with tempfile.TemporaryDirectory(prefix="camlake-train-") as folder, following(starving, end):
        try:
            _trainer(job, given, folder).fit()
        except (ray.train.TrainingFailedError, RayActorError) as error:
            problem = reason(error)
            free_leftovers()
        else:
            return None
        finally:
            ended.set()
    if isinstance(problem, UsageError | LeaseError | InputError):
        raise problem
    if starved.is_set() and isinstance(problem, LostError):
        return LostError(f"too few CPUs are left to feed {in_words(layout)}")  # Those that were lost, we ended.
    return problem


def _trainer(job: TrainJob, given: SharedRefs, folder: str) -> TorchTrainer:
    layout = job.layout
    resources = {"CPU": layout.worker_cpus} | ({"GPU": 1.0} if layout.cuda else {})
    # What failed is planned anew here: Ray Train would ask for the same resources for ever, and say so to nobody.
    once = ray.train.FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)  # type: ignore[call-arg]  # Those of Ray Train V2.
    return _Trainer(
        learn,
        train_loop_config={"job": job, "given": given},
        scaling_config=ray.train.ScalingConfig(
            num_workers=layout.workers,
            use_gpu=layout.cuda,
            resources_per_worker=resources,
            # GPUs talk fastest within a machine; on CPU each process gains a machine's caches and memory.
            placement_strategy="PACK" if layout.cuda else "SPREAD",
        ),
        run_config=ray.train.RunConfig(name="train", storage_path=folder, failure_config=once),
    )


class _Trainer(TorchTrainer):
    """Ray Train without its guard of placement groups, which asks the dashboard: where none runs it waits for that.

    Measured on one machine: 12 s at the end of every training. The guard's work is done without it: Ray removes the
    groups of a driver that has ended.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # That of Ray Train V2 has it.
        return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C what it is everywhere: Ray Train's own would outlive the processes that it ends."""


def _planned_anew(job: TrainJob, say: Callable[[str], None]) -> WorkerPlan:
    """Return the layout on what the cluster has now; waits for machines where that is too little.

    Raises CamlakeError where it stays so.
    """
    deadline, said = time.monotonic() + MACHINES_WITHIN_S, ""
    while True:
        try:
            return plan_anew(job.layout, job.batch_size, machine_now())
        except UsageError as error:
            if time.monotonic() > deadline:
                waited = f"waited {MACHINES_WITHIN_S} s for machines"
                raise CamlakeError(f"{error}; {waited}; run the same command again to go on") from error
            if said != (said := f"{error}; waiting for machines"):
                say(said)
            time.sleep(MACHINES_EVERY_S)
