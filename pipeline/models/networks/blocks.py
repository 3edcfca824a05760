"""The parts of camlake's own networks: scaled channels, the two kinds of network, and the first values of layers.

A network takes normalized images (B, 3, H, W) and returns logits (B, C), as torchvision's networks do.
"""

from typing import Literal, Self

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.heads import Pooling, pooled

Fully = Literal["alexnet", "vgg"]
"""The two arrangements of fully connected layers."""


def scaled(channels: int, width: float) -> int:
    """Return ``channels`` times ``width``, rounded to a multiple of 8 and at least 8, which allows groups of 2."""
    return max(8, 8 * int(channels * width / 8 + 0.5))


def convolution(inputs: int, outputs: int, side: int = 3, groups: int = 1) -> list[nn.Module]:
    """Return a convolution of a ``side``×``side`` kernel that keeps height and width, and its ReLU."""
    return [nn.Conv2d(inputs, outputs, side, padding=side // 2, groups=groups), nn.ReLU(inplace=True)]


class PoolingNetwork(nn.Module):
    """Convolutions, global pooling and ONE linear layer; such a network has exact class activation maps.

    The last layer is ``classifier.gap`` or ``classifier.gmp``, so that the keys of a state dict name the pooling.
    """

    def __init__(
        self, features: nn.Sequential, layer: nn.Linear | nn.Conv2d, pooling: Pooling, dropout: float = 0.0
    ) -> None:
        """``layer`` is a linear layer behind the pooling, or a 1×1 convolution to C class maps in front of it (NIN).

        A ReLU follows the 1×1 convolution. ``dropout`` is the probability with which training sets a pooled value in
        front of a linear layer to zero.
        """
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.ModuleDict({pooling: layer})
        self.pooling = pooling
        initialize(self)

    @classmethod
    def with_new_maps(
        cls, features: nn.Sequential, channels: int, architecture: Architecture, dropout: float = 0.0
    ) -> Self:
        """Return the paper's CAM form: ``features``, a 3×3×1024 convolution, global pooling and a linear layer.

        ``features`` end in ``channels`` maps. The new convolution has no groups, as in the paper; the released networks
        have 2.
        """
        last = scaled(1024, architecture.width)
        conv, relu = convolution(channels, last)
        features.add_module("cam_conv", conv)
        features.add_module("cam_relu", relu)
        return cls(features, nn.Linear(last, architecture.classes), architecture.pooling, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalized images (B, 3, H, W)."""
        maps = self.features(images)
        layer = self.classifier[self.pooling]
        if isinstance(layer, nn.Conv2d):
            return pooled(F.relu(layer(maps)), self.pooling)
        result: Tensor = layer(self.dropout(pooled(maps, self.pooling)))
        return result


class FullyConnectedNetwork(nn.Module):
    """Convolutions, then three fully connected layers under torchvision's names; it has no exact class maps."""

    def __init__(self, features: nn.Sequential, channels: int, kind: Fully, architecture: Architecture) -> None:
        """``features`` end in ``channels`` maps; ``kind`` is the arrangement of the last layers."""
        super().__init__()
        self.features = features
        side = 6 if kind == "alexnet" else 7
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        hidden = scaled(4096, architecture.width)
        first, second = nn.Linear(channels * side**2, hidden), nn.Linear(hidden, hidden)
        last = nn.Linear(hidden, architecture.classes)
        if kind == "alexnet":
            layers = [nn.Dropout(), first, nn.ReLU(inplace=True), nn.Dropout(), second, nn.ReLU(inplace=True), last]
        else:
            layers = [first, nn.ReLU(inplace=True), nn.Dropout(), second, nn.ReLU(inplace=True), nn.Dropout(), last]
        self.classifier = nn.Sequential(*layers)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalized images (B, 3, H, W)."""
        result: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return result


def initialize(network: nn.Module) -> None:
    """Give every layer its first values, from torch's generator.

    Weights are drawn from a normal distribution that keeps the size of the values in the forward pass (He et al. 2015,
    arXiv 1502.01852, fan-in): for n inputs its deviation is sqrt(2/n) in convolutions and sqrt(1/n) in linear layers.
    Batch normalization starts with scale 1 and shift 0, every bias with 0. torchvision's choice for VGG, fan-out and
    0.01, learned a little slower: the loss of VGG-19 at width 0.125 on 120 scenes after 240 steps of AdamW with two
    seeds was 0.95 and 1.24, and 0.72 and 1.11 with this one.
    """
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if isinstance(layer, nn.Conv2d) else "linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
