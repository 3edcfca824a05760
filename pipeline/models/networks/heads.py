"""The heads behind the last feature maps f_k(x, y) of a CAM network, and the class activation maps that follow.

Behind global average pooling (GAP) every head is linear in the maps of one image, so that for each class c, exactly,

    logit_c = mean_xy M_c(x, y) + bias_c        (Zhou et al. 2016, arXiv 1512.04150, eq. 1 and 2)

Behind global max pooling (GMP) the class maps are the same sums M_c = Σ_k w_k^c f_k, as the paper compares them, but
the logit depends on the greatest value of each feature map alone, whose position may differ for each k:

    logit_c = Σ_k w_k^c max_xy f_k(x, y) + b_c

Shapes: B images, K feature maps of h×w cells, C classes, n chosen classes an image. ``features`` have the number type
of the head's weights. A NaN in an image's features makes only the logits and maps of the same image NaN.
"""

import copy
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import ModelError

Pooling = Literal["gap", "gmp"]
"""Global average pooling or global max pooling."""


class HeadOutput(NamedTuple):
    """The results of one forward pass for B images."""

    logits: Tensor
    """(B, C)."""
    pooled: Tensor
    """(B, K) input of the linear layer."""


def pooled(maps: Tensor, pooling: Pooling) -> Tensor:
    """Return the mean, or the greatest value, of each of the ``maps`` (B, K, h, w), of shape (B, K)."""
    return maps.mean((2, 3)) if pooling == "gap" else maps.amax((2, 3))


