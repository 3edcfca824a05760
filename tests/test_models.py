"""Every network's maps and logits against the original torchvision module; what is refused; the entries."""

import csv
import inspect
from pathlib import Path

import cv2
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.models import registry
from pipeline.models.known_networks import known_networks
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.demo_network import DEMO, DemoNetwork
from pipeline.models.networks.network import Preprocessing
from pipeline.models.networks.own_networks import OWN_NETWORKS
from pipeline.models.networks.torchvision_networks import FAMILIES, REFUSED
from pipeline.models.weights.state_fitting import load_network
from schemas.errors import ModelError
from tests.networks import logits_of_maps, without_values

CAM_NAMES = [entry.name for entry in registry.entries() if entry.exact_maps]


def smallest_of_each_family() -> set[str]:
    smallest: dict[str, tuple[float, str]] = {}
    for row in known_networks():
        size = float(row["parameters (M)"]), str(row["network"])
        smallest[str(row["head"])] = min(size, smallest.get(str(row["head"]), size))
    return {name for _, name in smallest.values()}


QUICK = smallest_of_each_family() | {"resnet18", "vgg11_gap", "nin", "mnasnet0_5", "regnet_y_400mf", "googlenet"}

SMALL_PX = {"inception_v3": 107, "alexnet_plus_gap": 107, "nin": 107}
"""The smallest inputs with more than one map cell; 64 does for the others."""


