"""Annotation and training on a real Ray cluster of several nodes on this machine, one of which dies at work."""

import subprocess
import sys

import pytest

from pipeline import camlake
from pipeline.images.scenes import write_corpus
from pipeline.storage.filesystems import connect
from pipeline.storage.verify import verify
from schemas.config import StorageConfig
from tests.jobs_on import ROOT
from tests.training import Output

N_IMAGES = 120
SCRIPT = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from jobs.annotate import annotate
from jobs.console import Screen
from pipeline.graph.board import start_board
from tests.training import train
from schemas.annotate import AnnotateConfig

folder, trained, endpoint = Path(sys.argv[1]), *sys.argv[2:]
# A node that answers nothing is given up after 5 looks, here 5 s; Ray's own 3 s between them are for real networks.
looks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
head = {"num_cpus": 1, "object_store_memory": 2**27, "_system_config": looks}
cluster = Cluster(initialize_head=True, head_node_args=head)
workers = [cluster.add_node(num_cpus=2, object_store_memory=2**27) for _ in range(2)]
cluster.wait_for_nodes()

def kill_a_node():
    while not list(folder.glob("kill/_runs/*/commits/*.json")):
        time.sleep(0.05)
    cluster.remove_node(workers[0], allow_graceful=False)
    print("killed", flush=True)

def where_it_is(_):
    return ray.get_runtime_context().get_node_id()

def wait_until_free():
    ray.init(address=cluster.address, log_to_driver=False)
    boards = [start_board() for _ in range(3)]  # One alone might be where it should by chance.
    assert set(ray.get([board.__ray_call__.remote(where_it_is) for board in boards])) == {where_it_is(None)}
    [ray.kill(board) for board in boards]
    while ray.available_resources().get("CPU") != 5:
        time.sleep(0.1)
    ray.shutdown()

def annotated(mode):
    config = AnnotateConfig(
        input=str(folder / "images"), out=str(folder / mode), model="camlake_demo", topk=2, batch_size=4,
        images_per_commit=8, actors="2:3", decode="remote", address=cluster.address,
    )
    print(mode, annotate(config, Screen()).counts.annotated, flush=True)

annotated("whole")
wait_until_free()
where = {"address": cluster.address, "endpoint_url": endpoint}
train(folder / "train.csv", trained, workers=2, val_share=0.25, **where)
wait_until_free()
threading.Thread(target=kill_a_node, daemon=True).start()
annotated("kill")
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory, s3):
    """What the script did on one cluster: its folder, the training it left, and how it ended."""
    folder = tmp_path_factory.mktemp("multinode")
    truth = write_corpus(folder, N_IMAGES, seed=8, size_hw=(48, 64), broken=0)
    (folder / "train.csv").write_text(truth.read_text().replace("file,", "uri,", 1))
    trained = Output(f"s3://{s3.bucket()}/trained", s3.storage)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), trained.url, s3.endpoint_url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return folder, trained, process


@pytest.mark.parametrize("mode", ["whole", "kill"])
def test_every_image_is_annotated_once(mode, done):
    """Two nodes work at first and one is left in the end."""
    folder, _, process = done
    said = process.stdout.splitlines()
    assert f"{mode} {N_IMAGES}" in said, process.stderr
    assert ("killed" in said[: said.index(f"{mode} {N_IMAGES}")]) == (mode == "kill")
    out = str(folder / mode)
    assert verify(*connect(out, StorageConfig())).problems == ()
    with camlake.open(out) as lake:
        assert len(lake.arrow("images")) == N_IMAGES


def test_two_processes_on_two_nodes_train_for_an_object_store(done):
    """With the images that were annotated, on the whole cluster."""
    _, trained, process = done
    assert process.returncode == 0, process.stderr
    epochs = [trained.curve(name) for name in ("epoch", "processes", "nodes", "rejected")]
    assert epochs == [[1, 2], [2, 2], [2, 2], [0, 0]]
    card = trained.weights().card
    assert (card.facts["data"]["train_images"] + card.facts["data"]["val_images"], len(card.labels)) == (N_IMAGES, 10)
