"""The peers: hand-written maps, boxes and tables against camlake's, and the sides as commands of their own."""

import dataclasses
import importlib
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.benchmark.photographs import make_photographs, weights_file
from jobs.benchmark.steady_rate import annotated_s
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.demo_network import ResidualBlock
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import CamlakeError, UsageError
from schemas.options.benchmark import MeasureConfig
from schemas.tables import network_types, written_schemas
from tests.benchmarks.peers import comparison, network_alone, own_job, ray_pattern
from tests.benchmarks.peers.loops import hand_loop
from tests.benchmarks.peers.setup import BATCH, Setup
from tests.benchmarks.peers.side import run_side
from tests.references.network_by_hand import ByHand, boxes_of, load, normalized, opencv_box, read_image

SIZE_HW = (120, 160)
RULE = CamRule(5, BoxRule("paper", (0.2,), 0.0))


@pytest.fixture(autouse=True)
def _one_thread():
    """Undo what the loops do to their process: they take all cores."""
    yield
    torch.set_num_threads(1)
    cv2.setNumThreads(-1)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    """Three rendered photographs and the trained demo network."""
    folder = tmp_path_factory.mktemp("benchmark")
    make_photographs(MeasureConfig(), folder / "photographs", 3, SIZE_HW)
    return Setup(str(folder / "photographs"), str(folder / "out"), "camlake_demo", "DEFAULT", "fp32")


def localize(network, pixels):
    runtime = Runtime(device="cpu", precision="fp32", compile=False, threads=1, batch_size=BATCH)
    map_hw = network.map_size(network.preprocessing.image_size)
    return Localizer(network, RULE, runtime)(torch.from_numpy(pixels), [SIZE_HW] * len(pixels), [map_hw] * len(pixels))


def heat_of(localized):
    """Return the maps (B, 5, h, w)."""
    heat = localized.maps.heat
    return heat.reshape(-1, RULE.topk, *heat.shape[1:])


def scaled(maps):
    """Return each map in [0, 1], as both libraries of maps give them."""
    shifted = maps - maps.min(axis=(2, 3), keepdims=True)
    return shifted / (shifted.max(axis=(2, 3), keepdims=True) + 1e-7)


@pytest.fixture(scope="module")
def pixels(setup):
    side = load(setup.model, setup.weights)[0].preprocessing.image_size
    return np.stack([read_image(path, side)[0] for path in setup.paths()])


class TestByHand:
    def test_says_what_camlake_says(self, setup, pixels):
        found = setup.network()(normalized(pixels, load_network("camlake_demo", None, None).preprocessing))
        ours = localize(load(setup.model, setup.weights)[0], pixels)
        assert found.class_ids.reshape(-1).tolist() == ours.maps.class_id.tolist()
        assert np.allclose(found.probs.reshape(-1), ours.maps.class_prob, atol=1e-5)
        assert np.allclose(found.pooled, ours.pooled, atol=1e-5)
        assert np.allclose(found.maps, heat_of(ours), atol=1e-4)
        boxes = boxes_of(found.maps, np.array([SIZE_HW] * 3)).reshape(-1, 4)
        with_box = np.isfinite(boxes[:, 0])
        assert np.flatnonzero(with_box).tolist() == ours.boxes.map.tolist()
        # camlake's edges lie where the surface crosses the threshold, OpenCV's at whole pixels; tips of the surface
        # that are thinner than a pixel fall between OpenCV's.
        apart_px = np.abs(boxes[with_box] - ours.boxes.xyxy)
        assert apart_px.max() <= 1.5
        assert apart_px.mean() <= 0.5

    def test_a_convolution_has_its_bias_and_relu_inside_the_maps(self):
        torch.manual_seed(0)
        network = load_network("squeezenet1_1", None, 64)
        pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
        by_hand = ByHand(network, [""] * 1000, "fp32")
        assert np.allclose(by_hand(by_hand.normalized(pixels)).maps, heat_of(localize(network, pixels)), atol=1e-4)

    def test_a_head_with_a_normalization_is_refused(self, tmp_path):
        weights = weights_file(MeasureConfig(model="convnext_tiny"), tmp_path)
        with pytest.raises(UsageError, match="--model convnext_tiny: its head"):
            load("convnext_tiny", weights)

    def test_box_by_hand(self):
        heat = np.zeros((4, 4), np.float32)
        heat[0, 0] = 1
        heat[2:, 2:] = 1
        # Halfway between the centres 15 and 25 the surface is 0.5; a fifth of 1 is crossed at 17.
        assert opencv_box(heat, (40, 40)) == (17, 17, 40, 40)
        assert np.isnan(opencv_box(-heat, (40, 40))).all()


