"""``camlake train``: real runs of Ray Train on small scenes, killed, resumed, on two processes, and what they leave."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.console import Screen
from jobs.train import labelled_images, learn, run
from pipeline.graph.resources import Machine
from pipeline.graph.training import plan_layout
from pipeline.images.drawings import CLASSES
from pipeline.images.scenes import render_scene
from pipeline.models.checkpoint import read_checkpoint
from schemas.errors import ModelError, RejectedShareError, UsageError
from schemas.training import TrainConfig
from tests.jobs_on import ROOT, command, run_annotate

SMALL = {"model": "alexnet_gap", "weights": "none", "width": 0.125, "image_size": 64, "precision": "fp32"}
LABELS = ("bicycle", "butterfly", "fish")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of 24 scenes in three classes, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(24):
        scene = render_scene(np.random.default_rng((0, index)), index % 3, (56, 72))
        path = folder / CLASSES[scene.label] / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(scene.pixels, cv2.COLOR_RGB2BGR))
    (folder / CLASSES[0] / "broken.jpg").write_bytes(b"no picture")
    return folder


def config(input_, out, **options):
    defaults = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "max_rejected": 1.0, **SMALL}
    return TrainConfig.resolve({"input": str(input_), "out": str(out), **defaults, **options})


def train(input_, out, **options):
    resolved = config(input_, out, **options)
    return learn(resolved, *labelled_images(resolved, Screen()), Screen())


def weights(out, name="last"):
    return read_checkpoint(str(Path(out) / f"{name}.safetensors"))


EPOCHS = 5
COURSE = {"epochs": EPOCHS, "val_share": 0.25, "schedule": "paper", "lr": 0.01}


@pytest.fixture(scope="module")
def whole(ray_session, scenes, tmp_path_factory):
    """The output of a training on one process, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train(scenes, out, **COURSE)
    return out


def curve(out, name):
    return [json.loads(line)[name] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_what_a_training_leaves(whole):
    card = weights(whole).card
    assert card.labels == LABELS
    assert (card.architecture.name, card.architecture.width) == ("alexnet_gap", 0.125)
    assert card.preprocessing.image_size == 64
    assert card.facts["configuration"]["epochs"] == EPOCHS
    assert len(card.facts["data"]["train_sha256"]) == 64
    assert curve(whole, "epoch") == list(range(1, EPOCHS + 1))
    assert card.facts["metrics"]["val_loss"] == curve(whole, "val_loss")[-1]
    best = weights(whole, "best").card.facts["metrics"]
    assert best["val_top1"] == max(curve(whole, "val_top1"))
    assert len(set(curve(whole, "train_loss"))) == EPOCHS, "every epoch changes the weights"
    assert curve(whole, "rejected") == [1.0] * EPOCHS
    rejected = json.loads((whole / "rejected.jsonl").read_text())
    assert (Path(rejected["uri"]).name, rejected["reason_code"]) == ("broken.jpg", "not_an_image")
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_is_all_that_annotate_needs(whole, scenes, tmp_path):
    counts = run_annotate(scenes, tmp_path / "tables", model=None, weights=str(whole / "best.safetensors")).counts
    assert (counts.annotated, counts.rejected) == (24, 1)


def test_the_same_command_again(whole, scenes, capsys):
    run(config(scenes, whole, **COURSE), Screen())
    said = capsys.readouterr()
    assert "has ended already" in said.err
    assert f"--weights {whole}/best.safetensors" in said.out
    with pytest.raises(UsageError, match=r"--lr: the training in .* has 0.01, not 0.1"):
        train(scenes, whole, **{**COURSE, "lr": 0.1})
    with pytest.raises(RejectedShareError, match=r"1 of 25 images could not be used"):
        run(config(scenes, whole, **COURSE, max_rejected=0.01), Screen())


def test_a_killed_training_goes_on_to_the_same_weights(whole, scenes, tmp_path):
    killed = tmp_path / "killed"
    flags = {**SMALL, **COURSE, "batch_size": 8}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    kill_after_an_epoch(command("train", scenes, "--out", killed, *words), killed)
    assert 1 <= len(curve(killed, "epoch")) < EPOCHS
    train(scenes, killed, **COURSE)
    assert curve(killed, "epoch") == list(range(1, EPOCHS + 1))
    # The killed process had another number of threads, and its sums another order.
    for name in ("train_loss", "val_loss"):
        assert curve(killed, name) == pytest.approx(curve(whole, name), rel=1e-4)
    one, other = weights(whole).state, weights(killed).state
    assert all(np.allclose(one[name], other[name], atol=1e-4) for name in one)


def kill_after_an_epoch(words, out):
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (out / "resume.pt").exists():
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_two_processes_follow_the_curve_of_one_with_twice_the_batch(whole, scenes, tmp_path):
    two = tmp_path / "two"
    train(scenes, two, workers=2, **COURSE)
    for name in ("train_loss", "val_loss", "train_top1", "val_top1"):
        assert curve(two, name) == pytest.approx(curve(whole, name), rel=1e-4)


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
    card = weights(tmp_path / "out").card
    assert (card.multi_label, card.labels) == (True, ("bicycle", "butterfly", "drawing", "fish"))


def test_where_it_runs(tmp_path):
    def layout(machine, **options):
        return plan_layout(config("in", tmp_path, **options), machine)

    alone = layout(Machine(4.0, 0.0, 2))
    assert (alone.workers, alone.cuda, alone.worker_cpus, alone.threads, alone.task_cpus) == (1, False, 1.0, 2, 1.0)
    small = layout(Machine(1.0, 0.0, 1), workers=2)
    assert 2 * small.worker_cpus + small.task_cpus <= 1
    gpus = layout(Machine(32.0, 4.0, None))
    assert (gpus.workers, gpus.cuda, gpus.feed_cpus) == (4, True, 7.0)
    with pytest.raises(UsageError, match="--batch-size 8: allowed: multiples of 3"):
        layout(Machine(4.0, 0.0, 2), workers=3)
    with pytest.raises(UsageError, match="--device cuda"):
        layout(Machine(4.0, 0.0, 2), device="cuda")
    with pytest.raises(UsageError, match="has 1 GPUs"):
        layout(Machine(4.0, 1.0, 2), workers=2)


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
