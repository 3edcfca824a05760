"""Boxes of fused maps: by hand with NumPy and OpenCV, in any batch, beside class maps that stay as they are."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.foreground import Foreground, ForegroundCard
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.views import make_views
from pipeline.models.networks.network import CamNetwork
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.state_fitting import load_network
from tests.references.opencv_boxes import component_boxes, upsampled

RUNTIME = Runtime("cpu", "fp32", compile=False, threads=1, batch_size=8)
TENSOR = "features.4.relu"
"""Of the demo's network: 80 channels of 14×14 cells at 112 pixels."""
RULE = BoxRule("auto", (0.4,), 0.0)


@pytest.fixture(scope="module")
def network() -> CamNetwork:
    weights = load_weights("camlake_demo", "DEFAULT", None)
    return load_network("camlake_demo", weights.state, None, preprocessing=weights.preprocessing)


def foreground(combination="sumprod", channels=80) -> Foreground:
    vector = F.normalize(torch.randn(channels, generator=torch.Generator().manual_seed(2)), dim=0)
    mean = torch.rand(channels, generator=torch.Generator().manual_seed(3)) * 0.1
    return Foreground(ForegroundCard("camlake_demo", "", TENSOR, (14, 14), combination), mean, vector)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).integers(0, 256, (count, 7, 7, 3), np.uint8)
    return torch.from_numpy(np.stack([cv2.resize(one, (112, 112), interpolation=cv2.INTER_CUBIC) for one in noise]))


def localize(network, pixels, rule=RULE, valid=(14, 14), topk=2, classes=None, **options):
    options = {"foreground": foreground(), **options}
    localizer = Localizer(network, CamRule(topk, rule), RUNTIME, **options)
    return localizer(pixels, [(112, 112)] * len(pixels), [valid] * len(pixels), classes)


def scaled(grid: np.ndarray) -> np.ndarray:
    return (grid - grid.min()) / (grid.max() - grid.min())


def by_hand(network, pixels, combination) -> tuple[np.ndarray, np.ndarray]:
    """Return figure/ground maps and fused maps of the most probable class."""
    learned = foreground(combination)
    with torch.no_grad():
        features = network.features(pixels)
        tensor = network.trunk[0][:5](network._normalization(pixels)).numpy().astype(np.float64)
        best = network.head(features).logits.argmax(1, keepdim=True)
        class_maps = network.head.class_maps(features, best)[:, 0].numpy()
    unit = tensor / np.linalg.norm(tensor, axis=1, keepdims=True)
    figure = np.einsum("bkhw,k->bhw", unit - learned.mean.numpy()[:, None, None], learned.vector.numpy())
    fused = []
    for heat, ground in zip(class_maps, figure, strict=True):
        one, other = scaled(cv2.resize(heat, ground.shape[::-1], interpolation=cv2.INTER_LINEAR)), scaled(ground)
        ways = {"product": one * other, "sum": (one + other) / 2}
        fused.append(scaled((ways | {"sumprod": ways["product"] + ways["sum"]})[combination]))
    return figure, np.stack(fused)


@pytest.mark.parametrize("combination", ["product", "sum", "sumprod"])
def test_boxes_are_those_by_hand(network, combination):
    pixels = pictures(6)
    found = localize(network, pixels, topk=1, foreground=foreground(combination))
    figure, fused = by_hand(network, pixels, combination)
    assert found.figure.maps == pytest.approx(figure, abs=1e-4)
    assert len(found.boxes.map) == 6
    for box, grid in zip(found.boxes.xyxy, fused, strict=True):
        boxes, _ = component_boxes(upsampled(grid.astype(np.float32), (1120, 1120)), 0.4)
        assert box == pytest.approx(boxes[0] / 10, abs=0.6)


def test_class_maps_and_all_else_stay_as_they_are(network):
    pixels = pictures(4)
    fused, plain = localize(network, pixels), localize(network, pixels, foreground=None)
    for name in ("image", "rank", "class_id"):
        assert np.array_equal(getattr(fused.maps, name), getattr(plain.maps, name))
    assert fused.maps.heat == pytest.approx(plain.maps.heat, abs=1e-4)
    assert fused.pooled == pytest.approx(plain.pooled, abs=1e-5)
    assert plain.figure is None
    assert not np.allclose(fused.boxes.xyxy, plain.boxes.xyxy)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "backprop"])
