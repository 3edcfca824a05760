"""Where the stride-16 tensor is, and a direction as a file."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.models import registry
from pipeline.models.localize.foreground import (
    Foreground,
    ForegroundCard,
    foreground_bytes,
    foreground_of,
    refuse_unfit,
    stride16_name,
    values_sha256,
)
from pipeline.models.localize.stride16 import Stride16Trunk, find_stride16
from pipeline.models.networks.network import CamNetwork
from schemas.errors import ModelError

PLACES = {
    "mobilenet_v2": ("features.14.conv.0", 576, 14),
    "squeezenet1_1": ("features.12.cat", 512, 13),
    "resnet18": ("layer3.1.relu_1", 256, 14),
    "resnet50": ("layer4.0.relu", 512, 14),
    "efficientnet_b0": ("features.6.0.block.0", 672, 14),
    "convnext_tiny": ("features.6.0.permute_1", 384, 14),
    "vgg16_gap": ("features.cam_relu", 1024, 14),
}


def network(name: str) -> CamNetwork:
    torch.manual_seed(0)
    entry = registry.get(name)
    architecture = entry.default_architecture
    return entry.cam_network(architecture, entry.construct(architecture), entry.preprocessing).eval()


@pytest.mark.parametrize("name", PLACES)
def test_the_stride_16_tensor_is_found_by_its_shape(name: str):
    outline = registry.get(name).outline().eval()
    side_px = outline.preprocessing.image_size
    assert find_stride16(outline.trunk, side_px) == stride16_name(outline) == PLACES[name][0]


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_networks_without_such_a_tensor(name: str):
    assert stride16_name(registry.get(name).outline().eval()) is None


def test_a_trunk_whose_graph_cannot_be_followed_has_none():
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    assert find_stride16(Branching(), 224) is None


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "resnet18"])
def test_both_come_from_one_pass_and_no_hook_stays(name: str):
    made = network(name)
    _, channels, side = PLACES[name]
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, tensor = Stride16Trunk(made.trunk, PLACES[name][0])(images)
        assert torch.equal(features, made.trunk(images))
    assert tensor.shape == (2, channels, side, side)
    assert not any(module._forward_hooks for module in made.modules())
    if name == "mobilenet_v2":
        with torch.no_grad():
            assert torch.equal(tensor, made.trunk[0][14].conv[0](made.trunk[0][:14](images)))


def example() -> Foreground:
    card = ForegroundCard("mobilenet_v2", "0" * 64, "features.14.conv.0", (14, 14), facts={"images": 300})
    return Foreground(card, torch.linspace(0, 1, 5), torch.tensor([0.0, 0.6, 0.8, 0.0, 0.0]))


def test_a_file_gives_back_what_was_written():
    written = example()
    read = foreground_of(foreground_bytes(written), "a file")
    assert read.card == written.card
    assert torch.equal(read.mean, written.mean)
    assert torch.equal(read.vector, written.vector)
    assert read.digest == written.digest


def test_the_digest_changes_with_card_and_values():
    made = example()
    others = (
        Foreground(replace(made.card, threshold=0.4), made.mean, made.vector),
        Foreground(made.card, made.mean, -made.vector),
    )
    assert len({made.digest, *(other.digest for other in others)}) == 3


def test_files_that_are_none_are_refused():
    whole = foreground_bytes(example())
    for content in (b"", whole[:-3], whole.replace(b"camlake.foreground", b"camlake.foregroumd")):
        with pytest.raises(ModelError, match="a file is no whole file of `camlake foreground`"):
            foreground_of(content, "a file")
    made = example()
    for broken in (
        Foreground(made.card, made.mean, made.vector * torch.nan),
        Foreground(made.card, made.mean[1:], made.vector),
        Foreground(made.card, made.mean, made.vector * 0),
    ):
        with pytest.raises(ModelError, match="its vectors can't be meant"):
            foreground_of(foreground_bytes(broken), "a file")
    for card in (replace(made.card, threshold=1.0), replace(made.card, right_share=0.0)):
        with pytest.raises(ModelError, match="allowed: between 0 and 1"):
            foreground_of(foreground_bytes(Foreground(card, made.mean, made.vector)), "a file")


def test_a_direction_fits_its_network_and_weights_alone():
    made = network("squeezenet1_1")
    state = made.state_dict()
    card = replace(example().card, network="squeezenet1_1", weights=values_sha256(state))
    refuse_unfit(Foreground(card, example().mean, example().vector), made, state, "a file")
    with pytest.raises(ModelError, match="a file was learned of mobilenet_v2, not of squeezenet1_1"):
        refuse_unfit(example(), made, state, "a file")
    state[next(iter(state))] = state[next(iter(state))] + 1
    with pytest.raises(ModelError, match="with other weights"):
        refuse_unfit(Foreground(card, example().mean, example().vector), made, state, "a file")
