"""Clusters of Ray that a test starts and ends beside those of other tests: by a folder of their own, on free ports.

``ray stop`` would end every Ray of the machine.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def processes_of(folder: Path) -> list[psutil.Process]:
    """The processes of a cluster whose temporary folder is ``folder``/ray: all of them are told where it lies."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(f"{folder}/ray/" in word for word in process.cmdline()):
                found.append(process)
    return found


def end_processes_of(folder: Path) -> None:
    for process in processes_of(folder):
        with suppress(psutil.Error):
            process.kill()


@contextmanager
def autoscaling_cluster(folder: Path, node_types: Mapping[str, Any], *, idle_minutes: float) -> Iterator[str]:
    """Start a head without a CPU, whose autoscaler starts nodes of ``node_types`` on this machine; yield its address.

    The path of ``folder`` is short, because sockets lie in it. Ray's own ``AutoscalingCluster`` ends every Ray of the
    machine, and wants a file that Ray's wheel lacks.
    """
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "fake",
        "max_workers": 4,
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 1,
        "provider": {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, **node_types},
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
    config |= {name: [] for name in (*lists, "rsync_exclude", "rsync_filter")}
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
    options = ["--head", "--block", "--num-cpus=0", f"--port={port}", "--node-ip-address=127.0.0.1"]
    options += ["--include-dashboard=false", "--object-store-memory=100000000", f"--temp-dir={folder}/ray"]
    options += [f"--autoscaling-config={folder}/cluster.yaml"]
    environment = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment["RAY_AUTH_MODE"] = "disabled"  # else a head takes the token that some Ray left in the home folder
    command = [*RAY, "start", *options]
    process = _started(command, environment, folder) or _started(command, environment, folder)
    assert process is not None, (folder / "head.log").read_text()
    try:
        yield address
    finally:
        process.kill()
        process.wait()
        end_processes_of(folder)


def _started(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes] | None:
    """Start a head; None where it takes longer than Ray's 30 s, as on a machine that others keep busy."""
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    while process.poll() is None:
        if "Ray runtime started" in (folder / "head.log").read_text():
            return process
        time.sleep(0.1)
    end_processes_of(folder)
    return None
