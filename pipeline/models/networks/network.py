"""The CAM network: it turns pixels into the last feature maps and the logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.networks.box_head import BoxHead
from pipeline.models.networks.heads import HeadOutput, NetworkHead, refitted
from pipeline.models.networks.shapes import shapes_only
from schemas.options.network_names import Interpolation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels, of red, green and blue in [0, 1]."""


@dataclass(frozen=True)
class Preprocessing:
    """The input that a network expects: RGB with (value / 255 − mean) / std in each channel."""

    image_size: int
    """Side of the square input, in pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bilinear"
    """How pictures are scaled to the input; never with antialiasing.

    Except that --tta and --scales scale the largest view's pixels to smaller views bilinearly, with antialiasing.
    """

    @property
    def can_be_meant(self) -> bool:
        """Whether the side is an integer above 0, all values are finite, and the deviations are above 0."""
        is_side = isinstance(self.image_size, int) and self.image_size > 0
        return is_side and all(map(math.isfinite, (*self.mean, *self.std))) and min(self.std) > 0


IMAGENET_INPUT = Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD)
"""The preprocessing that most networks for ImageNet expect."""


class Normalization(nn.Module):
    """Turns pixels into a trunk's input: (value / 255 − mean) / std in each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for buffer, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(buffer, 255 * torch.tensor(values), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32, channels last in memory, of RGB ``images`` (B, H, W, 3) uint8.

        Raises ValueError for images of another shape or type.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images: {images.dtype} of shape {tuple(images.shape)}; allowed: uint8 (B, H, W, 3)")
        # This computes whole rows of pixels at once. Loops over three values take three times as long, which is 5 % of
        # the time of MobileNetV2.
        width = images.shape[2]
        rows = images.flatten(2) - self.mean.repeat(width)
        return rows.div_(self.std.repeat(width)).view(images.shape).permute(0, 3, 1, 2)


class CamNetwork(nn.Module):
    """A trunk that ends in feature maps, and a head that is linear in them.

    It has no hooks and stores no data of an image. Maps come from the features of the same forward pass:

        features = network.features(images)
        logits, pooled = network.head(features)
        maps = network.head.class_maps(features, logits.topk(5).indices)
    """

    def __init__(
        self,
        name: str,
        trunk: nn.Module,
        head: NetworkHead,
        preprocessing: Preprocessing,
        box_head: BoxHead | None = None,
        stride16: str | None = None,
    ) -> None:
        """``trunk`` takes normalized images (B, 3, H, W) and returns the feature maps that ``head`` takes.

        ``box_head`` takes the same feature maps; a network that was trained without boxes has none. ``stride16`` is the
        name of the trunk's last tensor of stride 16; None where the name is not known.
        """
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.head = head
        self.box_head = box_head
        self.preprocessing = preprocessing
        self.stride16 = stride16
        self._normalization = Normalization(preprocessing)
        self._map_sizes: dict[int, tuple[int, int]] = {}

    def features(self, images: Tensor) -> Tensor:
        """Return the last feature maps (B, K, h, w) of RGB ``images`` (B, H, W, 3) uint8 on the network's device.

        The trunk alone limits H and W. Raises ValueError for images of another shape or type.
        """
        result: Tensor = self.trunk(self._normalization(images))
        return result

    def with_linear_layer(self, weight: Tensor, bias: Tensor) -> "CamNetwork":
        """Return the network with another linear layer (C, K), (C,) behind its pooling, and without a box head.

        Both networks share the trunk. Raises ModelError as ``refitted`` does.
        """
        head = refitted(self.head, weight, bias)
        return CamNetwork(self.name, self.trunk, head, self.preprocessing, stride16=self.stride16)

    def forward(self, images: Tensor) -> HeadOutput:
        """Return the logits (B, C) and the pooled vectors (B, K) of ``images`` (B, H, W, 3) uint8."""
        result: HeadOutput = self.head(self.features(images))
        return result

    @property
    def channels(self) -> int:
        """K, the number of feature maps."""
        return self.head.channels

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.head.classes

    @property
    def n_parameters(self) -> int:
        """Number of trained values, without buffers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def map_size(self, image_size: int) -> tuple[int, int]:
        """Return (h, w) of the feature maps of a square input of ``image_size`` pixels.

        Only shapes are computed. PyTorch raises RuntimeError where the input is too small for the trunk.
        """
        if image_size not in self._map_sizes:
            maps = shapes_only(self.trunk, image_size)
            self._map_sizes[image_size] = (maps.shape[2], maps.shape[3])
        return self._map_sizes[image_size]
