"""A job for GPUs on a cluster that has none yet: it waits where an autoscaler brings one, and is refused elsewhere."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.autoscaler.v2 import sdk
from ray.autoscaler.v2.schema import ClusterStatus
from ray.exceptions import RpcError, RuntimeEnvSetupError
from ray.experimental import internal_kv

from pipeline.annotate.resources import Machine
from pipeline.graph import autoscaler_private, scale_from_zero
from pipeline.graph.autoscaler_private import is_launching
from pipeline.graph.scale_from_zero import with_gpus
from schemas.errors import CamlakeError, UsageError
from tests.jobs_on import ROOT
from tests.ray_clusters import autoscaling_cluster

COLD = Machine(cpus=1.0, gpus=0.0, cores=None)
WARM = {"CPU": 32.0, "GPU": 1.0}
NEVER = 10**6


class FakeCluster:
    """A cluster whose first GPU comes after ``comes_s``; its autoscaler is at work from ``begins_s`` to ``ends_s``."""

    def __init__(self, monkeypatch, comes_s, begins_s=2, ends_s=NEVER):
        self.now_s, self.asked, self.cancelled = 0.0, [], []
        self.comes_s, self.begins_s, self.ends_s = comes_s, begins_s, ends_s
        self.looks, self.failing_looks, self.failure, self.resources = 0, 0, None, WARM
        names = ("wait", "get", "cancel", "cluster_resources")
        monkeypatch.setattr(scale_from_zero, "ray", SimpleNamespace(**{name: getattr(self, name) for name in names}))
        monkeypatch.setattr(scale_from_zero, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(scale_from_zero, "is_launching", self.is_launching)
        monkeypatch.setattr(scale_from_zero, "_need_gpu", SimpleNamespace(options=self.options))

    def options(self, num_gpus):
        self.asked.append(num_gpus)
        return SimpleNamespace(remote=lambda: "task")

    def wait(self, tasks, timeout):
        self.now_s += timeout
        return (tasks, []) if self.now_s >= self.comes_s else ([], tasks)

    def get(self, task):
        if self.failure:
            raise self.failure

    def is_launching(self):
        self.looks += 1
        if self.looks <= self.failing_looks:
            self.now_s += 60  # as long as Ray waits for a head that starts again
            raise RpcError("the head does not answer")
        return self.begins_s <= self.now_s < self.ends_s

    def cancel(self, task):
        self.cancelled.append(task)

    def cluster_resources(self):
        return self.resources


def test_a_job_waits_for_the_first_gpu_and_says_so(monkeypatch):
    cluster, said = FakeCluster(monkeypatch, comes_s=150), []
    assert with_gpus(COLD, "cuda", 0.5, said.append) == Machine(32.0, 1.0, None)
    assert (cluster.asked, cluster.cancelled) == ([0.5], []), "Ray dies of the cancellation of a task that just ended"
    assert said == [
        "this cluster has no GPU yet; asking its autoscaler for one",
        "waiting for a GPU for 1 min",
        "waiting for a GPU for 2 min",
        "a GPU is there after 150 s",
    ]


@pytest.mark.parametrize("ends_s", [2, 40])
def test_a_cluster_that_brings_none_is_refused_soon(monkeypatch, ends_s):
    cluster = FakeCluster(monkeypatch, comes_s=NEVER, ends_s=ends_s)
    with pytest.raises(UsageError, match="no GPU, and no autoscaler brings one; allowed here: cpu, auto"):
        with_gpus(COLD, "cuda", 1.0, lambda text: None)
    assert cluster.cancelled == ["task"]
    assert cluster.now_s == pytest.approx(ends_s + scale_from_zero.NOTHING_COMES_AFTER_S, abs=3)


def test_a_cloud_that_is_sold_out_is_not_waited_for_without_end(monkeypatch):
    cluster = FakeCluster(monkeypatch, comes_s=NEVER)
    with pytest.raises(CamlakeError, match="brought no GPU in 30 minutes") as raised:
        with_gpus(COLD, "cuda", 1.0, lambda text: None)
    assert raised.value.exit_status == 1, "the next start may find one"
    assert cluster.cancelled == ["task"]


def test_a_look_that_fails_is_no_news(monkeypatch):
    cluster = FakeCluster(monkeypatch, comes_s=200, begins_s=130)
    cluster.failing_looks = 2
    assert with_gpus(COLD, "cuda", 1.0, lambda text: None).gpus == 1
    assert cluster.looks > 2


def test_a_task_that_fails_is_no_gpu(monkeypatch):
    cluster = FakeCluster(monkeypatch, comes_s=5)
    cluster.failure = RuntimeEnvSetupError("no such package\nsecond line")
    with pytest.raises(CamlakeError, match=r"^RuntimeEnvSetupError: ") as raised:
        with_gpus(COLD, "cuda", 1.0, lambda text: None)
    assert "\n" not in str(raised.value)
    assert cluster.cancelled == [], "it has ended"


def test_a_gpu_that_went_away_again_is_no_gpu(monkeypatch):
    FakeCluster(monkeypatch, comes_s=5).resources = {"CPU": 1.0}
    with pytest.raises(CamlakeError, match="came and went away again"):
        with_gpus(COLD, "cuda", 1.0, lambda text: None)


@pytest.mark.parametrize(
    ("machine", "device"), [(COLD, "auto"), (COLD, "cpu"), (Machine(32, 1, None), "cuda"), (Machine(4, 0, 2), "cuda")]
)
def test_nothing_is_waited_for_elsewhere(monkeypatch, machine, device):
    """Where the CPU will do, where a GPU is there, and on a Ray that was started here."""
    cluster = FakeCluster(monkeypatch, comes_s=0)
    assert with_gpus(machine, device, 1.0, pytest.fail) is machine
    assert cluster.asked == []


SOLD_OUT = {"node_availabilities": {"gpu": {"is_available": False}}}


@pytest.mark.parametrize(
    ("report", "launching"),
    [
        ({}, False),
        ({"pending_launches": {}, "pending_nodes": [], "failed_nodes": []}, False),
        ({"pending_launches": {"gpu": 1}, "pending_nodes": []}, True),
        ({"pending_launches": {}, "pending_nodes": [["192.0.2.1", "gpu", "setting-up"]]}, True),
        ({"pending_launches": {}, "pending_nodes": [], "node_availability_summary": SOLD_OUT}, True),
    ],
)
def test_the_first_autoscaler_s_report(monkeypatch, report, launching):
    kept = json.dumps({"autoscaler_report": report})
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda name: kept)
    assert is_launching() is launching


@pytest.mark.parametrize("busy", ["pending_launches", "pending_nodes", "failed_launches", None])
def test_the_second_autoscaler_s_status(monkeypatch, busy):
    status = ClusterStatus(**({busy: ["a node"]} if busy else {}))
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda name: None)
    monkeypatch.setattr(sdk, "get_cluster_status", lambda address: status)
    monkeypatch.setattr(autoscaler_private.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    assert is_launching() is (busy is not None)


SCRIPT = """
import sys, time
import ray
from pipeline.graph import scale_from_zero
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.scale_from_zero import with_gpus
from schemas.errors import UsageError

def say(text):
    print(text, file=sys.__stdout__, flush=True)

with ray_cluster(sys.argv[1]) as machine:
    say(f"at first {machine.gpus:g} GPUs")
    scale_from_zero.NOTHING_COMES_AFTER_S = 5
    try:
        with_gpus(machine, "cuda", 2.0, say)  # no node has so many
    except UsageError as error:
        say(error)
    scale_from_zero.NOTHING_COMES_AFTER_S = 30
    say(f"then {with_gpus(machine, 'cuda', 1.0, say).gpus:g} GPU")
    until = time.monotonic() + 60
    while ray.cluster_resources().get("GPU") and time.monotonic() < until:
        time.sleep(0.2)
    say(f"at last {ray.cluster_resources().get('GPU', 0):g} GPUs")
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_real_autoscaler_brings_a_gpu_node_and_takes_it_away():
    """Ray's autoscaler with its fake provider: it starts Ray nodes on this machine that claim to have a GPU."""
    gpu = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1}
    with (
        tempfile.TemporaryDirectory(prefix="zero", dir="/tmp", ignore_cleanup_errors=True) as folder,
        autoscaling_cluster(Path(folder), {"gpu": gpu}, idle_minutes=0.05) as address,
    ):
        command = [sys.executable, "-c", SCRIPT, address]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    asking = "this cluster has no GPU yet; asking its autoscaler for one"
    refused = "--device cuda: this Ray cluster has no GPU, and no autoscaler brings one; allowed here: cpu, auto"
    assert said[:4] == ["at first 0 GPUs", asking, refused, asking]
    assert said[4].startswith("a GPU is there after ")
    assert said[5:] == ["then 1 GPU", "at last 0 GPUs"]
