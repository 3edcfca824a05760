"""cluster.yaml: Ray accepts it, EC2 would accept its machines, and they offer what the cluster's job file asks for."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from botocore.validate import validate_parameters
from jsonschema import ValidationError
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.annotate.resources import Compute, Machine, plan_compute
from schemas.options.annotate import AnnotateConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


@pytest.fixture(scope="module")
def node_types(cluster: dict[str, Any]) -> dict[str, Any]:
    types: dict[str, Any] = prepare_config(copy.deepcopy(cluster))["available_node_types"]
    return types


@pytest.fixture(scope="module")
def job() -> AnnotateConfig:
    return AnnotateConfig.resolve(yaml.safe_load((ROOT / "jobs/annotate-cluster.yaml").read_text()))


def compute_at_start(job: AnnotateConfig, node_types: dict[str, Any]) -> Compute:
    """Return camlake's plan on the cluster when the first GPU worker, for which the job waits, has come."""
    amount = node_types["gpu_worker"]["resources"]
    return plan_compute(job, Machine(amount["CPU"], amount["GPU"], None))


def check_machine(node_config: dict[str, Any]) -> None:
    """Raise ParamValidationError where EC2's RunInstances would not understand a node's configuration."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    validate_parameters({**node_config, "MinCount": 1, "MaxCount": 1}, shape)


def test_ray_validates_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_refuses_a_misspelled_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config({**copy.deepcopy(cluster), "max_worker": 3}))


def test_ec2_understands_every_machine(node_types: dict[str, Any]) -> None:
    for node in node_types.values():
        check_machine(node["node_config"])


def test_a_misspelled_machine_is_found(node_types: dict[str, Any]) -> None:
    with pytest.raises(ParamValidationError, match="InstanceKind"):
        check_machine({**node_types["head"]["node_config"], "InstanceKind": "m7i.xlarge"})


def test_the_head_has_no_gpu_and_runs_no_tasks(node_types: dict[str, Any], cluster: dict[str, Any]) -> None:
    head = node_types[cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_gpu_workers_are_spot_and_grow(node_types: dict[str, Any]) -> None:
    node = node_types["gpu_worker"]
    assert node["resources"]["GPU"] == 1
    assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert node["min_workers"] < node["max_workers"]


def test_decode_workers_are_optional_and_have_no_gpu(node_types: dict[str, Any]) -> None:
    node = node_types["decode_worker"]
    assert node["min_workers"] == 0
    assert "GPU" not in node["resources"]


def test_every_machine_reaches_the_buckets(node_types: dict[str, Any]) -> None:
    assert all("IamInstanceProfile" in node["node_config"] for node in node_types.values())


def test_the_job_finds_its_gpu_at_the_start(job: AnnotateConfig, node_types: dict[str, Any]) -> None:
    assert compute_at_start(job, node_types).runtime.device == "cuda"


def test_no_worker_idles_between_the_runs(node_types: dict[str, Any]) -> None:
    assert [node["min_workers"] for node in node_types.values()] == [0, 0, 0]


def test_an_actor_fits_on_a_gpu_worker(job: AnnotateConfig, node_types: dict[str, Any]) -> None:
    compute, offered = compute_at_start(job, node_types), node_types["gpu_worker"]["resources"]
    assert 0 < compute.gpus_per_actor <= offered["GPU"]
    assert 0 < compute.actor_cpus <= offered["CPU"]


def test_decoding_fits_on_a_decode_worker(job: AnnotateConfig, node_types: dict[str, Any]) -> None:
    compute, offered = compute_at_start(job, node_types), node_types["decode_worker"]["resources"]
    assert compute.decode == "remote"
    assert 0 < compute.read_cpus + compute.decode_cpus <= offered["CPU"]


def test_the_pool_can_use_every_gpu_worker(job: AnnotateConfig, node_types: dict[str, Any]) -> None:
    compute, node = compute_at_start(job, node_types), node_types["gpu_worker"]
    assert compute.actors[1] * compute.gpus_per_actor == node["max_workers"] * node["resources"]["GPU"]


def test_all_nodes_run_a_ray_that_camlake_accepts(cluster: dict[str, Any]) -> None:
    pinned = next(
        Requirement(word.strip("'")) for line in cluster["setup_commands"] for word in line.split() if "ray[" in word
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = next(Requirement(line) for line in project["dependencies"] if line.startswith("ray["))
    (version,) = pinned.specifier
    assert version.operator == "=="
    assert ours.specifier.contains(version.version)
    assert pinned.extras == ours.extras


def test_the_working_copy_is_what_gets_installed(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"] == {"/home/ubuntu/camlake": "."}
    assert any("pip install" in line and " ~/camlake " in line for line in cluster["setup_commands"])
