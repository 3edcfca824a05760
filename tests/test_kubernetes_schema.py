"""kubernetes.yaml against the schemas of Kubernetes and of KubeRay, and the Dockerfile that makes its image."""

import copy
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.kuberay import RAYJOB
from tests.test_job_files import kubernetes, rayjob

KUBERNETES = "1.34"


def pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pods of a RayJob's cluster as documents of Kubernetes."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}


def check(job: dict[str, Any]) -> None:
    Draft202012Validator(RAYJOB).validate(job)
    for pod in pods(job):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", ["ServiceAccount", "Role", "RoleBinding", "ConfigMap", "CronJob"])
def test_kubernetes_takes_each_document(kind: str) -> None:
    kubernetes_validate.validate(kubernetes()[kind], KUBERNETES, strict=True)


def test_kuberay_takes_the_job() -> None:
    check(rayjob())


def misspelled(job: dict[str, Any], way: str, name: str, value: Any) -> dict[str, Any]:
    """Return the job with a field set at a place such as ``spec/rayClusterSpec``."""
    changed = copy.deepcopy(job)
    at: Any = changed
    for step in way.split("/"):
        at = at[int(step) if step.isdigit() else step]
    at[name] = value
    return changed


@pytest.mark.parametrize(
    ("way", "name", "value"),
    [
        ("spec", "shutDownAfterJobFinishes", True),
        ("spec", "ttlSecondsAfterFinished", "600"),
        ("spec", "submissionMode", "SSHMode"),
        ("spec/rayClusterSpec", "workerGroupSpec", []),
        ("spec/rayClusterSpec/autoscalerOptions", "idleTimeoutSeconds", "5m"),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams", "num-cpus", 0),
        ("spec/rayClusterSpec/workerGroupSpecs/0", "minReplica", 1),
        ("spec/rayClusterSpec/workerGroupSpecs/0/template/spec", "serviceAccount_name", "x"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/containers/0", "volumeMount", []),
    ],
)
def test_a_misspelled_field_would_be_found(way: str, name: str, value: Any) -> None:
    with pytest.raises(
        (ValidationError, kubernetes_validate.ValidationError), match=name if value != 0 else "0 is not"
    ):
        check(misspelled(rayjob(), way, name, value))
