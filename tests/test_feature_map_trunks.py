"""The codec of feature maps on each kind of trunk, with random weights: measured where it holds, else refused."""

import numpy as np
import pytest
import torch

from pipeline.arrays.feature_codec import head_maps
from pipeline.models.localize.feature_maps import refuse_unfit_network
from pipeline.models.networks.architecture import Architecture
from schemas.errors import UsageError
from tests.feature_lake import packed
from tests.networks import cut_by_default, seeded

SIDE = 128


def network_of(name):
    """Return a network whose batch norms know the means and deviations of noise, as those of trained ones do."""
    architecture = Architecture(name, classes=3)
    module = seeded(architecture)
    for one in module.modules():
        if isinstance(one, torch.nn.BatchNorm2d):
            one.momentum = None
    with torch.no_grad():
        module.train()(noise(8, seed=1))
    return cut_by_default(architecture, module.eval())


def noise(images, seed):
    """Return pictures (N, 3, SIDE, SIDE) of smooth noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121"])
def test_maps_behind_a_relu_keep_the_maps_of_any_head(name):
    network = network_of(name)
    refuse_unfit_network(network)
    with torch.no_grad():
        maps = network.trunk(noise(6, seed=2)).float()
    weights = np.random.default_rng(0).normal(size=(5, maps.shape[1])).astype(np.float32)
    true = np.einsum("ck,nkhw->nchw", weights, maps.numpy()).reshape(30, -1)
    means = maps.mean((2, 3)).numpy()
    found = head_maps(packed(maps, 3), 3, maps.shape[2:], means, weights).reshape(30, -1)
    alike = [np.corrcoef(one, other)[0, 1] for one, other in zip(true, found, strict=True)]
    assert np.median(alike) > 0.99
    assert np.allclose(found.mean(1), true.mean(1), atol=1e-4 * np.abs(true).max())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet_b0", "has feature maps below zero"),  # SiLU
        ("swin_t", "has feature maps below zero"),  # GELU, and a layer normalization behind it
        ("convnext_tiny", "normalizes its averages"),
    ],
)
def test_maps_of_both_signs_are_refused(name, said):
    with pytest.raises(UsageError, match=f"^--outputs feature_maps: {name} {said}; allowed: [^\n]*$"):
        refuse_unfit_network(network_of(name))


def test_networks_behind_a_hardswish_have_no_maps_at_all():
    with pytest.raises(UsageError, match="two layers around a Hardswish"):
        seeded(Architecture("mobilenet_v3_small", classes=3))
