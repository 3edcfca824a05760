"""The networks that camlake builds itself, by name.

Names are the field's: the number of weighted layers, ``_bn`` with batch normalization, ``_gap`` the CAM form, in which
global pooling and one linear layer took the place of fully connected layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from pipeline.models.networks import classic, vgg
from pipeline.models.networks.architecture import GREATEST_WIDTH, WIDTH_STEPS, Architecture
from pipeline.models.networks.families import Family
from pipeline.models.networks.heads import Pooling


@dataclass(frozen=True)
class Design:
    """A network that camlake builds itself, at any width."""

    build: Callable[[Architecture], nn.Module]
    family: Family
    channels: int = 1024
    """Length at width 1 of what the last layer sees."""
    source: str | None = None
    """The torchvision network whose weights fit its convolutions at width 1."""
    prefix: str = ""
    """What its names of those layers have before torchvision's."""

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """What ``Architecture.pooling`` may be; of fully connected layers it says nothing."""
        return ("gap",) if self.family.refusal else ("gap", "gmp")

    def family_under(self, pooling: Pooling) -> Family:
        """Return how it is cut: the last layer is called after the pooling."""
        if pooling == "gap":
            return self.family
        return replace(
            self.family, linear="classifier.gmp", about=self.family.about.replace("GAP", "GMP"), pooling="gmp"
        )

    def width_of(self, channels: int) -> float:
        """Return the allowed width nearest to the one at which the last layer sees ``channels`` values."""
        steps = round(WIDTH_STEPS * channels / self.channels)
        return min(max(steps, 1) / WIDTH_STEPS, GREATEST_WIDTH)


def _pooling_family(about: str) -> Family:
    return Family("dropout", "classifier.gap", about)


def _fully_connected_family(instead: str) -> Family:
    refusal = f"three fully connected layers stand behind its last maps; give --method backprop, or use {instead}"
    return Family("avgpool", "classifier.6", "three fully connected layers: no exact map", refusal=refusal)


_NEW_MAPS = _pooling_family("GAP + linear; maps after the ReLU of a 3×3×1024 convolution")


def _vgg_designs() -> dict[str, Design]:
    """Return both forms of the six configurations; with batch normalization where torchvision has it."""
    found = {}
    for configuration, plain in vgg.NAMES.items():
        official = configuration in vgg.OFFICIAL
        for name, batch_norm in ((plain, False), *([(f"{plain}_bn", True)] if official else [])):
            source = name if official else None
            found[name] = Design(
                partial(vgg.vgg_fc, configuration, batch_norm), _fully_connected_family(f"{name}_gap"), 4096, source
            )
            found[f"{name}_gap"] = Design(partial(vgg.vgg_gap, configuration, batch_norm), _NEW_MAPS, source=source)
    return found


DESIGNS: dict[str, Design] = {
    **_vgg_designs(),
    "alexnet": Design(
        classic.alexnet_fc, _fully_connected_family("alexnet_gap or alexnet_plus_gap"), 4096, source="alexnet"
    ),
    "alexnet_gap": Design(classic.alexnet_gap, _NEW_MAPS, source="alexnet"),
    "alexnet_plus_gap": Design(
        classic.alexnet_plus_gap, _pooling_family("GAP + linear; maps after the last ReLU"), 512, source="alexnet"
    ),
    "googlenet_gap": Design(
        classic.googlenet_gap, replace(_NEW_MAPS, half_range=True), source="googlenet", prefix="features."
    ),
    "nin": Design(classic.nin, _pooling_family("1×1 convolution, ReLU, GAP; class maps after that ReLU, bias 0")),
}
