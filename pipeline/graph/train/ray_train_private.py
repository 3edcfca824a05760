"""What camlake uses of Ray Train beyond its stable interface, with the reason for each; checked for Ray 2.60.

``tests/test_ray_private.py`` fails where an installed Ray no longer has one of these parts, or has it with another
meaning.
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

    The actor asks the dashboard for the state of the controller. Where no dashboard runs it waits for an answer:
    measured on one machine, 12 s at the end of every training. ``remove_own_placement_groups`` does its work.
    The handler of Ctrl-C would stay installed after the training.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Ray's stubs show Ray Train V1.
        return [callback for callback in callbacks if type(callback).__name__ != UNUSED_CALLBACK]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C as it is everywhere else."""


def no_retries() -> FailureConfig:
    """Return the setting with which Ray Train ends at the first failure; the last two fields exist in Ray Train V2."""
    return FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)  # type: ignore[call-arg]


def limit_start(seconds: int) -> None:
    """Let Ray Train give up a start that finds no room within ``seconds``, unless the user's environment says more.

    Ray Train reads this limit from the environment alone.
    """
    os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, str(seconds))


def remove_own_placement_groups() -> None:
    """Remove the placement groups that lost processes of this driver still hold.

    Ray Train leaves a group behind where a process is lost while it starts, or where the controller is lost; Ray would
    keep the group until the driver ends. The id of a group ends with the id of its job, which Ray does not document.
    """
    job_id = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        if group_id.endswith(job_id) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))


def start_problem(error: BaseException) -> Literal["no room", "lost at the start", "preempted"] | None:
    """Return which of Ray Train's own problems an error is; None for every other error."""
    if isinstance(error, WorkerGroupStartupTimeoutError):
        return "no room"
    if isinstance(error, WorkerGroupStartupFailedError):
        return "lost at the start"
    return "preempted" if isinstance(error, PreemptionError) else None


def failures_of(error: Exception) -> Mapping[int, BaseException]:
    """Return the failure of each process by its rank, from what ``fit`` raised; else the one failure at rank 0."""
    if isinstance(error, ControllerError):
        return {0: error.controller_failure}
    failures = error.worker_failures if isinstance(error, WorkerGroupError) and error.worker_failures else {0: error}
    return {rank: _cause_of_death(failure) for rank, failure in failures.items()}


def _cause_of_death(failure: BaseException) -> BaseException:
    """Return why a process is dead, where a failure is only that it did not answer."""
    return failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure
