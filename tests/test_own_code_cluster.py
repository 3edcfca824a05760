"""A network of the user's own code on a real Ray cluster of two nodes, to which its package travels with the job."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from pipeline.outputs import reader as camlake
from tests.jobs_on import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

N_IMAGES = 32
NETS = """
import json, os
from pathlib import Path
import ray
import torch
from torch import nn

if ray.is_initialized():
    seen = {"node": ray.get_runtime_context().get_node_id(), "file": __file__}
    Path(LOG, f"{os.getpid()}.json").write_text(json.dumps(seen))


class Net(nn.Module):
    pretrained_cfg = {"input_size": (3, 32, 32)}

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 3)

    def forward(self, images):
        return self.fc(self.body(images).mean((2, 3)))
"""
SCRIPT = """
import subprocess, sys, time
from ray.cluster_utils import Cluster
from tests.ray_clusters import free_ports

package, *words = sys.argv[1:]
port, *agents = free_ports(3)  # The agents for jobs would all take one port, which another Ray here may hold.
node = {"num_cpus": 2, "object_store_memory": 2**27}
head = node | {"include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": agents[0]}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(**node, dashboard_agent_listen_port=agents[1])
cluster.wait_for_nodes()
submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", f"http://127.0.0.1:{port}"]
command = [*submit, "--working-dir", package, "--", sys.executable, "-m", "jobs.annotate", *words]
for _ in range(60):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "No available agent" not in done.stdout + done.stderr:  # Ray's agent comes up after the nodes.
        break
    time.sleep(1)
print(done.stdout, done.stderr)
cluster.shutdown()
sys.exit(done.returncode)
"""


def test_the_users_package_travels_to_both_nodes(tmp_path):
    """Only ``ray job submit --working-dir`` brings it: its folder is on no import path."""
    images, log, package = tmp_path / "in", tmp_path / "log", tmp_path / "code" / "shop"
    for folder in (images, log, package):
        folder.mkdir(parents=True)
    for number in range(N_IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        cv2.imwrite(str(images / f"{number}.png"), noise)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(f"LOG = {str(log)!r}\n{NETS}")
    out = str(tmp_path / "out")
    options = ["--model", "shop.nets:Net", "--labels", str(tmp_path / "names.txt"), "--actors", "2"]
    options += ["--batch-size", "4", "--images-per-commit", "8", "--foreground", "off", "--topk", "2"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(package.parent), str(images), "--out", out, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with camlake.open(out) as lake:
        assert lake.sql("SELECT count(*), count(DISTINCT image_id) FROM heatmaps").fetchall() == [
            (2 * N_IMAGES, N_IMAGES)
        ]
    seen = [json.loads(file.read_text()) for file in log.iterdir()]
    assert len({one["node"] for one in seen}) == 2
    assert not [one["file"] for one in seen if one["file"].startswith(str(tmp_path))]
