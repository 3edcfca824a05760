"""Heads on cases worked by hand: logits, class maps and their biases, and that the maps average to the logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.models.networks.heads import ClassifierHead, ConvHead, LinearHead, NormedHead, refitted
from schemas.errors import ModelError
from tests.networks import logits_of_maps


def linear_of(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    linear = nn.Linear(len(weight[0]), len(weight))
    linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
    return linear


FEATURES = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]], [[[2.0, 2.0]], [[4.0, 0.0]]]])
"""Two images, K = 2 maps of 1×2 cells, with averages (2, 1) and (2, 2)."""


def test_linear_head_by_hand() -> None:
    head = LinearHead(linear_of([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]], [0.5, 0.0, -1.0]))
    logits, pooled = head(FEATURES)
    assert pooled.tolist() == [[2, 1], [2, 2]]
    assert logits.tolist() == [[4.5, -1.5, 2.0], [6.5, -1.0, 5.0]]
    class_ids = torch.tensor([[2, 0], [1, 1]])
    assert head.class_maps(FEATURES, class_ids).tolist() == [[[[0, 6]], [[1, 7]]], [[[0, -2]], [[0, -2]]]]
    assert head.bias_of(class_ids).tolist() == [[-1, 0.5], [0, 0]]
    assert (head.channels, head.classes) == (2, 3)


def test_conv_head_by_hand() -> None:
    conv = nn.Conv2d(2, 2, 1)
    conv.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[..., None, None]
    conv.bias.data = torch.tensor([0.0, 0.5])
    head = ConvHead(conv)
    logits, pooled = head(FEATURES)
    assert pooled.tolist() == [[2, 1], [2, 2]]
    assert logits.tolist() == [[1, 0], [1, 1.25]]
    class_ids = torch.tensor([[0], [1]])
    assert head.class_maps(FEATURES, class_ids).tolist() == [[[[1, 1]]], [[[2.5, 0]]]], "a bias inside the ReLU"
    assert head.bias_of(class_ids).tolist() == [[0], [0]]
    assert (head.channels, head.classes) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conv_head_behind_a_short_trunk(dtype) -> None:
    conv = nn.Conv2d(2, 2, 1)
    # 1 + 2^-12 has too many bits for both types: the logits come from 1, the maps of chosen classes from the weight.
    conv.weight.data = torch.tensor([[1 + 2**-12, -1.0], [-1.0, 1.0]])[..., None, None]
    conv.bias.data = torch.tensor([0.0, 0.5])
    head = ConvHead(conv)
    short = head.behind_trunk_in(dtype)
    assert head.behind_trunk_in(torch.float32) is head
    assert short(FEATURES).logits.tolist() == [[1, 0], [1, 1.25]]
    assert short(FEATURES).logits.dtype == short(FEATURES).pooled.dtype == torch.float32
    assert short(FEATURES).pooled.tolist() == [[2, 1], [2, 2]]
    class_ids = torch.tensor([[0], [1]])
    assert short.class_maps(FEATURES, class_ids).tolist() == [[[[1 + 2**-12, 1 + 3 * 2**-12]]], [[[2.5, 0]]]]
    most = ConvHead(conv, "gmp").behind_trunk_in(dtype)
    assert most(FEATURES).logits.tolist() == [[1, 0], [2, 2.5]]
    linear = LinearHead(linear_of([[1.0, 2.0]], [0.5]))
    assert linear.behind_trunk_in(dtype) is linear, "little work, in float32"


def test_normed_head_by_hand() -> None:
    norm = nn.LayerNorm(2, eps=0.0)
    norm.weight.data, norm.bias.data = torch.tensor([2.0, 1.0]), torch.tensor([1.0, -1.0])
    head = NormedHead(norm, linear_of([[1.0, 0.0], [1.0, 3.0]], [0.25, 0.0]))
    first = FEATURES[:1]
    logits, pooled = head(first)  # averages 2 and 1: mean 1.5, deviation 0.5, normalized 1 and -1
    assert pooled.tolist() == [[3, -2]]
    assert logits.tolist() == [[3.25, -3]]
    class_ids = torch.tensor([[0, 1]])
    assert head.bias_of(class_ids).tolist() == [[1.25, -2]]
    # w*gamma = (2, 0), centered (1, -1); and (2, 3), centered (-0.5, 0.5); over the deviation 0.5
    assert head.class_maps(first, class_ids).tolist() == [[[[2, 2]], [[-1, -1]]]]


@given(
    st.sampled_from(["linear", "conv", "normed"]),
    st.integers(1, 4),
    st.integers(2, 9),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_heads_are_exact_for_every_shape(
    kind: str, batch: int, channels: int, height: int, width: int, classes: int, seed: int
) -> None:
    torch.manual_seed(seed)
    linear, conv = nn.Linear(channels, classes).double(), nn.Conv2d(channels, classes, 1).double()
    norm = nn.LayerNorm(channels).double()
    for values in (norm.weight, norm.bias):
        nn.init.normal_(values)
    heads = {"linear": LinearHead(linear), "conv": ConvHead(conv), "normed": NormedHead(norm, linear)}
    features = torch.randn(batch, channels, height, width, dtype=torch.float64)
    with torch.inference_mode():
        expected = heads[kind](features).logits
        torch.testing.assert_close(logits_of_maps(heads[kind], features), expected, rtol=1e-9, atol=1e-9)


def test_a_broken_image_leaves_the_others_of_its_batch_alone() -> None:
    head = LinearHead(linear_of([[1.0, 2.0]], [0.0]))
    features = FEATURES.clone()
    features[0, 0, 0, 0] = torch.nan
    assert head(features).logits.isnan().tolist() == [[True], [False]]
    assert head.class_maps(features, torch.zeros(2, 1, dtype=torch.int64)).isnan().any((1, 2, 3)).tolist() == [
        True,
        False,
    ]


def test_gmp_heads_by_hand() -> None:
    features = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    linear = nn.Linear(2, 1)
    linear.weight.data, linear.bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])
    class_ids = torch.zeros(1, 1, dtype=torch.int64)
    head = LinearHead(linear, "gmp")
    assert head(features).pooled.tolist() == [[3, 2]]
    assert head(features).logits.tolist() == [[7.5]], "3 + 2·2 + 0.5, from two places"
    assert head.class_maps(features, class_ids).tolist() == [[[[5, 3]]]]
    conv = nn.Conv2d(2, 1, 1)
    conv.weight.data, conv.bias.data = torch.tensor([[[[1.0]], [[2.0]]]]), torch.tensor([0.5])
    assert ConvHead(conv, "gmp")(features).logits.tolist() == [[5.5]], "one place"
    broken = torch.cat([features * torch.nan, features])
    assert head(broken).logits.isnan().tolist() == [[True], [False]]


NORM = nn.LayerNorm(2)


@pytest.mark.parametrize(
    "old",
    [LinearHead(nn.Linear(2, 5)), ConvHead(nn.Conv2d(2, 5, 1)), NormedHead(NORM, nn.Linear(2, 5))],
    ids=lambda head: type(head).__name__,
)
def test_another_linear_layer_stands_on_the_vectors_that_the_old_head_pooled(old) -> None:
    weight, bias = torch.tensor([[1.0, -2.0], [0.5, 3.0], [1.0, 1.0]]), torch.tensor([0.5, -1.0, 0.0])
    new = refitted(old, weight, bias)
    pooled = old(FEATURES).pooled
    assert torch.equal(new(FEATURES).pooled, pooled)
    assert torch.allclose(new(FEATURES).logits, pooled @ weight.T + bias)
    ids = torch.tensor([[0, 1, 2]] * 2)
    maps = new.class_maps(FEATURES, ids)
    assert torch.allclose(maps.mean((2, 3)) + new.bias_of(ids), new(FEATURES).logits, atol=1e-6)
    assert (maps < 0).any(), "no ReLU follows"


def test_what_can_not_be_refitted() -> None:
    with pytest.raises(ModelError, match="a head on 3 features; the network has 2"):
        refitted(LinearHead(nn.Linear(2, 5)), torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(ModelError, match="no exact class activation map"):
        refitted(ClassifierHead(nn.Flatten(), nn.Linear(4, 5)), torch.zeros(1, 4), torch.zeros(1))
