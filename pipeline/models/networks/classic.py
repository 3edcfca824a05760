"""The other networks of Zhou et al. 2016 in their CAM forms: AlexNet, AlexNet*, GoogLeNet, and NIN in its own form."""

from collections import OrderedDict

from torch import nn
from torchvision.models.googlenet import BasicConv2d, Inception

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.blocks import FullyConnectedNetwork, PoolingNetwork, convolution, scaled


def _alexnet_layers(width: float, conv5: int = 256) -> tuple[list[nn.Module], int]:
    """Return torchvision's layers of AlexNet up to the ReLU behind conv5, and the number of channels of conv5."""
    first, second, third, fourth, fifth = (scaled(n, width) for n in (64, 192, 384, 256, conv5))
    found = [
        nn.Conv2d(3, first, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        *convolution(first, second, side=5),
        nn.MaxPool2d(3, stride=2),
        *convolution(second, third),
        *convolution(third, fourth),
        *convolution(fourth, fifth),
    ]
    return found, fifth


def alexnet_fc(architecture: Architecture) -> FullyConnectedNetwork:
    """Return AlexNet in torchvision's form: one column, no response normalization (Krizhevsky 2014)."""
    found, channels = _alexnet_layers(architecture.width)
    features = nn.Sequential(*found, nn.MaxPool2d(3, stride=2))
    return FullyConnectedNetwork(features, channels, "alexnet", architecture)


def alexnet_gap(architecture: Architecture) -> PoolingNetwork:
    """Return AlexNet up to conv5, a 3×3×1024 convolution and one linear layer; 13×13 maps at 224 pixels."""
    found, channels = _alexnet_layers(architecture.width)
    return PoolingNetwork.with_new_maps(nn.Sequential(*found), channels, architecture)


def alexnet_plus_gap(architecture: Architecture) -> PoolingNetwork:
    """Return AlexNet* with its two more convolutions; 11×11 maps at 224 pixels.

    As in the released network, conv5 has 384 maps; 3×3 max pooling with stride 1 and conv6 and conv7 with 512 maps in 2
    groups follow, and no convolution with 1024 maps.
    """
    found, channels = _alexnet_layers(architecture.width, conv5=384)
    last = scaled(512, architecture.width)
    more = [
        nn.MaxPool2d(3, stride=1),
        *convolution(channels, last, groups=2),
        *convolution(last, last, groups=2),
    ]
    return PoolingNetwork(nn.Sequential(*found, *more), nn.Linear(last, architecture.classes), architecture.pooling)


INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": None,
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
}
"""Szegedy et al. 2015 (arXiv 1409.4842), table 1: channels of 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection.

Where the paper has a 5×5 kernel, torchvision has a 3×3 kernel, and so does camlake.
"""


def googlenet_gap(architecture: Architecture) -> PoolingNetwork:
    """Return GoogLeNet up to inception4e, a 3×3×1024 convolution and one linear layer; 14×14 maps at 224 pixels."""
    width = architecture.width
    first, third = scaled(64, width), scaled(192, width)
    features: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=BasicConv2d(3, first, kernel_size=7, stride=2, padding=3),
        maxpool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        conv2=BasicConv2d(first, first, kernel_size=1),
        conv3=BasicConv2d(first, third, kernel_size=3, padding=1),
        maxpool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
    )
    channels = third
    for name, branches in INCEPTIONS.items():
        if branches is None:
            features[name] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            continue
        one, reduce3, three, reduce5, five, projected = (scaled(n, width) for n in branches)
        features[name] = Inception(channels, one, reduce3, three, reduce5, five, projected)
        channels = one + three + five + projected
    return PoolingNetwork.with_new_maps(nn.Sequential(features), channels, architecture)


def nin(architecture: Architecture) -> PoolingNetwork:
    """Return the network in network of Lin et al. 2014 (arXiv 1312.4400) in its released size for ImageNet.

    It has four blocks of a convolution and two 1×1 convolutions, each with a ReLU. The last 1×1 convolution gives the
    class maps, 6×6 at 224 pixels. Dropout of 0.5 precedes the fourth block.
    """
    first, second, third, fourth = (scaled(n, architecture.width) for n in (96, 256, 384, 1024))
    features = nn.Sequential(
        nn.Conv2d(3, first, 11, stride=4),
        nn.ReLU(inplace=True),
        *_two_pointwise(first),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        *convolution(first, second, side=5),
        *_two_pointwise(second),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        *convolution(second, third),
        *_two_pointwise(third),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.Dropout(0.5),
        *convolution(third, fourth),
        *convolution(fourth, fourth, side=1),
    )
    return PoolingNetwork(features, nn.Conv2d(fourth, architecture.classes, 1), architecture.pooling)


def _two_pointwise(channels: int) -> list[nn.Module]:
    return [*convolution(channels, channels, side=1), *convolution(channels, channels, side=1)]
