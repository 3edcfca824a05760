"""``camlake train`` from bucket to bucket: real runs, what they leave, killed and resumed, on two processes."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.terminal.console import Screen
from jobs.train import run
from schemas.errors import RejectedShareError, UsageError
from tests.jobs_on import command, run_annotate
from tests.killing import kill_when
from tests.training import LABELS, SMALL, Output, config, train, write_scenes

EPOCHS = 12
COURSE = {"epochs": EPOCHS, "val_share": 0.25, "schedule": "paper", "lr": 0.01}


@pytest.fixture(scope="module")
def scenes(s3, tmp_path_factory):
    """A bucket with 24 scenes in three classes, and an object that is no picture.

    It has always the same name: names decide which images validate, and the order of the others.
    """
    folder, bucket = write_scenes(tmp_path_factory.mktemp("scenes")), "camlake-scenes"
    s3.client.create_bucket(Bucket=bucket)
    for path in folder.glob("*/*"):
        s3.client.put_object(Bucket=bucket, Key=f"in/{path.relative_to(folder)}", Body=path.read_bytes())
    return f"s3://{bucket}/in"


@pytest.fixture
def course(s3):
    """The options of the training that all tests here are about."""
    return {**COURSE, "endpoint_url": s3.endpoint_url}


@pytest.fixture
def fresh(s3):
    """A place in a new bucket."""
    return Output(f"s3://{s3.bucket()}/trained", s3.storage)


@pytest.fixture(scope="module")
def whole(ray_session, scenes, s3):
    """The output of a training on one process, uninterrupted."""
    out = Output(f"s3://{s3.bucket()}/trained", s3.storage)
    train(scenes, out.url, **COURSE, endpoint_url=s3.endpoint_url)
    return out


def test_what_a_training_leaves(whole, s3):
    card = whole.weights().card
    assert card.labels == LABELS
    assert (card.architecture.name, card.architecture.width) == ("alexnet_gap", 0.125)
    assert card.preprocessing.image_size == 64
    assert card.facts["configuration"]["epochs"] == EPOCHS
    assert len(card.facts["data"]["train_sha256"]) == 64
    assert whole.curve("epoch") == list(range(1, EPOCHS + 1))
    assert card.facts["metrics"]["val_loss"] == whole.curve("val_loss")[-1]
    best = whole.weights("best").card.facts["metrics"]
    assert best["val_top1"] == max(whole.curve("val_top1"))
    assert len(set(whole.curve("train_loss"))) == EPOCHS, "every epoch changes the weights"
    assert whole.curve("rejected") == [1.0] * EPOCHS
    rejected = json.loads(whole.read("rejected.jsonl"))
    assert (Path(rejected["uri"]).name, rejected["reason_code"]) == ("broken.jpg", "not_an_image")
    assert whole.read("curves.png").startswith(b"\x89PNG")
    keys = s3.keys(whole.url.split("/")[2])
    assert {key.split("/")[0] for key in keys} == {"trained"}
    assert not any(b"testsecret" in whole.read(key.removeprefix("trained/")) for key in keys)


def test_the_card_is_all_that_annotate_needs(whole, scenes, s3, tmp_path):
    weights = {"model": None, "weights": f"{whole.url}/best.safetensors", "endpoint_url": s3.endpoint_url}
    counts = run_annotate(scenes, tmp_path / "tables", **weights).counts
    assert (counts.annotated, counts.rejected) == (24, 1)


def test_the_same_command_again(whole, scenes, course, capsys):
    run(config(scenes, whole.url, **course), Screen())
    said = capsys.readouterr()
    assert "has ended already" in said.err
    assert f"--weights {whole.url}/best.safetensors" in said.out
    with pytest.raises(UsageError, match=r"--lr: the training in .* has 0.01, not 0.1"):
        train(scenes, whole.url, **{**course, "lr": 0.1})
    with pytest.raises(RejectedShareError, match=r"1 of 25 images could not be used"):
        run(config(scenes, whole.url, **course, max_rejected=0.01), Screen())


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(whole, scenes, course, fresh, s3):
    flags = {**SMALL, **course, "batch_size": 8}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    bucket, prefix = fresh.url.removeprefix("s3://").split("/")
    kill_when(
        command("train", scenes, "--out", fresh.url, *words), lambda: bool(s3.keys(bucket, f"{prefix}/resume.pt"))
    )
    assert 1 <= len(fresh.curve("epoch")) < EPOCHS
    train(scenes, fresh.url, **course)
    assert fresh.curve("epoch") == list(range(1, EPOCHS + 1))
    # The killed process had another number of threads, and its sums another order.
    for name in ("train_loss", "val_loss"):
        assert fresh.curve(name) == pytest.approx(whole.curve(name), rel=1e-4)
    one, other = whole.weights().state, fresh.weights().state
    assert all(np.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one_with_twice_the_batch(whole, scenes, course, fresh):
    train(scenes, fresh.url, workers=2, **course)
    for name in ("train_loss", "val_loss", "train_top1", "val_top1"):
        assert fresh.curve(name) == pytest.approx(whole.curve(name), rel=1e-4)
    assert (whole.curve("processes"), fresh.curve("processes")) == ([1] * EPOCHS, [2] * EPOCHS)
