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

folder, out, kill, trained, endpoint = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "kill", *sys.argv[4:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
workers = [cluster.add_node(num_cpus=2, object_store_memory=2**27) for _ in range(2)]
cluster.wait_for_nodes()

def kill_a_node():
    while not list(Path(out).glob("_runs/*/commits/*.json")):
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

if kill:
    threading.Thread(target=kill_a_node, daemon=True).start()
config = AnnotateConfig(
    input=str(folder / "images"), out=out, model="camlake_demo", topk=2, batch_size=4, images_per_commit=8,
    actors="2:3", decode="remote", address=cluster.address,
)
print(annotate(config, Screen()).counts.annotated, flush=True)
if not kill:
    wait_until_free()
    where = {"address": cluster.address, "endpoint_url": endpoint}
    train(folder / "train.csv", trained, workers=2, val_share=0.25, **where)
"""


@pytest.mark.parametrize("mode", ["whole", "kill"])
def test_every_image_is_annotated_once(mode, tmp_path, s3):
    """Afterwards two processes on two nodes of the whole cluster train with the same images, for an object store."""
    truth = write_corpus(tmp_path, 120, seed=8, size_hw=(48, 64), broken=0)
    (tmp_path / "train.csv").write_text(truth.read_text().replace("file,", "uri,", 1))
    out, trained = tmp_path / "out", Output(f"s3://{s3.bucket()}/trained", s3.storage)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(out), mode, trained.url, s3.endpoint_url],
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
    if mode == "whole":
        epochs = [trained.curve(name) for name in ("epoch", "processes", "nodes", "rejected")]
        assert epochs == [[1, 2], [2, 2], [2, 2], [0, 0]]
        card = trained.weights().card
        assert (card.facts["data"]["train_images"] + card.facts["data"]["val_images"], len(card.labels)) == (120, 10)
