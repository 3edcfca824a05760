"""Runs the processes of a training through Ray Train, and starts them anew on what is left when a machine is lost."""

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer

from pipeline.graph.board import following_board, start_board
from pipeline.graph.learning import Given, Layout, TrainJob, learn
from pipeline.graph.progress import answer, following
from pipeline.graph.resources import Machine
from pipeline.graph.training import share_out
from pipeline.graph.training_files import Epoch, Progress
from pipeline.models.loading import State
from pipeline.storage.labelled import LabelledImages
from schemas.errors import CamlakeError, InputError, LeaseError, UsageError

RETRIES = 3
"""Times in a row that the processes are started anew without a new epoch; each epoch that was written begins the count.

Ray notices some 15 s late that a machine is gone, so that one loss can cost two starts.
"""
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
    ``say`` in a line that processes start anew, or what they wait for. Raises CamlakeError where the processes failed
    more than ``RETRIES`` times in a row, or machines stayed away for ``MACHINES_WITHIN_S``.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ROOM_WITHIN_S))
    board = start_board()
    given = Given(ray.put(state), ray.put(train.plan), ray.put(val.plan), board)
    with following_board(board, advance, tell):
        failures, known = 0, len(job.files.resume()[0].history)
        while (problem := _attempt(job, given)) is not None:
            done = len(job.files.resume()[0].history)
            if not isinstance(problem, _NoRoomError):
                failures = failures + 1 if done == known else 1
                if failures > RETRIES:
                    raise _given_up(problem)
            layout = _planned_anew(job.layout, say)
            if layout == job.layout and isinstance(problem, _NoRoomError):
                say(f"{problem}; waiting")
            else:
                onward = f"going on after epoch {done}" if done else "from the beginning"
                say(f"{problem}; starting {layout.workers} with {layout.worker_cpus:g} CPUs each, {onward}")
            known, job = done, replace(job, layout=layout)
    return job.files.resume()[0]


def _given_up(problem: CamlakeError) -> CamlakeError:
    if type(problem) is not CamlakeError:
        return problem
    return CamlakeError(f"training failed {RETRIES + 1} times in a row without a new epoch: {problem}")


class _NoRoomError(CamlakeError):
    """The cluster has no room for the processes now."""


def _attempt(job: TrainJob, given: Given) -> CamlakeError | None:
    """Run the processes to the end of the training; return why they ended before it, None where they didn't.

    Raises CamlakeError for what no other try can mend.
    """
    layout, ended, starved = job.layout, threading.Event(), threading.Event()

    def starving() -> list[Any]:
        """Return the processes where the CPUs that are left can't feed them: they would wait for ever."""
        cpus: float = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        return answer(given.board.processes) if cpus < layout.least_cpus - 1e-6 else []

    def end(processes: list[Any]) -> None:
        if processes and not ended.is_set():
            starved.set()
            for process in processes:
                ray.kill(process)

    with tempfile.TemporaryDirectory(prefix="camlake-train-") as folder, following(starving, end):
        try:
            _trainer(job, given, folder).fit()
        except ray.train.TrainingFailedError as error:
            reason = _reason(error, layout)
        else:
            return None
        finally:
            ended.set()
    if isinstance(reason, UsageError | LeaseError | InputError):
        raise reason
    if starved.is_set() and not isinstance(reason, _NoRoomError):
        return CamlakeError(
            f"too few CPUs are left to feed {layout.workers} processes with {layout.worker_cpus:g} each"
        )
    return reason


def _trainer(job: TrainJob, given: Given, folder: str) -> TorchTrainer:
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


def _planned_anew(layout: Layout, say: Callable[[str], None]) -> Layout:
    """Return the layout of as many processes on what the cluster has now; waits for machines where that is too little.

    Raises CamlakeError where it stays so.
    """
    deadline = time.monotonic() + MACHINES_WITHIN_S
    while True:
        try:
            return share_out(layout.workers, layout.cuda, layout.threads, _cluster())
        except UsageError as error:
            if time.monotonic() > deadline:
                waited = f"waited {MACHINES_WITHIN_S} s for machines"
                raise CamlakeError(f"{error}; {waited}; run the same command again to go on") from error
            say(f"{error}; waiting for machines")
            time.sleep(MACHINES_EVERY_S)


def _cluster() -> Machine:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Machine(resources.get("CPU", 0.0), resources.get("GPU", 0.0), None)


def _reason(error: Exception, layout: Layout) -> CamlakeError:
    """Return why the processes ended, in one line: the cause where one is known, not what it did to the others."""
    start = type(getattr(error, "controller_failure", None)).__name__
    if start == "WorkerGroupStartupTimeoutError":
        return _no_room(layout)
    if start == "WorkerGroupStartupFailedError":
        return CamlakeError("a process was lost while it started")
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    own = [failure for failure in failures.values() if isinstance(failure, CamlakeError)]
    if own:
        return own[0]
    if any(isinstance(getattr(each, "health_check_failure", each), RayActorError) for each in failures.values()):
        return CamlakeError("a process that learns was lost")
    texts = [_error_line(failure) for failure in failures.values()]
    causes = [text for text in texts if not re.search("gloo|nccl|connection", text, re.IGNORECASE)]
    return CamlakeError(causes[0] if causes else "a process that learns lost the connection to another one")


def _error_line(failure: BaseException) -> str:
    """Return the line that names the error; a task's comes as the text of its traceback."""
    lines = [line.strip() for line in str(failure).splitlines()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return named[0] if named else f"{type(failure).__name__}: {failure}"


def _no_room(layout: Layout) -> _NoRoomError:
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    has, each = _cluster(), f"{layout.worker_cpus:g} CPUs"
    there = f"{has.cpus:g} CPUs, {free.get('CPU', 0.0):g} of them free"
    if layout.cuda:
        each += " and a GPU"
        there += f", and {has.gpus:g} GPUs, {free.get('GPU', 0.0):g} of them free"
    return _NoRoomError(f"no room for {layout.workers} processes with {each} each: this Ray cluster has {there}")
