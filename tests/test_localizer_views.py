"""Methods and views through the localizer and the annotate stage: against plain code, and through a configuration."""

import os
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.decode_stage import DecodeStage
from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import load_model
from pipeline.annotate.resources import Machine, plan_compute
from pipeline.annotate.spec import annotate_spec, decode_spec, row_bytes
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.models import registry
from pipeline.models.localize import methods
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.views import make_views
from pipeline.models.networks.architecture import Architecture
from pipeline.models.weights.state_fitting import load_network
from pipeline.storage.inputs.listing import list_inputs
from schemas.errors import ModelError, UsageError
from schemas.options.annotate import AnnotateConfig

RUNTIME = Runtime("cpu", "fp32", compile=False, threads=1, batch_size=8)
SIDE = 64


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return load_network("camlake_demo", None, SIDE)


def localizer(network, topk=2, **options):
    return Localizer(network, CamRule(topk, BoxRule("paper", (0.2,), 0.0)), RUNTIME, **options)


def pictures(side, n=3):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8))


def cam(network, pixels, ids):
    with torch.no_grad():
        return network.head.class_maps(network.features(pixels), ids).numpy()


def test_without_options_the_maps_are_bit_by_bit_those_of_one_pass(network):
    pixels = pictures(SIDE)
    found = localizer(network)(pixels, [(50, 60)] * 3, [(8, 8)] * 3)
    with torch.no_grad():
        features = Engine(network, RUNTIME)(pixels)
        logits, pooled = network.head(features)
        ids = logits.topk(2).indices
        maps = network.head.class_maps(features, ids)
    assert np.array_equal(found.maps.heat, maps.flatten(0, 1).numpy())
    assert np.array_equal(found.pooled, pooled.numpy())
    assert np.array_equal(found.maps.class_prob.reshape(3, 2), logits.softmax(1).gather(1, ids).numpy())


def test_mirrors_and_scales_are_averaged(network):
    pixels = pictures(SIDE)
    smaller = torch.stack(
        [torch.from_numpy(cv2.resize(each.numpy(), (32, 32), interpolation=cv2.INTER_AREA)) for each in pixels]
    )
    # A picture of constant blocks, so that every way to halve it agrees.
    pixels = smaller.repeat_interleave(2, 1).repeat_interleave(2, 2)
    blurred = torch.stack([torch.from_numpy(half(each.numpy())) for each in pixels])
    views = make_views(SIDE, "flip", (1.0, 0.5))
    found = localizer(network, views=views)(pixels, [(50, 60)] * 3, [(8, 8)] * 3)
    shown = [pixels, pixels.flip(2), blurred, blurred.flip(2)]
    with torch.no_grad():
        logits = torch.stack([network(each).logits for each in shown]).mean(0)
        pooled = torch.stack([network(each).pooled for each in shown]).mean(0)
    ids = logits.topk(2).indices
    assert np.array_equal(found.maps.class_id.reshape(3, 2), ids.numpy())
    np.testing.assert_allclose(found.maps.class_prob.reshape(3, 2), logits.softmax(1).gather(1, ids), rtol=1e-4)
    np.testing.assert_allclose(found.pooled, pooled, rtol=1e-4, atol=1e-5)
    expected = np.zeros((3, 2, 8, 8))
    for each, mirrored in zip(shown, (False, True, False, True), strict=True):
        maps = cam(network, each, ids)
        for image, rank in np.ndindex(3, 2):
            grid = cv2.resize(maps[image, rank], (8, 8), interpolation=cv2.INTER_LINEAR)
            expected[image, rank] += (grid[:, ::-1] if mirrored else grid) / 4
    np.testing.assert_allclose(found.maps.heat.reshape(3, 2, 8, 8), expected, atol=1e-4)


