"""A training starts from another network's values: torchvision's convolutions to the bit, a head of its own."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from pipeline.models import registry
from pipeline.models.learn.conversion import build_network, convert
from pipeline.models.networks.architecture import Architecture
from pipeline.models.weights.state_fitting import fit_state
from schemas.errors import ModelError
from tests.networks import SMALL, images, state_of, without_values


def torchvision_network(name: str) -> nn.Module:
    """Return torchvision's network with random values, those of FC layers left out: on the meta device."""
    with torch.device("meta"):
        module = torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    generator = torch.Generator().manual_seed(5)
    state = {key: value for key, value in module.state_dict().items() if not key.startswith("classifier.")}
    for key, value in state.items():
        if value.is_floating_point():
            values = torch.rand(value.shape, generator=generator) + 0.5
            state[key] = values if value.ndim == 1 else (values - 1) * (12 / value[0].numel()) ** 0.5
        else:
            state[key] = torch.ones(value.shape, dtype=value.dtype)
    module.load_state_dict(state, strict=False, assign=True)
    return module.eval()


FIRST_LAYERS: dict[str, tuple[str, Callable[[nn.Module], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    **{
        f"vgg{layers}{norms}_gap": (
            f"vgg{layers}{norms}",
            lambda theirs: theirs.features[:-1],
            lambda ours: ours.features[:-2],
        )
        for layers in (11, 13, 16, 19)
        for norms in ("", "_bn")
    },
    "alexnet_gap": ("alexnet", lambda theirs: theirs.features[:-1], lambda ours: ours.features[:-2]),
    "alexnet_plus_gap": ("alexnet", lambda theirs: theirs.features[:10], lambda ours: ours.features[:10]),
    "googlenet_gap": (
        "googlenet",
        lambda theirs: nn.Sequential(*list(theirs.children())[:13]),
        lambda ours: ours.features[:-2],
    ),
}
"""Source, its layers up to the cut (conv5, of AlexNet* conv4, inception4e), and the converted network's."""
NEW = {
    "alexnet_plus_gap": [10, 13, 15],
}
"""Indices of the convolutions that AlexNet* has of its own: conv5, conv6, conv7."""


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_converted_convolutions_give_the_same_bits(name: str) -> None:
    source, before_cut, converted_layers = FIRST_LAYERS[name]
    theirs = torchvision_network(source)
    architecture = Architecture(name, classes=5)
    converted = convert(architecture, theirs.state_dict())
    ours = build_network(architecture, converted.state).eval()
    with torch.inference_mode():
        pixels = images(48)
        expected = before_cut(theirs)(pixels)
        assert expected.std((2, 3)).max() > 0, "maps that tell places apart"
        assert torch.equal(converted_layers(ours)(pixels), expected)
    convolutions = [f"features.{index}" for index in NEW.get(name, ["cam_conv"])]
    assert converted.new == tuple(
        f"{layer}.{kind}" for layer in [*convolutions, "classifier.gap"] for kind in ("weight", "bias")
    )


def test_conversion_takes_a_checkpoint_of_other_classes_or_pooling() -> None:
    state = state_of(SMALL)
    other = Architecture("vgg16_gap", "gmp", 0.125, 7)
    converted = convert(other, state)
    assert converted.new == ("classifier.gmp.weight", "classifier.gmp.bias")
    assert torch.equal(converted.state["features.cam_conv.weight"], state["features.cam_conv.weight"])
    assert build_network(other, converted.state)(images(32)).shape == (2, 7)


def test_a_registered_network_gets_a_new_head() -> None:
    state = torchvision.models.resnet18().state_dict()
    converted = convert(Architecture("resnet18", classes=4), state)
    assert converted.new == ("fc.weight", "fc.bias")
    assert torch.equal(converted.state["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert converted.state["fc.weight"].shape == (4, 512)


def test_a_state_is_copied_for_training_and_must_be_of_the_architecture() -> None:
    state = state_of(SMALL)
    module = build_network(SMALL, state)
    with torch.no_grad():
        module.classifier["gap"].bias.add_(1)
    assert not state["classifier.gap.bias"].any()
    message = r"the weights are those of vgg16_gap \(gap, width 0.125, 3 classes\), not of vgg16_gap \(gap, width 0.25"
    with pytest.raises(ModelError, match=message):
        build_network(Architecture("vgg16_gap", width=0.25, classes=3), state)


def test_weights_that_start_no_such_network_are_refused() -> None:
    with pytest.raises(ModelError, match=r"--width 0.125: these weights are of width 1 and fit no other"):
        convert(Architecture("alexnet_gap", width=0.125), without_values(Architecture("alexnet")).state_dict())
    with pytest.raises(ModelError, match=r"don't fit vgg11: .*; they fit alexnet$"):
        convert(Architecture("vgg11_gap"), without_values(Architecture("alexnet")).state_dict())
    with pytest.raises(ModelError, match=r"don't fit vgg16_gap: 'classifier.gap.weight' is missing; they fit vgg16$"):
        fit_state(registry.get("vgg16_gap"), without_values(Architecture("vgg16")).state_dict())
    with pytest.raises(ModelError, match=r"don't fit vgg11_lrn_gap: .*; they fit vgg11$"):
        convert(Architecture("vgg11_lrn_gap"), without_values(Architecture("vgg11")).state_dict())
    with pytest.raises(
        ModelError, match=r"don't fit nin: 'classifier.gap.weight' is \(1024,\), expected a row a class$"
    ):
        fit_state(
            registry.get("nin"),
            state_of(Architecture("nin", width=0.125)) | {"classifier.gap.weight": torch.zeros(1024)},
        )
