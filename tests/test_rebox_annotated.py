"""Boxes from rounded maps against the network's own: bounded by the rounding, and equal to a fraction of a pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.arrays.boxes import level_boxes
from pipeline.arrays.maps import dequantize, quantize
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.options.rebox import ReboxConfig
from tests.jobs_on import run_annotate

SIDES = ("xmin", "ymin", "xmax", "ymax")
KEYS = ["uri", "rank", "threshold", "component"]


def around_all(maps, level):
    """The box (4,) around everything above ``level``, nothing as an empty one."""
    found = level_boxes(torch.from_numpy(maps[None]), torch.tensor([[level]]), components="all").boxes_xyxy
    if not len(found):
        return torch.tensor([np.inf, np.inf, -np.inf, -np.inf])
    return torch.cat([found[:, :2].amin(dim=0), found[:, 2:].amax(dim=0)])


@settings(max_examples=60)
@given(
    maps=arrays(np.float32, (5, 6), elements=st.floats(-4, 4, width=32)),
    threshold=st.floats(0.05, 0.95),
)
def test_rounding_moves_the_level_by_half_a_step_at_most(maps, threshold):
    """Everything above the level lies between what the true map has above it, plus and minus span / 510."""
    stored = dequantize(*quantize(maps[None]))[0]
    level = float(maps.max()) * threshold
    half_step = float(maps.max() - maps.min()) / 510 + 1e-5
    box = around_all(stored, level)
    inner, outer = (around_all(maps, level + step) for step in (half_step, -half_step))
    assert (outer[:2] <= box[:2] + 1e-4).all()
    assert (box[:2] <= inner[:2] + 1e-4).all()
    assert (inner[2:] <= box[2:] + 1e-4).all()
    assert (box[2:] <= outer[2:] + 1e-4).all()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 16, seed=5, size_hw=(96, 128), broken=2)
    return folder / "images"


@pytest.fixture(scope="module")
def labels(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "labels"
    run_annotate(corpus, out, topk=3, resize="fit", images_per_commit=5)
    return out


def boxes_of(out):
    with camlake.open(str(out)) as lake:
        return lake.pandas("boxes").sort_values(KEYS).reset_index(drop=True)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": (0.35, 0.6), "box_rule": "all-components", "min_area": 0.01},
        {"box_rule": "heuristic"},
    ],
    ids=["all-components", "heuristic"],
)
def test_boxes_are_those_that_annotate_cuts(corpus, labels, tmp_path, options):
    run_annotate(corpus, tmp_path / "direct", topk=3, resize="fit", outputs="boxes", **options)
    config = {"labels": str(labels), "out": str(tmp_path / "new"), **options}
    counts = rebox(ReboxConfig.resolve(config), Screen()).counts
    assert (counts.annotated, counts.rejected) == (16, 2)
    assert verify(*connect(str(tmp_path / "new"), StorageConfig())).problems == ()
    check(boxes_of(tmp_path / "direct"), boxes_of(tmp_path / "new"))


def check(direct, new):
    """Compare boxes in pictures of 96×128 pixels: nearly all differ by less than a pixel, half by less than a fifth."""
    both = direct.merge(new, on=KEYS, suffixes=("", "_new"))
    assert len(both) == pytest.approx(len(direct), rel=0.02)
    assert len(new) == pytest.approx(len(direct), rel=0.02)
    assert np.allclose(both["class_prob"], both["class_prob_new"], atol=1e-5)
    moved = np.abs(both[list(SIDES)].to_numpy() - both[[f"{side}_new" for side in SIDES]].to_numpy()).max(axis=1)
    assert (moved < 1).mean() > 0.95
    assert np.median(moved) < 0.2


def test_the_same_rule_gives_the_same_boxes_which_annotate_leaves_alone(corpus, labels, tmp_path):
    rebox(ReboxConfig.resolve({"labels": str(labels), "out": str(tmp_path / "new"), "box_rule": "paper"}), Screen())
    check(boxes_of(labels), boxes_of(tmp_path / "new"))
    with pytest.raises(UsageError, match=r"^--out \S+new: has boxes that camlake rebox cut from the maps of \S+labels"):
        run_annotate(corpus, tmp_path / "new", topk=3, resize="fit", outputs="boxes")
