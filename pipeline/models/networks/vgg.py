"""The VGG networks of Simonyan & Zisserman 2015 (arXiv 1409.1556), all built from one table."""

from torch import Tensor, nn

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.blocks import FullyConnectedNetwork, PoolingNetwork, convolution, scaled

TABLE_1 = {
    "A": "conv3-64 | conv3-128 | conv3-256 conv3-256 | conv3-512 conv3-512 | conv3-512 conv3-512",
    "A-LRN": "conv3-64 LRN | conv3-128 | conv3-256 conv3-256 | conv3-512 conv3-512 | conv3-512 conv3-512",
    "B": "conv3-64 conv3-64 | conv3-128 conv3-128 | conv3-256 conv3-256 | conv3-512 conv3-512 | conv3-512 conv3-512",
    "C": "conv3-64 conv3-64 | conv3-128 conv3-128 | conv3-256 conv3-256 conv1-256"
    " | conv3-512 conv3-512 conv1-512 | conv3-512 conv3-512 conv1-512",
    "D": "conv3-64 conv3-64 | conv3-128 conv3-128 | conv3-256 conv3-256 conv3-256"
    " | conv3-512 conv3-512 conv3-512 | conv3-512 conv3-512 conv3-512",
    "E": "conv3-64 conv3-64 | conv3-128 conv3-128 | conv3-256 conv3-256 conv3-256 conv3-256"
    " | conv3-512 conv3-512 conv3-512 conv3-512 | conv3-512 conv3-512 conv3-512 conv3-512",
}
"""The convolutions of each configuration as the paper's table 1 writes them, kernel side and channels.

| is max pooling with stride 2, which follows the last block too.
"""

NAMES = {"A": "vgg11", "A-LRN": "vgg11_lrn", "B": "vgg13", "C": "vgg16c", "D": "vgg16", "E": "vgg19"}
"""Name of each configuration, after its number of layers with weights."""

OFFICIAL = ("A", "B", "D", "E")
"""The configurations that torchvision has, with and without batch normalization."""


class LocalResponseNorm(nn.LocalResponseNorm):
    """The normalization of Krizhevsky et al. 2012: a / (2 + 1e-4 · sum of a² over 5 neighbouring maps)^0.75.

    PyTorch takes the mean of a² where the paper takes the sum, so alpha is 5e-4. PyTorch has no bf16 for this layer on
    CPU, so the sums are float32.
    """

    def __init__(self) -> None:
        super().__init__(5, alpha=5e-4, beta=0.75, k=2.0)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalized ``maps`` (B, K, h, w) in the number type of ``maps``."""
        result: Tensor = super().forward(maps.float())
        return result.to(maps.dtype)


def layers(configuration: str, width: float, batch_norm: bool) -> tuple[list[nn.Module], int]:
    """Return the layers of a row of ``TABLE_1`` up to its last max pooling, and the number of channels they end in.

    Their order is torchvision's. LRN follows the ReLU, as in Krizhevsky et al.
    """
    found: list[nn.Module] = []
    channels = 3
    for block in TABLE_1[configuration].split(" | "):
        for entry in block.split():
            if entry == "LRN":
                found.append(LocalResponseNorm())
                continue
            side, outputs = map(int, entry.removeprefix("conv").split("-"))
            conv, relu = convolution(channels, scaled(outputs, width), side)
            channels = scaled(outputs, width)
            found += [conv, nn.BatchNorm2d(channels), relu] if batch_norm else [conv, relu]
        found.append(nn.MaxPool2d(2, 2))
    return found, channels


def vgg_gap(configuration: str, batch_norm: bool, architecture: Architecture) -> PoolingNetwork:
    """Return the CAM form: a 3×3×1024 convolution and one linear layer replace the last max pooling and the FC layers.

    At 224 pixels the maps are 14×14. Dropout of 0.5 precedes the linear layer, as in the released network.
    """
    found, channels = layers(configuration, architecture.width, batch_norm)
    return PoolingNetwork.with_new_maps(nn.Sequential(*found[:-1]), channels, architecture, dropout=0.5)


def vgg_fc(configuration: str, batch_norm: bool, architecture: Architecture) -> FullyConnectedNetwork:
    """Return the paper's own form, with two hidden layers of 4096 units."""
    found, channels = layers(configuration, architecture.width, batch_norm)
    return FullyConnectedNetwork(nn.Sequential(*found), channels, "vgg", architecture)