class NetworkHead(nn.Module, ABC):
    """Turns feature maps into logits and into the map of any class."""

    channels: int
    """K, the number of feature maps it takes."""
    classes: int
    """C, the number of logits it gives."""

    @abstractmethod
    def forward(self, features: Tensor) -> HeadOutput:
        """Return the logits (B, C) and the pooled vectors (B, K) of ``features`` (B, K, h, w)."""

    def behind_trunk_in(self, dtype: torch.dtype) -> "NetworkHead":
        """Return the head for a trunk that computes in ``dtype``; a head of little work stays in float32."""
        return self

    def logits_of(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Return the logits (B, n) of ``class_ids`` (B, n) int64, which may differ from image to image."""
        result: HeadOutput = self(features)
        return result.logits.gather(1, class_ids)

    @abstractmethod
    def class_maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Return the maps M_c (B, n, h, w) of ``class_ids`` (B, n) int64, which may differ from image to image."""

    @abstractmethod
    def bias_of(self, class_ids: Tensor) -> Tensor:
        """Return the difference (B, n) between the logit of each class and the mean of its map."""


def _weighted_sums(weights: Tensor, features: Tensor) -> Tensor:
    """Return Σ_k weights[b, n, k] · features[b, k, y, x], of shape (B, n, h, w)."""
    return torch.einsum("bnk,bkhw->bnhw", weights, features)


class PointwiseLinear(nn.Module):
    """A 1×1 convolution behind the pooling, in the form of the linear layer that it then is; it shares the weights."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """``conv`` is 1×1, without groups."""
        super().__init__()
        self.conv = conv
        self.in_features, self.out_features = conv.in_channels, conv.out_channels

    @property
    def weight(self) -> Tensor:
        """(C, K)."""
        return self.conv.weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """(C,), or None."""
        return self.conv.bias

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the logits (B, C) of vectors (B, K)."""
        return F.linear(vectors, self.weight, self.bias)


class LinearHead(NetworkHead):
    """Global pooling, then one linear layer: M_c = Σ_k w_k^c f_k, bias_c = b_c, or 0 where the layer has no bias."""

    def __init__(self, linear: nn.Linear | PointwiseLinear, pooling: Pooling = "gap") -> None:
        super().__init__()
        self.linear = linear
        self.channels, self.classes = linear.in_features, linear.out_features
        self.pooling = pooling

    def forward(self, features: Tensor) -> HeadOutput:
        """Return the logits and the pooled feature maps."""
        vectors = pooled(features, self.pooling)
        return HeadOutput(self.linear(vectors), vectors)

    def class_maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Return M_c."""
        return _weighted_sums(self.linear.weight[class_ids], features)

    def bias_of(self, class_ids: Tensor) -> Tensor:
        """Return b_c."""
        bias: Tensor | None = self.linear.bias
        return self.linear.weight.new_zeros(class_ids.shape) if bias is None else bias[class_ids]


class ConvHead(NetworkHead):
    """One 1×1 convolution to C maps, ReLU, then global pooling (SqueezeNet, NIN).

    The class maps are those of the convolution after its ReLU: M_c = max(0, Σ_k w_k^c f_k + b_c), nowhere negative, and
    bias_c = 0. With max pooling logit_c = max_xy M_c(x, y). No layer takes a pooled vector; ``HeadOutput.pooled`` is
    the pooled input of the convolution.
    """

    def __init__(self, conv: nn.Conv2d, pooling: Pooling = "gap") -> None:
        """``conv`` is 1×1, with or without a bias."""
        super().__init__()
        self.conv = conv
        self.channels, self.classes = conv.in_channels, conv.out_channels
        self.pooling = pooling

    def forward(self, features: Tensor) -> HeadOutput:
        """Return the C class maps and the K feature maps, both pooled."""
        maps = F.relu(self.conv(features))
        return HeadOutput(pooled(maps, self.pooling), pooled(features, self.pooling))

    def behind_trunk_in(self, dtype: torch.dtype) -> NetworkHead:
        """Return a head whose convolution for all C classes runs in ``dtype``."""
        return self if dtype == torch.float32 else _ShortConvHead(self, dtype)

    def logits_of(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Return the pooled maps of the chosen classes."""
        maps = self.class_maps(features, class_ids)
        return pooled(maps, self.pooling)

    def class_maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Return M_c of the chosen classes."""
        sums = _weighted_sums(self.conv.weight[class_ids].flatten(2), features)
        return F.relu(sums if self.conv.bias is None else sums + self.conv.bias[class_ids][..., None, None])

    def bias_of(self, class_ids: Tensor) -> Tensor:
        """Return zeros: the bias of the convolution is already in the map, inside the ReLU."""
        return self.conv.weight.new_zeros(class_ids.shape)


class _ShortConvHead(ConvHead):
    """A ConvHead that computes all C class maps in bf16 or fp16, as autocast would, and sums their cells in float32.

    In float32 these maps take two fifths of SqueezeNet's time behind a trunk in bf16. The maps of chosen classes stay
    in float32, so that their means differ from the logits by the rounding of ``dtype``.
    """

    def __init__(self, head: ConvHead, dtype: torch.dtype) -> None:
        super().__init__(head.conv, head.pooling)
        self._short = copy.deepcopy(head.conv).to(dtype)

    def forward(self, features: Tensor) -> HeadOutput:
        """Return the C class maps and the K feature maps, both pooled."""
        maps = F.relu(self._short(features.to(self._short.weight.dtype)))
        logits = maps.mean((2, 3), dtype=torch.float32) if self.pooling == "gap" else maps.amax((2, 3)).float()
        return HeadOutput(logits, pooled(features, self.pooling))


class NormedHead(LinearHead):
    """Global average pooling, layer normalization over the K averages, then one linear layer (ConvNeXt).

    With the averages p_k, their mean μ and their deviation σ = sqrt(var + ε), both of one image, the logit is
    Σ_k w_k^c (γ_k (p_k − μ)/σ + β_k) + b_c. For one image the logit is affine in p, so that exactly

        M_c = Σ_k v_k^c f_k / σ,   v_k^c = w_k^c γ_k − mean_j(w_j^c γ_j),   bias_c = b_c + Σ_k w_k^c β_k
    """

    def __init__(self, norm: nn.LayerNorm, linear: nn.Linear | PointwiseLinear) -> None:
        """``norm`` normalizes the K averages and has a scale and a shift."""
        super().__init__(linear)
        self.norm = norm

    def forward(self, features: Tensor) -> HeadOutput:
        """Return the logits and the normalized averages of the feature maps."""
        norm = self.norm
        vectors = F.layer_norm(features.mean((2, 3)), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return HeadOutput(self.linear(vectors), vectors)

    def class_maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Return M_c, with the deviation σ of each image."""
        weights = self.linear.weight[class_ids] * self.norm.weight
        centered = weights - weights.mean(2, keepdim=True)
        deviation = (features.mean((2, 3)).var(1, correction=0) + self.norm.eps).sqrt()
        return _weighted_sums(centered / deviation[:, None, None], features)

    def bias_of(self, class_ids: Tensor) -> Tensor:
        """Return b_c + Σ_k w_k^c β_k."""
        return super().bias_of(class_ids) + self.linear.weight[class_ids] @ self.norm.bias


def refitted(head: NetworkHead, weight: Tensor, bias: Tensor) -> NetworkHead:
    """Return a head with the linear layer ``weight`` (C, K), ``bias`` (C,) on the pooled vectors that ``head`` gives.

    Its class maps are M_c = Σ_k w_k^c f_k; behind normalized averages they are those of ``NormedHead``. No ReLU follows
    them, whatever ``head`` has. Raises ModelError for another K, and for fully connected layers, which have no maps.
    """
    if weight.shape[1] != head.channels:
        raise ModelError(f"a head on {weight.shape[1]} features; the network has {head.channels}")
    if not isinstance(head, LinearHead | ConvHead):
        raise ModelError("fully connected layers have no exact class activation map")
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    return NormedHead(head.norm, linear) if isinstance(head, NormedHead) else LinearHead(linear, head.pooling)


class ClassifierHead(NetworkHead):
    """Fully connected layers (AlexNet, VGG), which give logits but no exact class maps.

    ``channels`` is the length of the last hidden layer; ``HeadOutput.pooled`` holds its values.
    """

    def __init__(self, hidden: nn.Module, linear: nn.Linear) -> None:
        """``hidden`` turns feature maps (B, K, h, w) into the vectors that ``linear`` takes."""
        super().__init__()
        self.hidden = hidden
        self.linear = linear
        self.channels, self.classes = linear.in_features, linear.out_features

    def forward(self, features: Tensor) -> HeadOutput:
        """Return the logits and the values of the last hidden layer."""
        vectors = self.hidden(features)
        return HeadOutput(self.linear(vectors), vectors)

    def class_maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Raise ModelError: there are no class maps."""
        raise ModelError("fully connected layers have no exact class activation map")

    def bias_of(self, class_ids: Tensor) -> Tensor:
        """Raise ModelError: there are no class maps whose means could differ from the logits."""
        raise ModelError("fully connected layers have no exact class activation map")