class TestPeers:
    def test_grad_cam_gives_camlakes_maps_upsampled(self, setup, pixels):
        grad_cam = peer("pytorch_grad_cam", "grad_cam")
        network = load(setup.model, setup.weights)[0]
        side = network.preprocessing.image_size
        heat = scaled(heat_of(localize(network, pixels)).clip(min=0))
        upsampled = np.array([[cv2.resize(one, (side, side)) for one in image] for image in heat])
        assert np.allclose(
            grad_cam.maps_of(network)(normalized(pixels, network.preprocessing)), scaled(upsampled), atol=1e-3
        )

    def test_torch_cam_gives_camlakes_maps(self, setup, pixels):
        torch_cam = peer("torchcam", "torch_cam")
        network = load(setup.model, setup.weights)[0]
        maps = torch_cam.maps_of(network)(normalized(pixels, network.preprocessing))
        assert np.allclose(maps, scaled(heat_of(localize(network, pixels))), atol=1e-4)

    def test_daft_finds_what_camlake_finds(self, setup, pixels):
        daft_pattern = peer("daft", "daft_pattern")
        daft_pattern.run(setup)
        rows = pq.read_table(setup.out)
        ours = localize(load(setup.model, setup.weights)[0], pixels)
        assert rows["path"].to_pylist() == setup.paths()
        assert rows["class_ids"].combine_chunks().flatten().to_pylist()[::5] == ours.top1_class_id.tolist()
        assert len(annotated_s(Path(setup.out))) == 3

    def test_ray_pattern_finds_what_camlake_finds(self, setup, pixels):
        transform, annotator = ray_pattern.Transform(setup.model), ray_pattern.RayNetwork(setup)
        images = [cv2.imread(path, cv2.IMREAD_COLOR_RGB) for path in setup.paths()]
        rows = [transform({"path": "", "image": image}) for image in images]
        found = annotator({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        ours = localize(load(setup.model, setup.weights)[0], pixels)
        # torchvision's resizing smooths where OpenCV's does not, so the maps are alike, not the same.
        assert found["class_ids"][:, 0].tolist() == ours.top1_class_id.tolist()
        assert np.corrcoef(found["maps"][:, 0].ravel(), heat_of(ours)[:, 0].ravel())[0, 1] > 0.95

    def test_a_missing_extra_is_one_line(self):
        with pytest.raises(UsageError, match=r"no-such is not installed; pip install 'camlake\[benchmark\]'"):
            comparison.require_extra({"no-such": "no_such_module"})


def peer(module, name):
    """Return a peer's own module; skips where the library is not installed."""
    pytest.importorskip(module, reason=f"{module} is missing: pip install -e '.[benchmark]'")
    return importlib.import_module(f"tests.benchmarks.peers.{name}")


@pytest.mark.parametrize("how", ["pytorch", "engine"])
def test_the_network_alone_is_timed(setup, monkeypatch, how):
    def slow(*values):
        time.sleep(0.01)
        return forward(*values)

    forward = ResidualBlock.forward
    monkeypatch.setattr(network_alone, "SECONDS", 0.2)
    monkeypatch.setattr(ResidualBlock, "forward", slow)
    rate = network_alone.passes_per_s(setup, how, 1)
    assert BATCH <= rate <= BATCH / 0.01


def test_the_loop_writes_the_same_tables(setup):
    setup = dataclasses.replace(setup, out=f"{setup.out}/loop")
    assert hand_loop(setup) > 0
    tables = {
        name: pq.read_table(f"{setup.out}/{name}.parquet") for name in ("images", "boxes", "heatmaps", "features")
    }
    channels = tables["features"].schema.field("feature").type.list_size
    schemas = written_schemas(tables, network_types(channels, "float32"))
    assert all(table.schema.equals(schemas[name]) for name, table in tables.items())
    assert [len(tables[name]) for name in ("images", "heatmaps", "features")] == [3, 15, 3]
    assert sum(tables["images"]["n_boxes"].to_pylist()) == len(tables["boxes"])
    assert tables["images"]["height_px"].to_pylist() == [SIZE_HW[0]] * 3
    assert len(annotated_s(Path(setup.out))) == 3


@pytest.mark.parametrize("start", [own_job.run, partial(run_side, "loops")], ids=["camlake", "loop"])
def test_sides_are_commands_of_their_own(setup, tmp_path, start):
    setup = dataclasses.replace(setup, out=str(tmp_path / "out"))
    start(setup)
    assert len(annotated_s(Path(setup.out))) == 3
    with pytest.raises(CamlakeError, match=r"failed: .*no-such"):
        start(dataclasses.replace(setup, photographs=str(tmp_path / "no-such")))


def test_the_peers_versions_stand_in_the_file():
    assert set(comparison.versions()["peers"]) == set(comparison.PACKAGES)