def test_other_methods_fuse_the_same_way(network, method):
    found = localize(network, pictures(3), method=method)
    assert found.figure.maps.shape == (3, 14, 14)
    assert found.boxes.xyxy.max() <= 112


def test_a_batch_of_one_is_a_batch_of_many(network):
    pixels = pictures(5)
    together = localize(network, pixels)
    alone = [localize(network, pixels[one : one + 1]) for one in range(5)]
    assert together.boxes.xyxy == pytest.approx(np.concatenate([one.boxes.xyxy for one in alone]), abs=1e-2)


def test_padding_takes_no_part(network):
    pixels = pictures(2)
    pixels[:, 56:] = 128
    found = localize(network, pixels, valid=(7, 14))
    assert found.figure.valid_hw.tolist() == [[found.figure.maps.shape[1] // 2, found.figure.maps.shape[2]]] * 2
    assert found.boxes.area_frac.max() <= 1
    noisy = pixels.clone()
    noisy[:, 100:] = 0
    others = localize(network, noisy, valid=(7, 14))
    assert others.boxes.map.tolist() == found.boxes.map.tolist()


def test_several_views_have_one_figure_map(network):
    views = make_views(112, "flip", (1.0, 1.5))
    localizer = Localizer(network, CamRule(1, RULE), RUNTIME, views=views, foreground=foreground())
    pixels = torch.from_numpy(np.stack([cv2.resize(one, (168, 168)) for one in pictures(2).numpy()]))
    found = localizer(pixels, [(168, 168)] * 2, [(21, 21)] * 2)
    assert len(found.figure.maps) == 2
    mirrored = localizer(pixels.flip(2), [(168, 168)] * 2, [(21, 21)] * 2)
    assert mirrored.figure.maps == pytest.approx(found.figure.maps[:, :, ::-1], abs=1e-3)


def test_a_picture_of_one_colour_has_its_boxes(network):
    found = localize(network, torch.full((1, 112, 112, 3), 90, dtype=torch.uint8))
    assert found.finite.all()
    assert len(found.boxes.map) == 2


def test_an_image_whose_tensor_is_not_finite_has_no_maps(network):
    broken = foreground()
    found = localize(network, pictures(2), foreground=Foreground(broken.card, broken.mean * torch.inf, broken.vector))
    assert not found.finite.any()
    assert not len(found.boxes.map)


def test_only_probable_classes_the_first_and_named_ones_have_boxes(network):
    pixels = pictures(4)
    rule = BoxRule("auto", (0.4,), 0.0, min_prob=1.0)
    found = localize(network, pixels, rule=rule)
    assert found.maps.rank[found.boxes.map].tolist() == [0] * 4
    assert len(found.maps.rank) == 8
    last = [[int(ids[1])] for ids in found.maps.class_id.reshape(4, 2)]
    named = localize(network, pixels, rule=rule, classes=[last[0], [], [], last[3]])
    assert named.maps.image[named.boxes.map].tolist() == [0, 0, 1, 2, 3, 3]


class TestAuto:
    def boxes(self, *rows, threshold=0.5):
        return BoxRule("auto", (threshold,), 0.0).cut(torch.tensor(rows)).boxes_xyxy.tolist()

    def test_the_level_lies_between_minimum_and_maximum(self):
        assert self.boxes([[10.0, 10.0, 12.0, 12.0]]) == [[2.0, 0.0, 4.0, 1.0]]
        assert self.boxes([[-3.0, -3.0, -1.0, -1.0]]) == [[2.0, 0.0, 4.0, 1.0]], "no positive value is needed"

    def test_a_constant_map_is_the_whole_picture(self):
        assert self.boxes([[0.0, 0.0], [0.0, 0.0]]) == [[0.0, 0.0, 2.0, 2.0]]
