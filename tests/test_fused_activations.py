"""Convolutions with their activation inside: which are fused, and that nothing but the time changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.localize.engine import Engine
from pipeline.models.localize.fused_activations import _FusedConvolution, can_fuse, with_fused_activations
from pipeline.models.localize.runtime import Runtime
from pipeline.models.weights.state_fitting import load_network


class Trunk(nn.Module):
    """Has convolutions that can be fused, and some that can't."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU6(inplace=True)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, dilation=2)
        self.twice = nn.Conv2d(4, 4, 1)
        self.shown = nn.Conv2d(4, 4, 1)
        self.round = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.read, self.hooked = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.hooked.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
        self.normed = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, images):
        maps = F.relu(self.grouped(self.act(self.first(images))))
        maps = torch.relu(self.twice(F.relu(self.twice(maps))))
        shown = self.shown(maps)
        maps = F.relu(shown) + shown
        maps = F.relu(self.hooked(F.relu(self.read(maps.to(self.read.weight.dtype)))))
        return self.normed(F.relu(self.same(F.relu(self.round(maps)))) + maps) + 1


def trunk():
    torch.manual_seed(0)
    made = Trunk().eval()
    made.first.weight.data *= 20  # so that ReLU6 cuts something off
    return made


def test_the_operator_is_where_it_was(monkeypatch):
    assert can_fuse(torch.float32), "torch.ops.mkldnn._convolution_pointwise has moved"
    assert not can_fuse(torch.float16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_fuse(torch.float32)


def test_a_convolution_is_fused_where_only_its_activation_takes_its_result():
    found = with_fused_activations(trunk())
    fused = {name for name, layer in found.named_modules() if isinstance(layer, _FusedConvolution)}
    assert fused == {"first", "grouped", "normed.0"}


def test_a_trunk_with_nothing_to_fuse_stays_as_it_is():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU())
    assert with_fused_activations(plain) is plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_results_are_the_same(dtype):
    if not can_fuse(dtype):
        pytest.skip("this processor has no convolutions in bf16")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    plain = trunk().to(dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = plain(images)
        assert (plain.act(plain.first(images)) == 6).any()
        found = with_fused_activations(plain)(images)
    assert found.dtype == dtype
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", ["first", "act", "normed.0"])
def test_a_weight_that_is_nan_stays_to_be_seen(place):
    """oneDNN's activations would make 0 of it."""
    made = trunk()
    layer = made.get_submodule(place)
    if place == "act":
        made.register_buffer("scale", torch.tensor(float("inf")))
    else:
        layer.weight.data[0, 0, 0, 0] = float("nan")
    found = with_fused_activations(made)
    assert not any(isinstance(part, _FusedConvolution) for part in found.modules())
    images = torch.randn(1, 3, 32, 32)
    assert place == "act" or found(images).isnan().any()


def test_gradients_are_those_of_the_plain_layers():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    given = [images.clone().requires_grad_() for _ in range(2)]
    for layers, inputs in zip((trunk(), with_fused_activations(trunk())), given, strict=True):
        layers(inputs).sum().backward()
    assert torch.allclose(given[0].grad, given[1].grad, atol=1e-6)
    assert given[0].grad.abs().max() > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_the_engine_fuses_what_it_does_not_compile(compiled):
    network = load_network("squeezenet1_1", None, 64)
    engine = Engine(network, Runtime("cpu", "fp32", compile=compiled, threads=1, batch_size=2))
    fused = [layer for layer in engine._eager.modules() if isinstance(layer, _FusedConvolution)]
    assert len(fused) == (0 if compiled else 25)
    assert not any(isinstance(layer, _FusedConvolution) for layer in network.modules())
