"""A network that waits as long as a GPU would compute, so that everything around the network can be measured.

Simulated: a forward pass sleeps for the time that a GPU would need, and every image of every batch gets the same
feature maps, logits and class maps. Real: their shapes, the softmax over all classes, the boxes, the rows.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.heads import HeadOutput, LinearHead
from pipeline.models.networks.network import CamNetwork, Preprocessing
from pipeline.models.weights.load_weights import Weights


@dataclass(frozen=True)
class FakeGpu:
    """The simulated network and its speed; the defaults are those of a ResNet-50 at 224 pixels."""

    images_per_s: float
    """Images/s of one actor, as measured on the real device."""
    image_size: int = 224
    """Side of the input in pixels, as decoding must deliver it; a small side makes decoding cheap in a simulation."""
    map_side: int = 7
    channels: int = 2048
    classes: int = 1000

    def __call__(self, state: dict[str, Tensor]) -> CamNetwork:
        """Return the network, as AnnotateSpec.load does; ``state`` is not used."""
        generator = torch.Generator().manual_seed(0)
        trunk = _SleepingTrunk(self, generator)
        head = _RepeatingHead(nn.Linear(self.channels, self.classes))
        with torch.no_grad():
            head.linear.weight.normal_(std=0.1, generator=generator)
            head.linear.bias.zero_()
        return CamNetwork("fake", trunk, head, self.preprocessing)

    @property
    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing of the network's input."""
        return Preprocessing(self.image_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    @property
    def weights(self) -> Weights:
        """Return weights without values, with the class names "class 0", "class 1" and so on."""
        return Weights(
            architecture=Architecture("fake", classes=self.classes),
            state={},
            source="simulated",
            sha256="0" * 64,
            key=None,
            labels=tuple(f"class {index}" for index in range(self.classes)),
            preprocessing=self.preprocessing,
        )


class _SleepingTrunk(nn.Module):
    """A trunk that waits for the time of a batch and returns the same K maps for each image: one bump a map."""

    _maps: Tensor

    def __init__(self, gpu: FakeGpu, generator: torch.Generator) -> None:
        super().__init__()
        self._images_per_s = gpu.images_per_s
        cells = torch.arange(gpu.map_side)
        centre_x, centre_y = gpu.map_side * torch.rand(2, gpu.channels, 1, 1, generator=generator)
        squared = (cells - centre_x) ** 2 + (cells[:, None] - centre_y) ** 2
        self.register_buffer("_maps", torch.exp(-squared / 2)[None])

    def forward(self, images: Tensor) -> Tensor:
        """Return maps (B, K, h, w) for B images. Images on the device "meta" ask only for the shape: no wait."""
        if images.device.type != "meta":
            time.sleep(len(images) / self._images_per_s)
        return self._maps.expand(len(images), -1, -1, -1)


class _RepeatingHead(LinearHead):
    """A linear head that computes the first image of a batch and repeats its results for the other images.

    On a GPU the other images would cost no CPU time.
    """

    def forward(self, features: Tensor) -> HeadOutput:
        """Return logits (B, C) and averages (B, K) of B equal images."""
        logits, pooled = super().forward(features[:1])
        return HeadOutput(logits.expand(len(features), -1), pooled.expand(len(features), -1))

    def class_maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Return M_c (B, n, h, w) of B equal images, for the classes in the first row of ``class_ids`` (B, n)."""
        maps = super().class_maps(features[:1], class_ids[:1])
        return maps.expand(len(features), -1, -1, -1)