def original(architecture: Architecture, size: int) -> nn.Module:
    """Return the whole network, as torchvision builds its own: random weights, BatchNorm's statistics as trained."""
    module = without_values(architecture)
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(7))
    state = module.state_dict()
    for key, value in state.items():
        if value.device.type != "meta":
            continue
        values = noise.repeat(-(-value.numel() // len(noise)))[: value.numel()].view(value.shape)
        if value.ndim > 1:
            state[key] = values * (1.5 / value[0].numel()) ** 0.5
        else:
            state[key] = 0.3 * values.tanh() + (1 if key.endswith(("weight", "running_var")) else 0)
    module.load_state_dict(state, assign=True)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.9
    module.train().requires_grad_(False)(normalized(pictures(size, 4), Preprocessing(size, (0.5,) * 3, (0.3,) * 3)))
    return module.eval()


def pictures(size: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def normalized(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def assert_same_logits(actual: Tensor, expected: Tensor) -> None:
    """Hold the largest difference below 1e-4 of each image's mean magnitude of logits."""
    size = expected.abs().mean(1, keepdim=True)
    assert expected.std(1).min() > 0, "logits that tell classes apart"
    assert not torch.equal(expected[0], expected[1]), "logits that tell images apart"
    assert ((actual - expected).abs() / size).max() <= 1e-4


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CAM_NAMES]
)
def test_the_map_of_every_class_averages_to_the_original_networks_logit(name: str) -> None:
    size = SMALL_PX.get(name, 64)
    entry = registry.get(name)
    module = original(Architecture(name, width=0.125) if entry.last_channels else entry.default_architecture, size)
    network = load_network(name, module.state_dict(), size)
    images = pictures(size)
    with torch.inference_mode():
        expected = module(normalized(images, network.preprocessing))
        features = network.features(images)
        assert features.shape == (2, network.channels, *network.map_size(size))
        assert features[0, 0].numel() > 1
        assert features.flatten(2).std(2).mean() > 0, "maps that tell places apart"
        logits, pooled = network.head(features)
        assert_same_logits(logits_of_maps(network.head, features), expected)
        assert_same_logits(logits, expected)
    assert network.classes == expected.shape[1]
    assert pooled.shape == (2, network.channels)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_inceptions_own_input_transform_is_kept(name: str) -> None:
    """torchvision's pretrained ones take ImageNet-normalized input and undo it inside; camlake normalizes once."""
    size = SMALL_PX.get(name, 64)
    module = original(Architecture(name), size)
    network = load_network(name, module.state_dict(), size)
    module.transform_input = True
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    as_torchvision = Preprocessing(size, tuple(transforms.mean), tuple(transforms.std))
    images = pictures(size)
    with torch.inference_mode():
        assert_same_logits(network(images).logits, module(normalized(images, as_torchvision)))


def test_every_network_of_torchvision_is_supported_or_refused() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    kinds = {name: inspect.signature(torchvision.models.get_model_builder(name)).return_annotation for name in names}
    own = set(OWN_NETWORKS)
    assert {name for name, kind in kinds.items() if kind in FAMILIES} == set(CAM_NAMES) - own
    known = {entry.name for entry in registry.entries()}
    assert {name for name, kind in kinds.items() if kind in REFUSED} == set(names) - known
    assert set(names) & own == {name for name, kind in kinds.items() if kind.__name__ in {"AlexNet", "VGG"}}


REFUSALS = {
    "alexnet": "three fully connected layers",
    "vgg16_bn": "three fully connected layers",
    "mobilenet_v3_small": "Hardswish",
    "vit_b_16": "class token",
    "maxvit_t": "Tanh",
}


@pytest.mark.parametrize(("name", "reason"), REFUSALS.items())
def test_a_head_without_exact_map_is_refused_with_a_network_that_has_one(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as refusal:
        load_network(name, None, None)
    message = str(refusal.value)
    assert message.startswith(f"{name} has no exact class activation map: ")
    assert "\n" not in message
    offered = message.rsplit("use ", 1)[1].split(" or ")
    assert set(offered) <= set(CAM_NAMES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnt50", "unknown network 'resnt50'; did you mean 'resnet50'?"),
        ("ResNet50", "unknown network 'ResNet50'; did you mean 'resnet50'?"),
        ("camlake-demo", "unknown network 'camlake-demo'; did you mean 'camlake_demo'?"),
        (
            "<xyz>",
            "unknown network '<xyz>'; `camlake models` lists all; others are timm/NAME, hf/FOLDER-OR-NAME and"
            " package.module:function",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(ModelError) as refusal:
        registry.get(name)
    assert str(refusal.value) == hint


def test_an_input_too_small_for_the_trunk_is_refused() -> None:
    message = "--image-size 48 is too small for inception_v3, whose own is 299; allowed: 75 or more"
    with pytest.raises(ModelError, match=message):
        load_network("inception_v3", None, 48)
    with pytest.raises(ModelError, match="--image-size 74 is too small for inception_v3"):
        load_network("inception_v3", None, 74)
    assert load_network("inception_v3", None, 75).map_size(75) == (1, 1)


@pytest.mark.parametrize(
    ("name", "map_hw", "channels", "image_size"),
    [
        ("resnet50", (7, 7), 2048, 224),
        ("inception_v3", (8, 8), 2048, 299),
        ("squeezenet1_1", (13, 13), 512, 224),
        ("swin_v2_t", (8, 8), 768, 256),
        ("regnet_y_128gf", (12, 12), 7392, 384),
        (DEMO, (14, 14), 112, 112),
    ],
)
def test_entries_by_hand(name: str, map_hw: tuple[int, int], channels: int, image_size: int) -> None:
    entry = registry.get(name)
    network = entry.outline()
    assert network.preprocessing == entry.preprocessing
    assert (network.name, network.map_size(image_size), network.channels) == (entry.name, map_hw, channels)
    assert (entry.name, entry.preprocessing.image_size) == (name, image_size)
    assert next(iter(entry.official_weights)) == "DEFAULT"
    assert entry.poolings == ("gap",)
    assert entry.family.about


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_16gf", "swin_t", "convnext_tiny", "squeezenet1_0", "alexnet"])
def test_entries_count_parameters_as_torchvision_states_them(name: str) -> None:
    weights = torchvision.models.get_model_weights(name)
    assert registry.get(name).outline().n_parameters == weights.DEFAULT.meta["num_params"]
    assert tuple(registry.get(name).official_weights) == ("DEFAULT", *(entry.name for entry in weights))


def test_the_number_of_classes_is_that_of_the_state() -> None:
    state = torchvision.models.squeezenet1_1(num_classes=7).state_dict()
    network = load_network("squeezenet1_1", state, 64)
    assert network.classes == 7
    assert network(pictures(64)).logits.shape == (2, 7)


def test_float32_values_are_shared_and_half_ones_become_float32() -> None:
    state = DemoNetwork(3).state_dict()
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    assert load_network(DEMO, state, None).head.linear.weight.data_ptr() == state["classifier.weight"].data_ptr()
    assert {value.dtype for value in load_network(DEMO, half, None).parameters()} == {torch.float32}


def test_images_of_other_shape_or_type_are_refused() -> None:
    network = load_network(DEMO, None, None)
    for images in (torch.zeros(1, 3, 112, 112, dtype=torch.uint8), torch.zeros(1, 112, 112, 3)):
        with pytest.raises(ValueError, match=r"allowed: uint8 \(B, H, W, 3\)"):
            network.features(images)


def test_a_network_takes_inputs_that_are_not_square() -> None:
    network = load_network(DEMO, None, None)
    assert network.features(torch.zeros(1, 64, 96, 3, dtype=torch.uint8)).shape == (1, 112, 8, 12)


def test_the_demo_network_is_small() -> None:
    assert registry.get(DEMO).outline().n_parameters * 4 <= 3_000_000


REAL = {"mobilenet_v2": 0.7, "squeezenet1_1": 0.6}
"""Top-1 accuracy to reach on the first 40 photographs; the reference on all 300 is .780 and .670."""


@pytest.mark.parametrize(("name", "least"), REAL.items())
def test_real_weights_name_what_real_photographs_show(name: str, least: float, shared: Path) -> None:
    real = shared / "real"
    state = load_file(real / "weights" / f"{name}.safetensors")
    module = torchvision.models.get_model(name, weights=None)
    module.load_state_dict(state)
    network = load_network(name, state, None)
    with (real / "ilsvrc300" / "annotations.csv").open() as file:
        truth = {row["file"]: set(row["imagenet_classes"].split(";")) for row in csv.DictReader(file)}
    files = list(truth)[:40]
    images = torch.stack([squashed(real / "ilsvrc300" / file, 224) for file in files])
    with torch.inference_mode():
        features = network.features(images)
        logits = network.head(features).logits
        assert_same_logits(logits, module.eval()(normalized(images, network.preprocessing)))
        assert_same_logits(logits_of_maps(network.head, features[:4]), logits[:4])
    right = [str(top1) in truth[file] for file, top1 in zip(files, logits.argmax(1).tolist(), strict=True)]
    assert sum(right) / len(right) >= least


def squashed(path: Path, size: int) -> Tensor:
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR))
