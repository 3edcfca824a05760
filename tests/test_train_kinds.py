"""Kinds of training on this machine: a head alone, several labels an image, where it runs, what is refused."""

import numpy as np
import pytest
import ray
import torch

from pipeline.annotate.resources import Machine
from pipeline.graph.train.checkpoints import TrainingFiles
from pipeline.graph.train.data_feed import Feed, PictureReader
from pipeline.graph.train.plan import first_weights, plan_workers
from pipeline.images.decode import DecodeLimits
from pipeline.images.resize import ResizePlan
from pipeline.models.learn.pretrained import load_pretrained
from pipeline.models.networks.architecture import Architecture
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.truth.labelled_images import read_labelled
from schemas.errors import LeaseError, ModelError, UsageError
from schemas.options.config import StorageConfig
from tests.training import N_SCENES, Output, config, train, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of 24 scenes in three classes, and a file that is no picture."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.mark.slow
def test_a_head_alone_learns_on_layers_that_stay_as_they_are(ray_session, scenes, tmp_path):
    demo = {"model": "camlake_demo", "weights": "DEFAULT", "width": 1.0}
    train(scenes, tmp_path / "out", **demo, train="head", epochs=10, lr=0.02, augment="none", val_share=0.0)
    out = Output(str(tmp_path / "out"))
    before, after = load_pretrained(Architecture("camlake_demo", classes=3)), out.weights().state
    assert set(before.new) == {"classifier.weight", "classifier.bias"}
    assert before.state.keys() == after.keys()
    assert any("running_mean" in name for name in after)
    for name, value in before.state.items():
        assert torch.equal(value, after[name]) == (name not in before.new), name
    losses = out.curve("train_loss")
    assert losses[-1] < 0.8 * losses[0]


def test_several_labels_an_image_and_an_early_end(ray_session, scenes, tmp_path):
    rows = ["uri,label"]
    rows += [f"{path},{path.parent.name}; drawing" for path in sorted(scenes.glob("*/*.png"))]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows) + "\n")
    done = train(table, tmp_path / "out", epochs=9, lr=1e-12, patience=1, val=str(table))
    assert len(done.history) < 9
    assert done.history[-1]["val_map"] >= 0.25
    with pytest.raises(ModelError, match="behind a ReLU"):
        train(table, tmp_path / "nin", model="nin")
    with pytest.raises(UsageError, match=r"--label-smoothing 0\.1: allowed: 0"):
        train(table, tmp_path / "smooth", label_smoothing=0.1)
    card = Output(str(tmp_path / "out")).weights().card
    assert (card.multi_label, card.labels) == (True, ("bicycle", "butterfly", "drawing", "fish"))


def test_where_it_runs(tmp_path):
    def workers_on(machine, **options):
        return plan_workers(config("in", tmp_path, **options), machine)

    alone = workers_on(Machine(4.0, 0.0, 2))
    assert (alone.workers, alone.cuda, alone.worker_cpus, alone.threads, alone.task_cpus) == (1, False, 1.0, 2, 1.0)
    small = workers_on(Machine(1.0, 0.0, 1), workers=2)
    assert 2 * small.worker_cpus + small.task_cpus <= 1
    gpus = workers_on(Machine(32.0, 4.0, None))
    assert (gpus.workers, gpus.cuda, gpus.feed_cpus) == (4, True, 7.0)
    with pytest.raises(UsageError, match="--batch-size 8: allowed: multiples of 3"):
        workers_on(Machine(4.0, 0.0, 2), workers=3)
    with pytest.raises(UsageError, match="--device cuda"):
        workers_on(Machine(4.0, 0.0, 2), device="cuda")
    with pytest.raises(UsageError, match=r"^--workers 2: this Ray cluster has 1 GPU; or --device cpu$"):
        workers_on(Machine(4.0, 1.0, 2), workers=2)


@ray.remote(num_cpus=3.5)
class Hog:
    def ready(self):
        return True


