"""Networks as users write them, for ``--model tests.their_networks:NAME``; each is tiny and takes 32×32 pixels."""

import os
import signal

import torch
from torch import nn
from torch.nn import functional as F

INPUT = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def _seeded(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


class Plain(nn.Module):
    """Convolutions, average, dropout, one linear layer; the number of images is read from the input."""

    pretrained_cfg = INPUT

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, images):
        count = images.size(0)
        pooled = self.pool(self.body(images)).view(count, -1)
        return self.fc(F.dropout(pooled, 0.2, self.training))


class Branching(Plain):
    """Its forward pass looks at values, which torch.fx can't follow."""

    def forward(self, images):
        maps = self.body(images)
        if maps.sum() < 0:
            maps = -maps
        return self.fc(self.pool(maps).flatten(1))


class ChannelsLast(Plain):
    """Maps with the channels last, a layer normalization of the averages, a linear layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 3, bias=False)

    def forward(self, images):
        return self.fc(self.norm(self.body(images).permute(0, 2, 3, 1).mean((1, 2))))


class Affine(Plain):
    """A batch normalization behind the average, and two linear layers whose logits are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.other = nn.Linear(6, 3)

    def forward(self, images):
        pooled = self.norm(self.body(images).mean((2, 3)))
        return (self.fc(pooled) + self.other(pooled)) / 2


class Hidden(Plain):
    """Two layers around a Tanh behind the average."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, images):
        return self.fc(self.hidden(self.body(images).mean((2, 3))))


class Greatest(Plain):
    """Max pooling."""

    def forward(self, images):
        return self.fc(self.body(images).amax((2, 3)))


def plain(num_classes: int = 3):
    return _seeded(Plain(num_classes))


def bicubic():
    """Return a network whose pictures are scaled by another interpolation."""
    network = plain()
    network.pretrained_cfg = {**INPUT, "interpolation": "bicubic"}
    return network


def oblong():
    """Return a network for another shape of pictures."""
    network = plain()
    network.pretrained_cfg = {**INPUT, "input_size": (3, 32, 48)}
    return network


def branching():
    return _seeded(Branching())


def channels_last():
    return _seeded(ChannelsLast())


def affine():
    return _seeded(Affine())


def hidden():
    return _seeded(Hidden())


def greatest():
    return _seeded(Greatest())


class Flattened(Plain):
    """A linear layer of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6 * 16 * 16, 3)

    def forward(self, images):
        return self.fc(self.body(images).flatten(1))


def flattened():
    return _seeded(Flattened())


def no_network():
    return {"fc": 1}


def with_argument(path):
    return Plain()


_KEPT = _seeded(Plain())


def kept():
    """Return the same network each time."""
    return _KEPT


def failing():
    """Fail as the user's code may."""
    raise KeyError("nothing")


class Narrow(Plain):
    """Takes no input of another size."""

    def forward(self, images):
        if images.shape[-1] != 100:
            raise TypeError("100 pixels,\nnot others")
        return super().forward(images)


def narrow():
    return _seeded(Narrow())


def dies_in_workers() -> nn.Module:
    """A network that ends every process that makes it on Ray, as one that is too large for its machine."""
    if "RAY_RAYLET_PID" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return _seeded(Plain())
