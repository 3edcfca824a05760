"""Localization methods: hand-worked networks, and PyTorch's autograd on one image and one class at a time."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.localize import methods
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.methods import METHODS, Backprop, GradCam, LayerCam, head_gradients
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.heads import ClassifierHead, ConvHead, LinearHead, NetworkHead, NormedHead
from pipeline.models.networks.network import CamNetwork, Preprocessing

RUNTIME = Runtime("cpu", "fp32", compile=False, threads=1, batch_size=8)
CHANNELS, CLASSES, SIDE = 6, 5, 32


def trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, CHANNELS, 3, stride=2, padding=1),
    )


def linear() -> nn.Linear:
    return nn.Linear(CHANNELS, CLASSES)


def fully_connected() -> ClassifierHead:
    hidden = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * CHANNELS, 7), nn.ReLU(inplace=True))
    return ClassifierHead(hidden, nn.Linear(7, CLASSES))


HEADS = {
    "gap": lambda: LinearHead(linear()),
    "gmp": lambda: LinearHead(linear(), "gmp"),
    "conv": lambda: ConvHead(nn.Conv2d(CHANNELS, CLASSES, 1)),
    "conv gmp": lambda: ConvHead(nn.Conv2d(CHANNELS, CLASSES, 1), "gmp"),
    "normed": lambda: NormedHead(nn.LayerNorm(CHANNELS), linear()),
    "fully connected": fully_connected,
}


@pytest.fixture(params=HEADS)
def network(request: pytest.FixtureRequest) -> CamNetwork:
    torch.manual_seed(3)
    layers = trunk()
    nn.init.normal_(layers[1].running_mean, std=0.1)
    head = HEADS[request.param]()
    built = CamNetwork("small", layers, head, Preprocessing(SIDE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    return built.eval().requires_grad_(False)


def pictures(n: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8))


KINDS = {name: METHODS[name] for name in ("cam", "gradcam", "layercam", "backprop")}
IDS = torch.tensor([[0, 3], [4, 1], [2, 2]])


def maps_of(method: str, network: CamNetwork, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    localization = METHODS[method](Engine(network, RUNTIME), network.head)
    with torch.no_grad():
        return localization.maps(localization.forward(pixels), ids)


def one_by_one(network: CamNetwork, pixels: torch.Tensor, ids: torch.Tensor, work) -> torch.Tensor:
    """Return ``work(network, picture, class)`` of each picture and class alone."""
    rows = [
        torch.stack([work(network, pixels[row : row + 1], class_id) for class_id in ids[row].tolist()])
        for row in range(len(pixels))
    ]
    return torch.stack(rows)


def feature_gradient(network: CamNetwork, picture: torch.Tensor, class_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    features = network.features(picture).detach().requires_grad_()
    network.head(features).logits[0, class_id].backward()
    return features.detach()[0], features.grad[0]


def plain_gradcam(network: CamNetwork, picture: torch.Tensor, class_id: int) -> torch.Tensor:
    features, gradient = feature_gradient(network, picture, class_id)
    result = torch.zeros(features.shape[1:])
    for feature, slope in zip(features, gradient, strict=True):
        result += slope.mean() * feature
    return result.clamp(min=0)


def plain_layercam(network: CamNetwork, picture: torch.Tensor, class_id: int) -> torch.Tensor:
    features, gradient = feature_gradient(network, picture, class_id)
    return (gradient.clamp(min=0) * features).sum(0).clamp(min=0)


def plain_saliency(network: CamNetwork, picture: torch.Tensor, class_id: int) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    inputs = ((picture.permute(0, 3, 1, 2) / 255 - mean) / std).requires_grad_()
    network.head(network.trunk(inputs)).logits[0, class_id].backward()
    sizes = inputs.grad[0].abs().amax(0)
    return F.avg_pool2d(sizes[None], 8)[0]


@pytest.mark.parametrize(
    ("method", "work"), [("gradcam", plain_gradcam), ("layercam", plain_layercam), ("backprop", plain_saliency)]
)
def test_maps_are_those_of_autograd_one_image_and_class_at_a_time(method, work, network):
    pixels = pictures()
    found = maps_of(method, network, pixels, IDS)
    expected = one_by_one(network, pixels, IDS, work)
    assert expected.amax() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_classes_and_vectors_are_the_same_whatever_the_method(network):
    pixels = pictures()
    with torch.no_grad():
        passes = [kind(Engine(network, RUNTIME), network.head).forward(pixels) for kind in KINDS.values()]
    for other in passes[1:]:
        assert torch.equal(other.logits, passes[0].logits)
        assert torch.equal(other.pooled, passes[0].pooled)


def test_behind_gap_gradcam_is_the_positive_part_of_cam_over_its_cells():
    torch.manual_seed(0)
    network = CamNetwork("small", trunk(), LinearHead(linear()), Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3))
    network.eval().requires_grad_(False)
    pixels = pictures()
    cam, gradcam = maps_of("cam", network, pixels, IDS), maps_of("gradcam", network, pixels, IDS)
    torch.testing.assert_close(gradcam, cam.relu() / 64)
    assert gradcam.count_nonzero() < gradcam.numel(), "CAM is negative somewhere"


def test_layercam_by_hand():
    # Behind max pooling the gradient is 1·weight at the greatest cell alone: 3·5 at one, −2·4 is left out.
    head = LinearHead(nn.Linear(2, 1, bias=True), "gmp").requires_grad_(False)
    head.linear.weight[:] = torch.tensor([[3.0, -2.0]])
    features = torch.tensor([[[[1.0, 5.0]], [[4.0, 0.0]]]])
    gradients = head_gradients(head, features, torch.tensor([[0]]))
    assert gradients.tolist() == [[[[[0, 3]], [[-2, 0]]]]]
    kinds = {
        kind: kind(None, head).maps(forward_pass_of(features), torch.tensor([[0]])) for kind in (LayerCam, GradCam)
    }
    assert kinds[LayerCam].tolist() == [[[[0, 15]]]]
    # Means of the gradients, 1.5 and −1: 1.5·1 − 4 < 0 and 1.5·5 − 0.
    assert kinds[GradCam].tolist() == [[[[0, 7.5]]]]


def forward_pass_of(features: torch.Tensor) -> methods.ForwardPass:
    return methods.ForwardPass(torch.empty(0), torch.empty(0), features)


def test_the_head_is_differentiated_in_parts_where_all_would_take_too_much(monkeypatch, network):
    pixels = pictures()
    expected = maps_of("gradcam", network, pixels, IDS)
    monkeypatch.setattr(methods, "HEAD_VALUES", 1)
    torch.testing.assert_close(maps_of("gradcam", network, pixels, IDS), expected, rtol=1e-5, atol=1e-7)


def test_backprop_looks_at_no_more_images_than_their_graphs_have_room_for(network):
    localization = Backprop(Engine(network, RUNTIME), network.head)
    assert [localization.images_at_once(pixels) for pixels in (224**2, 10 * 112**2, 10 * 224**2)] == [8, 3, 1]
    assert GradCam(None, network.head).images_at_once(224**2) is None


class Counting(nn.Module):
    """Counts the images that pass forward, and those whose gradients pass back."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_images = self.backward_images = 0

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        self.forward_images += len(maps)
        if maps.requires_grad:
            maps.register_hook(self._count)
        return maps.clone()

    def _count(self, gradient: torch.Tensor) -> None:
        self.backward_images += len(gradient)

    def __deepcopy__(self, memo: dict) -> "Counting":
        return self


