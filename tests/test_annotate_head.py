"""``annotate --head``: the classes of a head in the place of the network's own, from the images in one pass."""

import numpy as np
import pytest

from jobs.head import run as head_job
from jobs.localize import localize
from jobs.terminal.console import Screen
from pipeline import camlake
from pipeline.annotate.model import load_model
from pipeline.arrays.feature_codec import channel_order, unpack
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.models.weights.head_file import Head, HeadCard, head_bytes
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.options.head import HeadConfig
from schemas.options.localize import LocalizeConfig
from tests.jobs_on import run_annotate

IMAGES = 6
OUTPUTS = "boxes,heatmaps,features,feature_maps,foreground"


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """An output of the demo network with feature maps and a figure/ground direction, and the network."""
    folder = tmp_path_factory.mktemp("annotated")
    write_corpus(folder, IMAGES, seed=6, size_hw=(96, 128), broken=1)
    model = load_model(AnnotateConfig.resolve({"input": str(folder / "images"), "out": "x", "model": "camlake_demo"}))
    run_annotate(folder / "images", folder / "labels", outputs=OUTPUTS, box_rule="auto", foreground="auto")
    return folder, model


def demo_head(model, folder, digest=None):
    """Write a head of three classes on the demo network's features, and return its path and itself."""
    linear = model.network.head.linear
    weight = (linear.weight[:3] - linear.weight[3:6]).detach().numpy()
    bias = (linear.bias[:3] - linear.bias[3:6]).detach().numpy()
    card = HeadCard(model.partition, digest or model.digest, ("one", "two", "three"), "logistic", "0" * 64)
    head = Head(card, weight, bias, np.full(3, 0.5, np.float32))
    (folder / "three.safetensors").write_bytes(head_bytes(head))
    return str(folder / "three.safetensors"), head


def test_annotate_with_a_head_gives_what_localize_gives(annotated, tmp_path):
    folder, model = annotated
    path, head = demo_head(model, tmp_path)
    ran = run_annotate(
        folder / "images", tmp_path / "seen", head=path, topk=3, outputs=OUTPUTS, box_rule="auto", foreground="auto"
    )
    options = {"labels": str(folder / "labels"), "out": str(tmp_path / "new"), "topk": 3, "head": path}
    localized = localize(LocalizeConfig.resolve(options), Screen())
    assert (ran.lineage.head, ran.lineage.backbone) == (head.digest, model.digest)
    assert ran.model == localized.model != model.partition
    assert ran.settings["head"] == localized.settings["head"]
    assert verify(*connect(str(tmp_path / "seen"), StorageConfig())).problems == ()
    with camlake.open(str(tmp_path / "seen")) as seen, camlake.open(str(tmp_path / "new")) as new:
        both = [lake.pandas("heatmaps").sort_values(["image_id", "class_id"]) for lake in (seen, new)]
        boxes = [
            lake.pandas("boxes").sort_values(["image_id", "class_id"]).reset_index(drop=True) for lake in (seen, new)
        ]
        codes, vectors = (
            {row["image_id"]: row for row in seen.arrow(table).to_pylist()} for table in ("feature_maps", "features")
        )
        streamed = {(one.image_id, one.class_id): one for one in seen.maps(path)}
    assert both[0]["label"].tolist() == both[1]["label"].tolist()
    assert len(both[0]) == 3 * IMAGES
    assert boxes[0]["class_prob"].to_numpy() == pytest.approx(boxes[1]["class_prob"].to_numpy(), rel=1e-4)
    for (_, true), (_, found) in zip(both[0].iterrows(), both[1].iterrows(), strict=True):
        row, weight = codes[true["image_id"]], head.weight[true["class_id"]]
        values = np.frombuffer(row["codes"], np.uint8)
        levels = unpack(values[None], 3, row["channels"] * row["map_h"] * row["map_w"]).reshape(row["channels"], -1)
        feature = np.asarray(vectors[true["image_id"]]["feature"], np.float32)
        levels = levels[np.argsort(channel_order(feature[None])[0])]
        mean = levels.mean(1)
        # A value f of a map with the mean F is off by at most (f + F) / (2 · the mean of its codes).
        share = np.where(mean > 0, (levels.T * feature / np.maximum(mean, 1e-9) + feature) / np.maximum(mean, 1e-9), 0)
        bound = (np.abs(weight) * share * 0.6).sum(1).reshape(row["map_h"], row["map_w"])
        steps = (np.ptp(camlake.heatmap(true)) + np.ptp(camlake.heatmap(found))) / 500
        off = np.abs(camlake.heatmap(true) - camlake.heatmap(found))
        assert (off <= bound + steps).all()
        assert np.corrcoef(true["heat"], found["heat"])[0, 1] > 0.97
        assert streamed[true["image_id"], true["class_id"]].heat == pytest.approx(
            camlake.heatmap(found), abs=float(steps)
        )
    sides = ["xmin", "ymin", "xmax", "ymax"]
    moved = np.abs(boxes[0][sides].to_numpy() - boxes[1][sides].to_numpy()).max(axis=1)
    assert np.median(moved) < 4


def test_the_page_of_the_first_images_shows_their_pictures(annotated, tmp_path):
    folder, model = annotated
    path, _ = demo_head(model, tmp_path)
    page = tmp_path / "top.html"
    options = {"action": "top", "place": str(folder / "labels"), "head": path, "images": 4, "out": str(page)}
    head_job(HeadConfig.resolve(options), Screen())
    assert page.read_text().count('<img src="data:image/jpeg;base64,') == 3 * 4


def test_annotate_refuses_a_head_of_another_backbone(annotated, tmp_path):
    folder, model = annotated
    path, _ = demo_head(model, tmp_path)
    said = (
        r"^--head \S+: was fitted on features of camlake_demo-\w+, and this run has those of camlake_demo-\w+; allowed"
    )
    with pytest.raises(UsageError, match=said):
        run_annotate(folder / "images", tmp_path / "seen", head=path, image_size=96)
    with pytest.raises(UsageError, match=r"^--method gradcam: allowed with --head: --method cam, and no --labels"):
        run_annotate(folder / "images", tmp_path / "seen", head=path, method="gradcam")
