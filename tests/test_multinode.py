"""Annotation and training on a real Ray cluster of several nodes on this machine, one of which dies at work."""

import subprocess
import sys

import pytest

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.options.config import StorageConfig
from tests.jobs_on import ROOT
from tests.training import Output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

N_IMAGES = 120
EPOCHS = 24
"""So many that the training outlasts the killing, which begins with the end of the first."""
SCRIPT = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from pipeline.graph.annotate.driver import annotate
from jobs.terminal.console import Screen
from pipeline.graph.train.train_progress import start_train_progress
from pipeline.storage.filesystems import connect
from tests.training import train
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig

folder, trained, endpoint, epochs = Path(sys.argv[1]), *sys.argv[2:]
# A node that answers nothing is given up after 5 looks, here 5 s; Ray's own 3 s between them are for real networks.
looks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
head = {"num_cpus": 1, "object_store_memory": 2**27, "_system_config": looks}
cluster = Cluster(initialize_head=True, head_node_args=head)
workers = [cluster.add_node(num_cpus=2, object_store_memory=2**27) for _ in range(2)]
cluster.wait_for_nodes()

def kill_a_node_when(at_work, name):
    def kill():
        while not at_work():
            time.sleep(0.05)
        cluster.remove_node(workers.pop(0), allow_graceful=False)
        print("killed", name, file=sys.__stdout__, flush=True)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread

def where_it_is(_):
    return ray.get_runtime_context().get_node_id()

def wait_until_free():
    ray.init(address=cluster.address, log_to_driver=False)
    actors = [start_train_progress() for _ in range(3)]  # One alone might be where it should by chance.
    assert set(ray.get([actor.__ray_call__.remote(where_it_is) for actor in actors])) == {where_it_is(None)}
    [ray.kill(actor) for actor in actors]
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
fs, root = connect(trained, StorageConfig(endpoint_url=endpoint))
killer = kill_a_node_when(lambda: fs.exists(f"{root}/resume.pt"), "training")
train(folder / "train.csv", trained, workers=2, val_share=0.25, epochs=int(epochs), **where)
killer.join()
workers.append(cluster.add_node(num_cpus=2, object_store_memory=2**27))
wait_until_free()
kill_a_node_when(lambda: list(folder.glob("kill/_runs/*/commits/*.json")), "kill")
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
        [sys.executable, "-c", SCRIPT, str(folder), trained.url, s3.endpoint_url, str(EPOCHS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    return folder, trained, process


@pytest.mark.parametrize("mode", ["whole", "kill"])
def test_every_image_is_annotated_once(mode, done):
    """By the actors of two nodes, and where one of the nodes is killed at work."""
    folder, _, process = done
    said = process.stdout.splitlines()
    assert f"{mode} {N_IMAGES}" in said, process.stderr
    assert (f"killed {mode}" in said) == (mode == "kill")
    out = str(folder / mode)
    assert verify(*connect(out, StorageConfig())).problems == ()
    with camlake.open(out) as lake:
        assert len(lake.arrow("images")) == N_IMAGES


def test_a_training_that_loses_a_node_goes_on_with_what_is_left(done):
    """Two processes on two nodes, with the images that were annotated, for an object store."""
    _, trained, process = done
    assert process.returncode == 0, process.stderr
    assert "killed training" in process.stdout.splitlines()
    assert "going on after epoch" in process.stderr
    assert trained.curve("epoch") == list(range(1, EPOCHS + 1))
    assert trained.curve("nodes")[0] == 2
    assert (set(trained.curve("processes")), set(trained.curve("rejected"))) == ({2}, {0})
    card = trained.weights().card
    assert (card.facts["data"]["train_images"] + card.facts["data"]["val_images"], len(card.labels)) == (N_IMAGES, 10)
