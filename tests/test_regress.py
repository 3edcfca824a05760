"""``--supervision boxes`` and ``--method regress``: boxes in pixels, the way from training to scores, refusals."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.report import run as run_report
from jobs.terminal.console import Screen
from jobs.verify import run as run_verify
from pipeline.arrays.metrics import paired_iou
from pipeline.images.resize import ResizePlan
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.networks.box_head import BoxHead
from pipeline.models.weights.checkpoint import read_checkpoint
from pipeline.outputs import reader as camlake
from pipeline.outputs.evaluate import evaluate
from pipeline.storage.truth.truth import read_truth
from schemas.errors import ModelError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.box_rules import NO_CUT
from schemas.options.config import StorageConfig
from schemas.options.reading import ReportConfig, VerifyConfig
from tests.jobs_on import run_annotate
from tests.test_localizer import RUNTIME, by_hand
from tests.training import train

SIDE, MAP = 8, 4
RULE = CamRule(topk=2, boxes=BoxRule("paper", NO_CUT, 0.0))


def telling(centre_xy, size_wh):
    """A network by hand whose box head says the same of every picture."""
    network = by_hand([[1.0, 0, 0], [0, 1.0, 0]])
    network.box_head = BoxHead(3).requires_grad_(False)
    network.box_head.bias.copy_(torch.tensor([*centre_xy, *size_wh], dtype=torch.float64).logit())
    return network


sides = st.integers(1, 300)
inner = st.floats(0.02, 0.98)


@given(st.tuples(sides, sides), st.sampled_from(("squash", "fit")), st.tuples(inner, inner), st.tuples(inner, inner))
def test_a_told_box_in_pixels_of_the_original(size_hw, resize, centre_xy, size_wh):
    plan = ResizePlan(resize, SIDE, (MAP, MAP))
    localizer = Localizer(telling(centre_xy, size_wh), RULE, RUNTIME, method="regress")
    blank = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    found = localizer(blank, [size_hw], [plan.valid_hw(size_hw)]).boxes
    # Where the picture lies in the input, in pixels: whole cells of two pixels.
    height, width = plan.input_hw(*size_hw)
    half = [share / 2 for share in size_wh]
    ends = [(centre_xy[axis] + sign * half[axis]) * SIDE for sign in (-1, 1) for axis in (0, 1)]
    expected = [
        min(max(end / [width, height][axis % 2], 0), 1) * size_hw[1 - axis % 2] for axis, end in enumerate(ends)
    ]
    if ends[0] >= width or ends[1] >= height:
        assert len(found.xyxy) == 0  # All of it lies in the padding.
        return
    assert found.threshold.tolist() == [0, 0]
    assert found.map.tolist() == [0, 1]
    np.testing.assert_allclose(found.xyxy, [expected] * 2, rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """24 scenes with their truth, and a table of them as INPUT; every sixth has no box there."""
    folder = tmp_path_factory.mktemp("corpus")
    truth = write_corpus(folder, 24, seed=3, size_hw=(56, 72), broken=0)
    rows = list(csv.DictReader(truth.read_text().splitlines()))
    for number, row in enumerate(rows):
        row["label"] = "ab"[int(row["class_id"]) % 2]
        if number % 6 == 5:
            row.update(dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), ""))
    for path, names in ((folder / "train.csv", ["uri"]), (folder / "truth_ab.csv", ["file"])):
        lines = [row for row in rows if names == ["uri"] or row["xmin"]]
        columns = [*names, "label", "xmin", "ymin", "xmax", "ymax"]
        text = [",".join([row["file"], *(row[name] for name in columns[1:])]) for row in lines]
        path.write_text("\n".join([",".join(columns), *text]) + "\n")
    return folder


WITH_BOXES = {"supervision": "boxes", "epochs": 1, "val_share": 0.25}


@pytest.fixture(scope="module")
def trained(ray_session, corpus, tmp_path_factory):
    """Weights of one epoch with boxes."""
    out = tmp_path_factory.mktemp("trained") / "out"
    train(corpus / "train.csv", out, **WITH_BOXES)
    return out


@pytest.mark.slow
def test_two_processes_learn_boxes_as_one_does_with_twice_the_batch(trained, corpus, tmp_path):
    train(corpus / "train.csv", tmp_path / "two", workers=2, **WITH_BOXES)
    one, two = (json.loads((out / "metrics.jsonl").read_text()) for out in (trained, tmp_path / "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("train_loss", "train_top1", "train_iou", "val_loss", "val_top1", "val_iou", "val_top1_loc"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    state, other = (read_checkpoint(str(out / "last.safetensors")).state for out in (trained, tmp_path / "two"))
    assert state.keys() == other.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_what_a_training_with_boxes_leaves(trained):
    epoch = json.loads((trained / "metrics.jsonl").read_text())
    assert 0 < epoch["train_iou"] < 1
    assert 0 < epoch["val_iou"] < 1
    assert 0 <= epoch["val_top1_loc"] <= 1
    card = read_checkpoint(str(trained / "best.safetensors")).card
    assert card.supervision == "boxes"
    data = card.facts["data"]
    assert 0 < data["train_boxes"] < data["train_images"]
    assert 0 < data["val_boxes"] <= data["val_images"]


@pytest.mark.slow
def test_regressed_boxes_are_scored_in_the_same_table(trained, corpus, tmp_path):
    out, weights = tmp_path / "labels", str(trained / "best.safetensors")
    counts = run_annotate(corpus / "images", out, model=None, weights=weights, method="regress").counts
    assert (counts.annotated, counts.boxes, counts.maps_without_box) == (24, 48, 0)
    truth = read_truth(str(corpus / "truth_ab.csv"), StorageConfig())
    with camlake.open(str(out)) as lake:
        boxes = lake.arrow("boxes").to_pandas()
        scores = evaluate(lake, truth)
        places = truth.match(boxes["uri"].unique().tolist())
    assert set(boxes["method"]) == {"regress"}
    assert set(boxes["threshold"]) == {0}
    assert boxes.groupby("uri")[["xmin", "ymin", "xmax", "ymax"]].nunique().to_numpy().max() == 1
    assert boxes[["rank", "uri"]].drop_duplicates().shape == (48, 2)
    first = boxes.drop_duplicates("uri")[["xmin", "ymin", "xmax", "ymax"]].to_numpy(np.float64)
    iou = np.zeros(len(truth.keys))
    np.maximum.at(iou, truth.owner, paired_iou(first[places[truth.owner]], truth.boxes_xyxy))
    assert scores.figure("mean_iou").value == pytest.approx(iou.mean(), abs=1e-6)
    for metric, delta in (("gt_known", 0.5), ("max_box_acc", 0.5), ("max_box_acc_v2_at_0.3", 0.3)):
        assert scores.figure(metric).value == pytest.approx((iou >= delta).mean())
        assert scores.figure(metric).threshold is None
    parts = [(iou >= delta).mean() for delta in (0.3, 0.5, 0.7)]
    assert scores.figure("max_box_acc_v2").value == pytest.approx(np.mean(parts))
    assert scores.figure("top1_localization").value <= scores.figure("gt_known").value
    assert any(note.startswith("The boxes are regressed") for note in scores.notes)
    assert not scores.curves
    run_verify(VerifyConfig(out=str(out)), Screen())
    run_report(ReportConfig(out=str(out), page=str(tmp_path / "page.html"), pictures=2), Screen())
    # The same weights have class activation maps; their boxes can't stand among the regressed ones.
    with pytest.raises(UsageError, match=r"--method: the rows of this model in .* were made with regress, not cam"):
        run_annotate(corpus / "images", out, model=None, weights=weights)


def test_refusals():
    with pytest.raises(ModelError, match=r"--method regress: these weights have no box head; allowed: weights of"):
        Localizer(by_hand([[1.0, 0, 0]]), RULE, RUNTIME, method="regress")
    for options, said in (
        ({"outputs": "boxes,heatmaps"}, "--outputs heatmaps: allowed with --method regress: boxes, features"),
        ({"threshold": 0.3}, "--threshold 0.3: --method regress cuts no maps"),
        ({"box_rule": "all-components"}, "--box-rule all-components: --method regress cuts no maps"),
        ({"tta": "flip"}, "--tta flip --scales 1: allowed with --method regress: --tta none and one scale"),
    ):
        with pytest.raises(UsageError, match=said):
            AnnotateConfig.resolve({"input": "in", "out": "out", "method": "regress", **options})
