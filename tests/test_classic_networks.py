"""The networks that camlake builds itself: VGG A to E, AlexNet, GoogLeNet and NIN, with GAP and GMP, at any width."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models import registry
from pipeline.models.learn.conversion import build_network
from pipeline.models.networks import vgg
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.blocks import scaled
from pipeline.models.networks.demo_network import DEMO
from pipeline.models.networks.heads import ClassifierHead
from pipeline.models.networks.own_networks import OWN_NETWORKS
from pipeline.models.weights.state_fitting import architecture_of, load_network
from schemas.errors import ModelError
from tests.networks import SMALL, cut_by_default, images, seeded, state_of, without_values

SCALABLE = [name for name in OWN_NETWORKS if name != DEMO and not name.startswith("efficientnet")]
"""The networks that are built at any width."""
CAM_FORMS = [name for name in SCALABLE if OWN_NETWORKS[name].exact_maps]
CLASSIFIERS = [entry.name for entry in registry.entries() if not entry.exact_maps]
OFFICIAL = ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]
MAP_SIDES = {"alexnet_gap": 13, "alexnet_plus_gap": 11, "nin": 6}
"""At 224 pixels; the others' is 14. NIN's is that of its released ImageNet network."""


def test_the_rows_of_table_1() -> None:
    blocks = {name: [block.split() for block in row.split(" | ")] for name, row in vgg.TABLE_1.items()}
    weighted = {name: sum(entry != "LRN" for block in row for entry in block) + 3 for name, row in blocks.items()}
    assert weighted == {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}
    assert blocks["A-LRN"] == [["conv3-64", "LRN"], *blocks["A"][1:]]
    assert blocks["C"][:2] == blocks["B"][:2]
    assert blocks["C"][2:] == [
        [*block, extra] for block, extra in zip(blocks["B"][2:], ["conv1-256", "conv1-512", "conv1-512"], strict=True)
    ]
    assert blocks["D"] == [[entry.replace("conv1", "conv3") for entry in block] for block in blocks["C"]]
    assert blocks["E"] == blocks["D"][:2] + [[*block, block[-1]] for block in blocks["D"][2:]]


def test_response_normalization_stands_behind_the_first_relu() -> None:
    kinds = [type(layer) for layer in without_values(Architecture("vgg11_lrn_gap")).features]
    assert kinds[:4] == [nn.Conv2d, nn.ReLU, vgg.LocalResponseNorm, nn.MaxPool2d]
    assert kinds.count(vgg.LocalResponseNorm) == 1


def test_response_normalization_is_krizhevskys() -> None:
    values = torch.arange(1.0, 8.0).view(1, 7, 1, 1) * 100
    expected = [
        float(values[0, k]) / (2 + 1e-4 * float((values[0, max(0, k - 2) : k + 3] ** 2).sum())) ** 0.75
        for k in range(7)
    ]
    norm = vgg.LocalResponseNorm()
    torch.testing.assert_close(norm(values).flatten(), torch.tensor(expected))
    assert norm(values.bfloat16()).dtype == torch.bfloat16


def test_configuration_c_has_its_1x1_layers_where_d_has_3x3_ones() -> None:
    sides = {
        name: [
            layer.kernel_size[0]
            for layer in without_values(Architecture(name)).features
            if isinstance(layer, nn.Conv2d)
        ]
        for name in ("vgg16c", "vgg16")
    }
    assert sides["vgg16"] == [3] * 13
    assert [place for place, side in enumerate(sides["vgg16c"]) if side == 1] == [6, 9, 12]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fully_connected_forms_at_full_size(name: str) -> None:
    architecture = Architecture(name)
    network = cut_by_default(architecture, without_values(architecture))
    side = 6 if name.startswith("alexnet") else 7
    assert network.map_size(224) == (side, side)


@pytest.mark.parametrize("name", CAM_FORMS)
@pytest.mark.parametrize("pooling", ["gap", "gmp"])
def test_map_sizes_at_full_size(name: str, pooling: str) -> None:
    architecture = Architecture(name, pooling)
    network = cut_by_default(architecture, without_values(architecture))
    side = MAP_SIDES.get(name, 14)
    assert network.preprocessing.image_size == 224
    assert network.map_size(224) == (side, side)
    assert network.channels == (512 if name == "alexnet_plus_gap" else 1024)
    assert network.classes == 1000


@pytest.mark.parametrize("name", [*OFFICIAL, "alexnet"])
def test_fully_connected_forms_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    ours = without_values(Architecture(name))
    assert str(ours.features) == str(theirs.features)
    assert str(ours.classifier) == str(theirs.classifier)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    entry = registry.get(name)
    stated = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert entry.outline().n_parameters == stated
    assert (entry.exact_maps, entry.poolings, entry.source) == (False, ("gap",), name)


@pytest.mark.parametrize("name", OFFICIAL)
def test_cam_forms_have_torchvisions_convolutions_up_to_the_cut(name: str) -> None:
    with torch.device("meta"):
        theirs = list(torchvision.models.get_model(name).features)
    *ours, conv, relu = without_values(Architecture(f"{name}_gap")).features
    assert [str(layer) for layer in ours] == [str(layer) for layer in theirs[:-1]]
    assert isinstance(theirs[-1], nn.MaxPool2d)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.padding, conv.groups) == (
        512,
        1024,
        (3, 3),
        (1, 1),
        1,
    )
    assert isinstance(relu, nn.ReLU)


def test_parameters_of_two_cam_forms_by_hand() -> None:
    new = 512 * 1024 * 9 + 1024 + 1024 * 1000 + 1000
    assert registry.get("vgg16_gap").outline().n_parameters == 14_714_688 + new, (
        "13 convolutions, Simonyan & Zisserman's 14.7 M"
    )
    pointwise = (256**2 + 256) + 2 * (512**2 + 512) - 9 * (256**2 + 2 * 512**2) - 256 - 2 * 512
    assert registry.get("vgg16c_gap").outline().n_parameters == 14_714_688 + new + pointwise


@pytest.mark.parametrize("name", CAM_FORMS)
def test_gmp_logits_are_weighted_sums_of_the_greatest_features(name: str) -> None:
    """S_c = Σ_k w_k^c max f_k + b_c; the class maps are the sums that they are under GAP. Of NIN S_c = max M_c."""
    architecture = Architecture(name, "gmp", 0.125, 6)
    module = seeded(architecture)
    nn.init.normal_(module.classifier["gmp"].bias)
    network = cut_by_default(architecture, module).eval()
    every = torch.arange(6).expand(2, -1)
    with torch.inference_mode():
        pixels = images(107 if name in {"nin", "alexnet_plus_gap"} else 64)
        features = network.trunk(pixels)
        logits, vectors = network.head(features)
        maps = network.head.class_maps(features, every)
        torch.testing.assert_close(vectors, features.flatten(2).max(2).values)
        torch.testing.assert_close(logits, module(pixels))
        if name == "nin":
            torch.testing.assert_close(logits, maps.flatten(2).max(2).values)
        else:
            weight, bias = module.classifier["gmp"].weight, module.classifier["gmp"].bias
            torch.testing.assert_close(logits, vectors @ weight.T + bias)
            torch.testing.assert_close(maps, torch.einsum("ck,bkhw->bchw", weight, features))
            torch.testing.assert_close(network.head.bias_of(every), bias.expand(2, -1))
        assert features.flatten(2).std(2).max() > 0, "maps that tell places apart"
        assert not torch.allclose(logits, maps.mean((2, 3)) + network.head.bias_of(every)), "no GAP"


@settings(max_examples=40)
@given(st.sampled_from(sorted(SCALABLE)), st.sampled_from(["gap", "gmp"]), st.integers(1, 16), st.integers(1, 2000))
def test_a_state_says_how_its_network_is_built(name: str, pooling: str, sixteenths: int, classes: int) -> None:
    if pooling not in registry.get(name).poolings:
        pooling = "gap"
    architecture = Architecture(name, pooling, sixteenths / 16, classes)
    entry = registry.check(architecture)
    assert architecture_of(entry, without_values(architecture).state_dict()) == architecture


@pytest.mark.parametrize("name", ["vgg13_gap", "alexnet_plus_gap", "googlenet_gap", "nin", "vgg11_lrn", "alexnet"])
def test_every_allowed_width_is_found_again(name: str) -> None:
    for steps in (1, 21, 65, 256):
        architecture = Architecture(name, width=steps / 64, classes=3)
        assert architecture_of(registry.get(name), without_values(architecture).state_dict()) == architecture


@given(st.integers(1, 4096), st.integers(1, 256))
def test_scaled_channels(channels: int, steps: int) -> None:
    found = scaled(channels, steps / 64)
    assert found % 8 == 0
    assert found == 8 or abs(found - channels * steps / 64) <= 4
    assert scaled(8 * channels, 1.0) == 8 * channels


@pytest.mark.parametrize("name", SCALABLE)
def test_training_reaches_every_parameter(name: str) -> None:
    pooling = registry.get(name).poolings[-1]
    torch.manual_seed(2)
    module = build_network(Architecture(name, pooling, 0.125, 3))
    assert module.training
    module(images(107 if name in {"nin", "alexnet_plus_gap"} else 64, batch=4)).square().sum().backward()
    without = [key for key, value in module.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []
    dropouts = {layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)}
    expected = {0.0} if name in {"alexnet_gap", "alexnet_plus_gap", "googlenet_gap"} else {0.5}
    assert dropouts - {0.0} == expected - {0.0}


def test_the_same_seed_gives_the_same_network() -> None:
    assert all(
        torch.equal(one, two) for one, two in zip(state_of(SMALL).values(), state_of(SMALL).values(), strict=True)
    )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fully_connected_networks_are_admitted_only_where_no_map_is_needed(name: str) -> None:
    with pytest.raises(ModelError, match=f"^{name} has no exact class activation map: .* or use {name}_gap") as refusal:
        load_network(name, None, None)
    assert "\n" not in str(refusal.value)
    architecture = Architecture(name, width=0.125, classes=4)
    module = seeded(architecture)
    network = load_network(name, module.state_dict(), 64, exact_maps=False)
    assert isinstance(network.head, ClassifierHead)
    assert (network.classes, network.channels) == (4, 512)
    with torch.inference_mode():
        features = network.trunk(images(64))
        logits, hidden = network.head(features)
        assert torch.equal(logits, module(images(64)))
    assert hidden.shape == (2, 512)
    with pytest.raises(ModelError, match="no exact class activation map"):
        network.head.class_maps(features, torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ModelError, match="no exact class activation map"):
        network.head.bias_of(torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture("vgg16gap"), "unknown network 'vgg16gap'; did you mean 'vgg16_gap'?"),
        (Architecture("resnet50", "gmp"), "--pooling gmp: resnet50 has no choice of pooling; these have: vgg11_gap, "),
        (Architecture("vgg16", "gmp"), "--pooling gmp: vgg16 has no choice of pooling; these have: vgg11_gap, "),
        (Architecture("vgg16_gap", "max"), "--pooling max: allowed: gap, gmp"),
        (Architecture("resnet50", width=0.5), "--width 0.5: resnet50 is built at width 1 alone; vgg11, "),
        (Architecture("vgg16_gap", width=0.3), "--width 0.3: allowed: multiples of 1/64 up to 4, such as 0.125 or 0.5"),
        (Architecture("vgg16_gap", width=0), "--width 0: allowed: multiples of 1/64"),
        (Architecture("vgg16_gap", width=5), "--width 5: allowed: multiples of 1/64"),
        (Architecture("vgg16_gap", classes=0), "0 classes: allowed: 1 or more"),
        (Architecture("vit_b_16"), "vit_b_16 is not cut into feature maps and a head, as training and every --method"),
    ],
)
def test_what_can_not_be_built_is_refused_in_one_line(architecture: Architecture, message: str) -> None:
    with pytest.raises(ModelError) as refusal:
        build_network(architecture)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