def half(picture):
    """Halve a picture with weights 1/8, 3/8, 3/8, 1/8, of the rows that are there."""
    side = len(picture)
    weights = np.zeros((side // 2, side))
    for row in range(side // 2):
        for step, weight in zip(range(-1, 3), (1, 3, 3, 1), strict=True):
            if 0 <= 2 * row + step < side:
                weights[row, 2 * row + step] = weight
    weights /= weights.sum(1, keepdims=True)
    return np.rint(np.einsum("yY,YXc,xX->yxc", weights, picture.astype(float), weights)).astype(np.uint8)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "backprop"])
def test_every_method_takes_views(network, method):
    views, pixels = make_views(56, "tencrop"), pictures(64)
    cells = 8
    found = localizer(network, method=method, views=views)(pixels, [(50, 60)] * 3, [(cells, cells)] * 3)
    assert found.maps.heat.shape == (6, cells, cells)
    assert (found.maps.heat >= 0).all()
    # A picture and its mirror image have the same views: the maps are mirror images too.
    mirrored = localizer(network, method=method, views=views)(pixels.flip(2), [(50, 60)] * 3, [(cells, cells)] * 3)
    assert np.array_equal(found.maps.class_id, mirrored.maps.class_id)
    scale = found.maps.heat.max()
    np.testing.assert_allclose(mirrored.maps.heat[:, :, ::-1] / scale, found.maps.heat / scale, atol=2e-4)


@pytest.mark.parametrize("classes", [None, [[], [], range(10), [], []]])
def test_graphs_of_a_few_images_at_a_time_give_what_those_of_all_give(network, monkeypatch, classes):
    work = localizer(network, method="backprop", views=make_views(56, "flip"))
    given = pictures(56, 5), [(50, 60)] * 5, [(7, 7)] * 5, classes
    together = work(*given)
    monkeypatch.setattr(methods, "TRUNK_PIXELS", {"cpu": 2 * 2 * 56**2})
    apart = work(*given)
    assert len(together.maps.image) == (10 if classes is None else 18)
    for part, whole in zip(apart.maps, together.maps, strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(apart.boxes.xyxy, together.boxes.xyxy, atol=0.05)
    np.testing.assert_allclose(apart.pooled, together.pooled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["cam", "gradcam", "layercam", "backprop"])
def test_pictures_that_give_no_number_have_no_maps(method):
    torch.manual_seed(0)
    broken = load_network("camlake_demo", None, SIDE)
    broken.head.linear.weight[0, 0] = float("nan")
    found = localizer(broken, method=method)(pictures(SIDE, 1), [(50, 60)], [(8, 8)])
    assert found.finite.tolist() == [False]
    assert len(found.maps.image) == len(found.boxes.map) == 0


@pytest.mark.slow
def test_a_compiled_trunk_gives_gradcam_the_same_maps():
    if not any(shutil.which(os.environ.get(name, name)) for name in ("CXX", "c++", "g++", "clang++")):
        pytest.skip("no C++ compiler: torch.compile has nothing to work with on this machine")
    torch.manual_seed(0)
    small = load_network("camlake_demo", None, 32)
    compiled = Runtime("cpu", "fp32", compile=True, threads=1, batch_size=2)
    rule = CamRule(2, BoxRule("paper", (0.2,), 0.0))
    found = []
    for runtime in (RUNTIME, compiled):
        work = Localizer(small, rule, runtime, method="gradcam")
        work.warm_up()
        found.append(work(pictures(32), [(50, 60)] * 3, [(4, 4)] * 3))
    assert np.array_equal(found[0].maps.class_id, found[1].maps.class_id)
    np.testing.assert_allclose(found[1].maps.heat, found[0].maps.heat, rtol=1e-4)
    np.testing.assert_allclose(found[1].boxes.xyxy, found[0].boxes.xyxy, atol=0.05)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 6, seed=3, size_hw=(96, 192), broken=0)
    return folder / "images"


def wide_rows(corpus, **options):
    """Run the stages of a configuration over the pictures in this process."""
    given = {"input": str(corpus), "out": "unused", "model": "camlake_demo", "topk": 2, "precision": "fp32"}
    config = AnnotateConfig.resolve(given | options)
    model, compute = load_model(config), plan_compute(config, Machine(4, 0, 1))
    plan = pa.Table.from_batches(list_inputs(config.input, config).batches).sort_by("uri")
    decoded = DecodeStage(decode_spec(config, model))(ImageReader(config, "x", config.max_bytes).fetch(plan))
    return AnnotateStage(annotate_spec(config, model, compute.runtime), model.weights.state)(decoded), config, model


@pytest.mark.parametrize(
    ("options", "heat_hw"),
    [
        ({}, (14, 14)),
        ({"method": "gradcam", "tta": "flip"}, (14, 14)),
        ({"tta": "tencrop", "resize": "fit"}, (8, 16)),
        ({"method": "layercam", "scales": "0.5,1.5", "resize": "fit"}, (10, 21)),
        ({"method": "backprop", "tta": "flip", "scales": "2"}, (28, 28)),
    ],
)
def test_a_configuration_decides_method_maps_and_boxes(corpus, options, heat_hw):
    rows, config, model = wide_rows(corpus, **options)
    maps, boxes = (rows[name].combine_chunks().flatten().to_pylist() for name in ("heatmaps", "boxes"))
    assert {(one["heat_h"], one["heat_w"]) for one in maps} == {heat_hw}
    assert {len(one["heat"]) for one in maps} == {heat_hw[0] * heat_hw[1]}
    assert {one["method"] for one in boxes} == {options.get("method", "cam")}
    assert all(0 <= one["xmin"] < one["xmax"] <= 192 and 0 <= one["ymin"] < one["ymax"] <= 96 for one in boxes)
    assert row_bytes(config, model) > config.topk * model.resize.map_hw[0] * model.resize.map_hw[1]


def test_views_find_the_same_objects(corpus):
    """Averaged maps of the demo's trained network show the object where plain ones do, padded or not."""
    plain = tops(wide_rows(corpus)[0])
    for options in ({"tta": "flip"}, {"tta": "tencrop", "resize": "fit"}, {"scales": "1,1.5"}):
        overlaps = [overlap(plain[name], box) for name, box in tops(wide_rows(corpus, **options)[0]).items()]
        assert np.median(overlaps) > 0.5


def tops(rows):
    return {row["uri"]: row["boxes"][0] for row in rows.select(["uri", "boxes"]).to_pylist()}


def overlap(one, other):
    inner = 1.0
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        inner *= max(0.0, min(one[high], other[high]) - max(one[low], other[low]))
    areas = [(box["xmax"] - box["xmin"]) * (box["ymax"] - box["ymin"]) for box in (one, other)]
    return inner / (sum(areas) - inner)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alexnet")
    torch.manual_seed(0)
    module = registry.get("alexnet").construct(Architecture("alexnet", width=0.0625, classes=3))
    safetensors.torch.save_model(module, str(folder / "alexnet.safetensors"))
    (folder / "labels.txt").write_text("a\nb\nc\n")
    files = {"weights": str(folder / "alexnet.safetensors"), "labels": str(folder / "labels.txt")}
    return {"model": "alexnet", "image_size": 96, "topk": 3, **files}


class TestFullyConnected:
    @pytest.mark.parametrize(("method", "side"), [("backprop", 12), ("gradcam", 2), ("layercam", 2)])
    def test_they_have_maps_of_gradients(self, corpus, alexnet, method, side):
        rows, _, _ = wide_rows(corpus, method=method, **alexnet)
        maps = rows["heatmaps"].combine_chunks().flatten().to_pylist()
        assert len(maps) == 18
        assert {(one["heat_h"], one["heat_w"]) for one in maps} == {(side, side)}
        assert rows["feature"].type.list_size == 256

    def test_cam_refuses_them_and_names_what_does_not(self, corpus, alexnet):
        with pytest.raises(
            ModelError,
            match=r"alexnet has no exact class activation map: .* give --method backprop, or use alexnet_gap",
        ):
            wide_rows(corpus, **alexnet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": "1,5"}, "--scales '5': Input should be less than or equal to 4"),
        ({"scales": "0.1"}, "--scales '0.1': Input should be greater than or equal to 0.25"),
        ({"scales": "1,1.0"}, "--scales 1,1: allowed: each value once"),
        ({"scales": "1,big"}, "--scales 'big': "),
        ({"scales": ",".join(str(1 + index / 10) for index in range(7))}, "at most 6 items"),
        ({"tta": "ten"}, "--tta 'ten': Input should be 'none', 'flip' or 'tencrop'"),
        ({"method": "backprop", "compile": "on"}, "--compile on: allowed with --method backprop: auto, off"),
        ({"method": "cams"}, "--method 'cams': Input should be 'cam', 'gradcam', 'layercam'"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(UsageError) as caught:
        AnnotateConfig.resolve({"input": "in", "out": "out", **options})
    assert message in str(caught.value)


@pytest.mark.parametrize("given", [{}, {"compile": "auto"}, {"compile": "off"}])
def test_what_keeps_a_graph_is_never_compiled(given):
    found = [
        AnnotateConfig.resolve({"input": "in", "out": "out", "method": method, **given}).compile
        for method in ("backprop", "gradcam")
    ]
    assert found == ["off", given.get("compile", "auto")]


def test_sides_that_no_picture_can_have():
    config = AnnotateConfig.resolve({"input": "in", "out": "out", "model": "camlake_demo"})
    large = config.model_copy(update={"image_size": 2048, "scales": (1.0, 2.0), "tta": "tencrop"})
    with pytest.raises(
        UsageError, match="--scales 1,2 --tta tencrop: inputs of 4681 pixels a side; allowed: up to 4096"
    ):
        load_model(large)
