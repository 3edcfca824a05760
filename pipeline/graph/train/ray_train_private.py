"""The private parts of Ray Train that camlake uses, with the reason for each part; checked for Ray 2.60.

``tests/test_ray_private.py`` fails where the installed Ray has no such part, or where the part has another meaning.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

import ray
from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

UNUSED_CALLBACK = "PlacementGroupCleanerCallback"


class QuietTrainer(TorchTrainer):
    """Ray Train without its actor that cleans up placement groups, and without its handler of Ctrl-C.

    The actor asks the dashboard for the controller's state. Without a dashboard it waits for an answer: measured on
    one machine, 12 s at the end of every training. ``remove_own_placement_groups`` does the work of this actor. The
    handler of Ctrl-C would stay installed after the training.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Ray's stubs show Ray Train V1.
        return [callback for callback in callbacks if type(callback).__name__ != UNUSED_CALLBACK]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Do not install a handler of Ctrl-C."""


def no_retries() -> FailureConfig:
    """Return the setting with which Ray Train ends at the first failure; the last two fields exist in Ray Train V2."""
    return FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)  # type: ignore[call-arg]


def limit_start(seconds: int) -> None:
    """Make Ray Train end a start that finds no room within ``seconds``; a limit in the user's environment stays.

    Ray Train reads this limit from the environment only.
    """
    os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, str(seconds))


def remove_own_placement_groups() -> None:
    """Remove the placement groups that lost processes of this driver still hold.

    Ray Train does not remove a group where a process is lost at its start, or where the controller is lost. Ray would
    keep the group until the driver ends. The id of a group ends with the id of its job, which Ray does not document.
    """
    job_id = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        if group_id.endswith(job_id) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))


def start_problem(error: BaseException) -> Literal["no room", "lost at the start", "preempted"] | None:
    """Return the problem that an error class of Ray Train stands for; None for every other error."""
    if isinstance(error, WorkerGroupStartupTimeoutError):
        return "no room"
    if isinstance(error, WorkerGroupStartupFailedError):
        return "lost at the start"
    return "preempted" if isinstance(error, PreemptionError) else None


def failures_of(error: Exception) -> Mapping[int, BaseException]:
    """Return the failure of each process by its rank, from the error of ``fit``; one failure alone has rank 0."""
    if isinstance(error, ControllerError):
        return {0: error.controller_failure}
    failures = error.worker_failures if isinstance(error, WorkerGroupError) and error.worker_failures else {0: error}
    return {rank: _cause_of_death(failure) for rank, failure in failures.items()}


def _cause_of_death(failure: BaseException) -> BaseException:
    """Return why a process is dead; a failure of Ray Train's health check contains the cause."""
    return failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure
