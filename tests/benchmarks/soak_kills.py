"""Who dies in a soak: the command itself, its processes, a node of the cluster; and how a command is stopped."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import psutil
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

from schemas.errors import CamlakeError

Engine = Literal["local", "ray"]
KINDS: dict[Engine, tuple[str, ...]] = {
    "local": ("driver", "worker", "SIGTERM", "SIGINT"),
    "ray": ("driver", "actor", "task", "node", "SIGTERM", "SIGINT"),
}
ENDING = {"driver", "SIGTERM", "SIGINT"}
"""The kinds after which the command has ended."""
_SPARED = ("ray::IDLE", "ray::ProgressActor", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Processes that do no work of a run; a node ends with its agents, and the driver with the node that it is on."""
_STARTS_WITH = {"actor": "ray::MapWorker", "task": "ray::"}
_WITHIN_S = 5.0
_NODE = {"num_cpus": 2, "object_store_memory": 2**27}


class Nodes:
    """A Ray cluster of two nodes on this machine, one of which can die and is replaced."""

    def __init__(self) -> None:
        looks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000}
        self._cluster = Cluster(initialize_head=True, head_node_args=_NODE | {"_system_config": looks})
        self._second = self._cluster.add_node(**_NODE)
        self.address: str = self._cluster.address

    def kill_one(self) -> None:
        """Kill all processes of the second node, and start another one in its place."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(**_NODE)

    @property
    def second_id(self) -> str:
        """Return Ray's name of the second node."""
        return str(self._second.node_id)

    @property
    def raylet(self) -> psutil.Process:
        """Return the process that leads the second node."""
        return psutil.Process(self._second.all_processes["raylet"][0].process.pid)

    @property
    def second_lives(self) -> bool:
        """Return whether Ray counts the second node as alive."""
        known = self._cluster.global_state.node_table()
        return any(one["NodeID"] == self.second_id and one["Alive"] for one in known)

    @property
    def second_drains(self) -> bool:
        """Return whether Ray starts no more work on the second node, or whether that has gone without work already."""
        return not self.second_lives or self.second_id in GcsClient(address=self.address).get_draining_nodes(timeout=10)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that the nodes started for work."""
        nodes = [self._cluster.head_node, self._second]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        return [child for pid in raylets for child in psutil.Process(pid).children()]

    def shutdown(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """Run a cluster during the block."""
    started = Nodes()
    try:
        yield started
    finally:
        started.shutdown()


def kill(kind: str, command: subprocess.Popen[str], cluster: Nodes | None, generator: random.Random) -> bool:
    """Kill what ``kind`` names; return whether there was something to kill."""
    if kind == "driver":
        command.kill()
    elif kind in {"SIGTERM", "SIGINT"}:
        command.send_signal(getattr(signal, kind))
    elif kind == "node":
        _of(cluster).kill_one()
    else:
        return _kill_process(kind, command, cluster, generator)
    return True


def _kill_process(kind: str, command: subprocess.Popen[str], cluster: Nodes | None, generator: random.Random) -> bool:
    until_s = time.monotonic() + _WITHIN_S
    while time.monotonic() < until_s and command.poll() is None:
        with suppress(psutil.NoSuchProcess):
            if kind == "worker":
                victims = _local_workers(command.pid)
            else:
                victims = [one for one in _of(cluster).workers() if _is(one, kind)]
            if victims:
                os.kill(generator.choice(victims).pid, signal.SIGKILL)
                return True
        time.sleep(0.01)
    return False


def _local_workers(pid: int) -> list[psutil.Process]:
    """Return the workers of the local engine: the children of the server, a child of the command."""
    return [worker for server in psutil.Process(pid).children() for worker in server.children()]


def _is(process: psutil.Process, kind: str) -> bool:
    name = " ".join(process.cmdline())
    is_actor = name.startswith(_STARTS_WITH["actor"])
    return name.startswith(_STARTS_WITH[kind]) and not name.startswith(_SPARED) and is_actor == (kind == "actor")


def _of(cluster: Nodes | None) -> Nodes:
    if cluster is None:
        raise CamlakeError("nodes and actors die on Ray only")
    return cluster
