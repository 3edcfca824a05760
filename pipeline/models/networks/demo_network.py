"""The demo's own small CAM network."""

from torch import Tensor, nn

DEMO = "camlake_demo"
"""Name of the network; ``tests.benchmarks.train_demo`` trains it, and its weights are installed with camlake."""
IMAGE_SIZE = 112
"""Side of the input in pixels. Height and width are halved three times, which gives a 14×14 map as in the paper."""
SCENE_CLASSES = 10
"""Number of classes of the demo's scenes."""


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """Return a 3×3 convolution, or with ``stride`` 2 a 4×4 convolution, which halves height and width.

    A 3×3 kernel with stride 2 is centred on every second pixel, half a pixel beside the middle of its cell; three of
    them would move the map by 3 % of the image. A 4×4 kernel is centred on its cell.
    """
    side = 3 if stride == 1 else 4
    return nn.Conv2d(inputs, outputs, side, stride, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut around them (He et al. 2016); ``stride`` 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, second: int = 3) -> None:
        """``inputs`` and ``outputs`` are numbers of channels, ``second`` is the side of the second kernel, 1 or 3."""
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, second, padding=second // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of shape (B, outputs, h / stride, w / stride) without negative values."""
        result: Tensor = self.relu(self.body(maps) + self.shortcut(maps))
        return result


class DemoNetwork(nn.Module):
    """Convolutions, global average pooling, one linear layer: images (B, 3, 112, 112) to logits (B, C).

    ``features`` returns (B, 112, 14, 14) after a ReLU. The network has 0.40 million parameters, 1.6 MB in float32. The
    last two blocks end in 1×1 kernels; with 3×3 kernels a unit would see nearly the whole image, and the map of a small
    object would spread beyond the object.
    """

    def __init__(self, num_classes: int = SCENE_CLASSES) -> None:
        """Start from PyTorch's own random values."""
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 24, stride=2),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            ResidualBlock(24, 48, stride=2),
            ResidualBlock(48, 80, stride=2),
            ResidualBlock(80, 112, second=1),
            ResidualBlock(112, 112, second=1),
        )
        self.classifier = nn.Linear(112, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalized images (B, 3, H, W)."""
        result: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return result
