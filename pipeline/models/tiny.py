"""The demo's own small CAM network, ``camlake_demo``; `python -m jobs.train_demo` trains it."""

from torch import Tensor, nn

IMAGE_SIZE = 112
"""Side of the input in pixels; three halvings leave a 14×14 map, the size that the paper's networks have."""


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, arXiv 1512.03385); ``stride`` 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """``inputs`` and ``outputs`` are numbers of channels."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of shape (B, outputs, h / stride, w / stride), none of them negative."""
        result: Tensor = self.relu(self.body(maps) + self.shortcut(maps))
        return result


class TinyCam(nn.Module):
    """Convolutions, global average pooling, one linear layer: images (B, 3, 112, 112) to logits (B, C).

    ``features`` gives (B, 112, 14, 14) after a ReLU. 0.56 million parameters, so the float32 weights stay below 3 MB.
    """

    def __init__(self, num_classes: int = 10) -> None:
        """Start from PyTorch's own random values."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            ResidualBlock(24, 48, stride=2),
            ResidualBlock(48, 80, stride=2),
            ResidualBlock(80, 112),
            ResidualBlock(112, 112),
        )
        self.classifier = nn.Linear(112, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of normalized images (B, 3, H, W)."""
        result: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return result
