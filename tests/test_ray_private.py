"""The private parts of Ray that camlake uses: each is there in the installed version, and does what is relied on."""

import dataclasses
import os
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray._common.usage import usage_constants
from ray.train import FailureConfig
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import placement_group, placement_group_table

from pipeline.graph.ray_environment import DEFAULTS
from pipeline.graph.ray_errors import in_one_line
from pipeline.graph.train.ray_train_private import (
    UNUSED_CALLBACK,
    QuietTrainer,
    limit_start,
    no_retries,
    remove_own_placement_groups,
)
from schemas.errors import UsageError


def test_ray_train_makes_its_callbacks_and_its_handler_where_they_are_left_out(tmp_path):
    run = ray.train.RunConfig(name="train", storage_path=str(tmp_path))
    ours = QuietTrainer(lambda: None, run_config=run)._create_default_callbacks()
    rays = DataParallelTrainer(lambda: None, run_config=run)._create_default_callbacks()
    names = [type(callback).__name__ for callback in rays]
    assert names.count(UNUSED_CALLBACK) == 1
    assert [type(callback).__name__ for callback in ours] == [name for name in names if name != UNUSED_CALLBACK]
    overridden = ("_create_default_callbacks", "_register_sigint_handler")
    assert all(callable(getattr(DataParallelTrainer, name)) for name in overridden)
    called = DataParallelTrainer._initialize_and_run_controller.__code__.co_names
    assert "_register_sigint_handler" in called


def test_no_retries_covers_every_kind_of_failure_that_ray_train_retries():
    limits = {
        field.name for field in dataclasses.fields(FailureConfig) if "max_" in field.name or "limit" in field.name
    }
    assert limits == {"max_failures", "controller_failure_limit", "max_preemption_failures"}
    assert [getattr(no_retries(), name) for name in sorted(limits)] == [0, 0, 0]


def test_ray_train_reads_the_limit_of_a_start(monkeypatch):
    name = constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
    monkeypatch.delenv(name, raising=False)
    limit_start(31)
    assert "timed out after 31.0 seconds" in str(WorkerGroupStartupTimeoutError(1))
    limit_start(99)  # What the user set stays.
    assert os.environ[name] == "31"
    assert name in constants.ENV_VARS_TO_PROPAGATE


def test_only_the_placement_groups_of_this_driver_are_removed(ray_session):
    groups = [placement_group([{"CPU": 0.1}]) for _ in range(2)]
    ray.get([group.ready() for group in groups])
    ids = [group.id.hex() for group in groups]
    assert all(one.endswith(ray.get_runtime_context().get_job_id()) for one in ids)
    remove_own_placement_groups()
    table = placement_group_table()
    assert [table[one]["state"] for one in ids] == ["REMOVED"] * 2


def test_ray_reads_its_settings_by_these_names():
    """Ray declares no setting of its core to Python, so the names are looked for in the program that reads them.

    Its core puts RAY_ before the names of settings in small letters.
    """
    usage, *of_core = DEFAULTS
    assert usage == usage_constants.USAGE_STATS_ENABLED_ENV_VAR
    raylet = (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").read_bytes()
    idle_workers, log_level = of_core
    assert idle_workers.removeprefix("RAY_").encode() in raylet
    assert log_level.encode() in raylet


def refuse(table: pa.Table) -> pa.Table:
    """Raise as a stage of camlake's does."""
    raise UsageError("--model: no such network")


def test_an_error_of_a_stage_on_ray_data_comes_back_as_itself(ray_session):
    images = ray.data.from_arrow(pa.table({"id": [1]})).map_batches(refuse, batch_format="pyarrow")
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        images.materialize()
    problem = in_one_line(caught.value)
    assert (type(problem), str(problem)) == (UsageError, "--model: no such network")
