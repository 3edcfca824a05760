"""The networks that the study trains, and the ways in which each localizes."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.heads import Pooling
from schemas.errors import UsageError

MapWay = Literal["cam", "gradcam", "backprop"]
"""A method of ``pipeline.models.localize.methods`` that makes a map."""
Way = MapWay | Literal["regress"]
"""A way to make a box: from a map, or by the head that learned from boxes."""


RATES = {"googlenet": 5.0, "alexnet": 3.0}
"""Learning rates of other networks as multiples of VGG's rate; all forms of a network have the same rate.

They come from one trial each on 6,000 scenes and 8 epochs. Top-1 errors: VGG E does not learn at 1e-3 and has 0.60 at
3e-4 (6 epochs); VGG D has 0.37 at 6e-4; NIN does not learn at 1.5e-3 and has 0.69 at 6e-4; GoogLeNet has 0.65 at 6e-4,
0.49 at 1e-3, 0.30 at 3e-3; AlexNet has 0.54 at 6e-4, 0.41 at 2e-3.
"""
ALEXNET_CELLS = 1.5
"""Factor of the number of cells of AlexNet's maps.

AlexNet's poolings have no padding. On 112 pixels, the outermost of 6 cells have their centres 16 pixels from the edge,
while the code that places a map of 6 cells on the picture assumes 9 pixels.
"""


@dataclass(frozen=True)
class StudyNetwork:
    """A row of the study: a network, the truth it learns from and its ways of localizing."""

    key: str
    """The entry's name in file names and in ``--networks``."""
    title: str
    """The network's name in the papers."""
    network: str
    """The network's name for ``--model``."""
    ways: tuple[Way, ...] = ("cam",)
    """The ways in which the network localizes; the figure shows the first."""
    pooling: Pooling = "gap"
    rate: float = 1.0
    """Factor of --lr."""
    cells: float = 1.0
    """Factor of --cells."""

    @property
    def from_boxes(self) -> bool:
        """Return whether the network learns from boxes in addition to the labels."""
        return "regress" in self.ways

    def architecture(self, width: float, classes: int) -> Architecture:
        """Return the architecture for a relative ``width`` and the number of ``classes``."""
        return Architecture(self.network, self.pooling, width, classes)


_GOOGLENET: dict[str, Any] = {"network": "googlenet_gap", "rate": RATES["googlenet"]}
_ALEXNET: dict[str, Any] = {"rate": RATES["alexnet"], "cells": ALEXNET_CELLS}

NETWORKS = (
    StudyNetwork("vgg11_gap", "VGG A", "vgg11_gap", ("cam", "backprop")),
    StudyNetwork("vgg11_fc", "VGG A with FC layers", "vgg11", ("backprop", "gradcam")),
    StudyNetwork("vgg11_gmp", "VGG A with GMP", "vgg11_gap", pooling="gmp"),
    StudyNetwork("vgg11_boxes", "VGG A from boxes", "vgg11_gap", ("regress",)),
    StudyNetwork("googlenet_gap", "GoogLeNet", ways=("cam", "backprop"), **_GOOGLENET),
    StudyNetwork("googlenet_gmp", "GoogLeNet with GMP", pooling="gmp", **_GOOGLENET),
    StudyNetwork("googlenet_boxes", "GoogLeNet from boxes", ways=("regress",), **_GOOGLENET),
    StudyNetwork("alexnet_gap", "AlexNet", "alexnet_gap", ("cam", "backprop"), **_ALEXNET),
    StudyNetwork("alexnet_fc", "AlexNet with FC layers", "alexnet", ("backprop", "gradcam"), **_ALEXNET),
    StudyNetwork("alexnet_gmp", "AlexNet with GMP", "alexnet_gap", pooling="gmp", **_ALEXNET),
    StudyNetwork("nin", "NIN", "nin"),
    StudyNetwork("vgg19_gap", "VGG E", "vgg19_gap"),
    StudyNetwork("vgg16_gap", "VGG D", "vgg16_gap"),
    StudyNetwork("vgg16c_gap", "VGG C", "vgg16c_gap"),
    StudyNetwork("vgg13_gap", "VGG B", "vgg13_gap"),
    StudyNetwork("vgg11_lrn_gap", "VGG A-LRN", "vgg11_lrn_gap"),
)
"""All entries; the entries that a claim compares come first."""


def chosen_networks(names: str) -> tuple[StudyNetwork, ...]:
    """Return the entries with the comma-separated ``names``, all for ""; raises UsageError for an unknown name."""
    keys = [name.strip() for name in names.split(",") if name.strip()]
    known = [entry.key for entry in NETWORKS]
    for key in keys:
        if key not in known:
            raise UsageError(f"--networks {key!r}: allowed: {', '.join(known)}")
    return tuple(entry for entry in NETWORKS if not keys or entry.key in keys)


def tasks(entries: tuple[StudyNetwork, ...], n_seeds: int) -> list[tuple[StudyNetwork, int]]:
    """Return every training, all entries with seed 0 first, then with seed 1, and so on."""
    return [(entry, seed) for seed in range(n_seeds) for entry in entries]