def test_pictures_come_where_no_machine_has_a_whole_cpu_left(ray_session, scenes):
    storage = StorageConfig()
    plan = read_labelled(str(scenes), storage).plan
    reader = PictureReader(storage, DecodeLimits(10**6, 10**6, 30.0), ResizePlan("squash", 32, (1, 1)))
    hog = Hog.remote()
    assert ray.get(hog.ready.remote())
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(plan)), 3))
    batches = list(Feed(reader, ray.put(plan), 0.25, 0.25).batches(order, 10))
    ray.kill(hog)
    parts = [order[start : start + 10].tolist() for start in range(0, len(order), 10)]
    broken = {number for number, uri in enumerate(plan["uri"].to_pylist()) if uri.endswith("broken.jpg")}
    assert [batch.numbers.tolist() for batch in batches] == [[n for n in part if n not in broken] for part in parts]
    assert {number for batch in batches for number in batch.rejected} == broken
    colours = {}
    for batch in batches:
        for number, pixels in zip(batch.numbers.tolist(), batch.pixels, strict=True):
            assert colours.setdefault(number, pixels.tobytes()) == pixels.tobytes()
    assert len(set(colours.values())) == N_SCENES


def test_a_process_writes_only_where_its_training_holds_the_output(tmp_path):
    files = TrainingFiles(str(tmp_path / "out"), StorageConfig(), {})
    with Lease.acquire(*connect(files.out, files.storage), new_run_id()) as lease:
        files.assert_held(lease.generation)
    with Lease.acquire(*connect(files.out, files.storage), new_run_id()) as newer:
        with pytest.raises(LeaseError, match="another run took this output over"):
            files.assert_held(lease.generation)
        files.assert_held(newer.generation)
        # On a machine that has a disk of its own under the same name.
        elsewhere = TrainingFiles(str(tmp_path / "elsewhere"), StorageConfig(), {})
        with pytest.raises(UsageError, match=r"--out .*elsewhere: .* does not see this training there; allowed on"):
            elsewhere.assert_held(newer.generation)


def test_mistakes_are_said_before_anything_starts(ray_session, scenes, tmp_path):
    (scenes / "empty.txt").write_text("bicycle\nbutterfly\nfish\nemu\n")
    with pytest.raises(UsageError, match="no image of 'emu'"):
        train(scenes, tmp_path / "a", labels=str(scenes / "empty.txt"))
    with pytest.raises(UsageError, match="lies in no class's folder"):
        train(scenes / "fish", tmp_path / "b")
    with pytest.raises(UsageError, match=r"--val-share 0\.3: allowed: without --val"):
        train(scenes, tmp_path / "a", val=str(scenes), val_share=0.3)
    with pytest.raises(UsageError, match="lies inside INPUT"):
        train(scenes, scenes / "out")
    with pytest.raises(UsageError, match="--train head: needs pretrained"):
        train(scenes, tmp_path / "c", train="head")
    with pytest.raises(ModelError, match="unknown network 'alexnet_gat'"):
        train(scenes, tmp_path / "d", model="alexnet_gat")
    for name, too_small, least in (("nin", 38, 39), ("alexnet", 62, 63)):
        small = rf"^--image-size {too_small} is too small for {name}, whose own is 224; allowed: {least} or more$"
        with pytest.raises(ModelError, match=small):
            train(scenes, tmp_path / name, model=name, image_size=too_small)
        first_weights(
            config(scenes, tmp_path, model=name, image_size=least), read_labelled(str(scenes), StorageConfig())
        )


class Reached(Exception):  # noqa: N818 - it is where the test ends, no mistake
    """Ray would start now."""


@pytest.mark.parametrize(("name", "head"), [("alexnet", "fc"), ("alexnet_gap", "gap")])
def test_what_is_trained_is_said_before_ray_starts(scenes, tmp_path, capsys, monkeypatch, name, head):
    def start(address):
        raise Reached

    monkeypatch.setattr("pipeline.graph.train.training.ray_cluster", start)
    with pytest.raises(Reached):
        train(scenes, tmp_path / "out", model=name)
    assert f"{name} ({head}, width 0.125, 3 classes) from none; starting Ray" in capsys.readouterr().err