@pytest.mark.parametrize(("method", "backward"), [("cam", 0), ("gradcam", 0), ("layercam", 0), ("backprop", 2)])
def test_each_image_passes_forward_once_and_back_once_for_each_class(method, backward, monkeypatch):
    torch.manual_seed(0)
    counting = Counting()
    layers = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, stride=4, padding=1), counting)
    network = CamNetwork("counted", layers, LinearHead(linear()), Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3))
    network.eval().requires_grad_(False)
    localizer = Localizer(network, CamRule(2, BoxRule("paper", (0.2,), 0.0)), RUNTIME, method=method)
    monkeypatch.setattr(methods, "TRUNK_PIXELS", {"cpu": 2 * SIDE**2})
    counting.forward_images = 0
    found = localizer(pictures(5), [(50, 60)] * 5, [localizer_cells(method)] * 5)
    assert len(found.maps.image) == 10
    assert (counting.forward_images, counting.backward_images) == (5, 5 * backward)


def localizer_cells(method: str) -> tuple[int, int]:
    return (4, 4) if method == "backprop" else (8, 8)


def test_no_method_leaves_gradients_or_wants_them_of_weights(network):
    pixels = pictures()
    for method in ("gradcam", "layercam", "backprop"):
        found = maps_of(method, network, pixels, IDS)
        assert not found.requires_grad
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("side", "cells"), [(224, 28), (299, 37), (32, 4), (100, 12), (36, 4)])
def test_backprop_has_a_cell_for_eight_pixels(side, cells, network):
    assert Backprop.map_hw(network, side) == (cells, cells)


def test_the_stored_size_is_that_of_the_maps():
    torch.manual_seed(0)
    network = CamNetwork("small", trunk(), LinearHead(linear()), Preprocessing(36, (0.5,) * 3, (0.5,) * 3))
    network.eval().requires_grad_(False)
    pixels = torch.randint(0, 256, (1, 36, 36, 3), dtype=torch.uint8)
    for name, kind in KINDS.items():
        assert maps_of(name, network, pixels, torch.tensor([[1]])).shape[2:] == kind.map_hw(network, 36)


def test_logits_of_chosen_classes_are_those_of_all(network):
    features = torch.randn(3, CHANNELS, 8, 8)
    logits = NetworkHead.logits_of(network.head, features, IDS)
    assert torch.equal(logits, network.head(features).logits.gather(1, IDS))
    torch.testing.assert_close(network.head.logits_of(features, IDS), logits)


@pytest.mark.parametrize(("precision", "likeness"), [("bf16", 0.98), ("fp16", 0.9999)])
def test_gradients_in_short_numbers_come_close(network, precision, likeness):
    pixels = pictures()
    # Slopes as small as those of a large network with many cells: float16 alone would round them to zero.
    last = network.head.conv if isinstance(network.head, ConvHead) else network.head.linear
    for parameter in last.parameters():
        parameter.mul_(1e-5)
    exact = maps_of("backprop", network, pixels, IDS)
    engine = Engine(network, Runtime("cpu", precision, compile=False, threads=1, batch_size=8))
    localization = Backprop(engine, network.head)
    with torch.no_grad():
        found = localization.maps(localization.forward(pixels), IDS)
    assert found.dtype == torch.float32
    found, exact = (1e6 * maps.flatten(2) for maps in (found, exact))
    assert F.cosine_similarity(found, exact, dim=2).min() > likeness
    assert (found.sum() / exact.sum()).item() == pytest.approx(1, abs=0.02)
