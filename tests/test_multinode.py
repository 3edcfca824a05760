"""The job on a real Ray cluster of several nodes on this machine, one of which dies at work."""

import subprocess
import sys

import pytest

from pipeline import camlake
from pipeline.images.scenes import write_corpus
from pipeline.storage.filesystems import connect
from pipeline.storage.verify import verify
from schemas.config import StorageConfig
from tests.jobs_on import ROOT

SCRIPT = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from jobs.annotate import annotate
from jobs.console import Screen
from schemas.config import AnnotateConfig

images, out, kill = sys.argv[1], sys.argv[2], sys.argv[3] == "kill"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
workers = [cluster.add_node(num_cpus=2, object_store_memory=2**27) for _ in range(2)]
cluster.wait_for_nodes()

def kill_a_node():
    while not list(Path(out).glob("_runs/*/commits/*.json")):
        time.sleep(0.05)
    cluster.remove_node(workers[0], allow_graceful=False)
    print("killed", flush=True)

if kill:
    threading.Thread(target=kill_a_node, daemon=True).start()
config = AnnotateConfig(
    input=images, out=out, model="camlake_demo", topk=2, batch_size=4, images_per_commit=8, actors="2:3",
    decode="remote", address=cluster.address,
)
print(annotate(config, Screen()).counts.annotated, flush=True)
"""


@pytest.mark.parametrize("mode", ["whole", "kill"])
def test_every_image_is_annotated_once(mode, tmp_path):
    write_corpus(tmp_path, 120, seed=8, size_hw=(48, 64), broken=0)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "images"), str(out), mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("killed" in done.stdout.splitlines()) == (mode == "kill")
    assert done.stdout.splitlines()[-1] == "120"
    assert verify(*connect(str(out), StorageConfig())).problems == ()
    with camlake.open(str(out)) as lake:
        assert len(lake.arrow("images")) == 120
