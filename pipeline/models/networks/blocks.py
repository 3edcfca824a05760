"""What camlake's own networks are built of: scaled channels, the two kinds of network, first values.

A network here takes normalized images (B, 3, H, W) and gives logits (B, C), as torchvision's do.
"""

from typing import Literal, Self

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.heads import Pooling, pooled

Fully = Literal["alexnet", "vgg"]


def scaled(channels: int, width: float) -> int:
    """Return ``channels`` times ``width``, rounded to the nearest multiple of 8, at least 8: groups of 2 fit."""
    return max(8, 8 * int(channels * width / 8 + 0.5))


def convolution(inputs: int, outputs: int, side: int = 3, groups: int = 1) -> list[nn.Module]:
    """Return a convolution of a ``side``×``side`` kernel that keeps height and width, and its ReLU."""
    return [nn.Conv2d(inputs, outputs, side, padding=side // 2, groups=groups), nn.ReLU(inplace=True)]


class PoolingNetwork(nn.Module):
    """Convolutions, global pooling and ONE linear layer: what has exact class activation maps.

    The last layer is ``classifier.gap`` or ``classifier.gmp``, so that a state says which pooling it was trained with.
    """

    def __init__(
        self, features: nn.Sequential, layer: nn.Linear | nn.Conv2d, pooling: Pooling, dropout: float = 0.0
    ) -> None:
        """``layer`` is linear behind the pooling, or a 1×1 convolution to C class maps and a ReLU before it (NIN).

        ``dropout`` is the share of the pooled values that training hides from a linear layer.
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
        """Return the paper's CAM form: ``features``, which end in ``channels`` maps, 3×3×1024 convolution, linear.

        The new convolution has no groups, as in the paper; the released networks have 2.
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
    """Convolutions, then three fully connected layers under torchvision's names: it classifies and has no exact map."""

    def __init__(self, features: nn.Sequential, channels: int, kind: Fully, architecture: Architecture) -> None:
        """``channels`` are those that ``features`` end in; ``kind`` says whose layers follow."""
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

    Weights are normal and keep the size of what passes forward (He et al. 2015, arXiv 1502.01852, fan-in): deviation
    sqrt(2/n) of convolutions, sqrt(1/n) of linear layers, of n inputs each. Batch normalization has 1 and 0, every bias
    is 0. torchvision's choice for VGG, fan-out and 0.01, was a little behind: the loss of VGG-19 at width 0.125 on 120
    scenes was 0.95 and 1.24 after 240 steps of AdamW with two seeds, with this one 0.72 and 1.11.
    """
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if isinstance(layer, nn.Conv2d) else "linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
