"""Which networks the study trains, and what is measured of each."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.heads import Pooling
from schemas.errors import UsageError

MapWay = Literal["cam", "gradcam", "backprop"]
"""How a map is made, by ``pipeline.models.localize.methods``."""
Way = MapWay | Literal["regress"]
"""How a box is made: cut from a map, or by the head that learned from boxes."""


RATES = {"googlenet": 5.0, "alexnet": 3.0}
"""What learning rates other than VGG's are multiples of it, the same for all forms of a network.

Of one trial each on 6,000 scenes, 8 epochs, top-1 error: VGG E by 1e-3 does not learn, by 3e-4 0.60 (6 epochs); VGG D
by 6e-4 0.37; NIN by 1.5e-3 does not learn, by 6e-4 0.69; GoogLeNet by 6e-4 0.65, by 1e-3 0.49, by 3e-3 0.30; AlexNet by
6e-4 0.54, by 2e-3 0.41.
"""
ALEXNET_CELLS = 1.5
"""How much finer AlexNet's maps are.

Its poolings have no padding: 6 cells of 112 pixels have their outermost centres 16 pixels inside, where a map of 6
cells is taken to have them at 9.
"""


@dataclass(frozen=True)
class StudyNetwork:
    """A row of the study: a network with what it learns from."""

    key: str
    """Its name in file names and of ``--networks``."""
    title: str
    """Its name as the papers have it."""
    network: str
    """As ``--model`` takes it."""
    ways: tuple[Way, ...] = ("cam",)
    """How it localizes; the first is what the figure shows."""
    pooling: Pooling = "gap"
    rate: float = 1.0
    """What --lr is multiplied with."""
    cells: float = 1.0
    """What --cells is multiplied with."""

    @property
    def from_boxes(self) -> bool:
        """Whether it learns from boxes beside the labels."""
        return "regress" in self.ways

    def architecture(self, width: float, classes: int) -> Architecture:
        """Return what to build."""
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
"""All of them, those that a claim compares first."""


def chosen_networks(names: str) -> tuple[StudyNetwork, ...]:
    """Return the entries of comma-separated names, all for ""; raises UsageError for one that is not there."""
    keys = [name.strip() for name in names.split(",") if name.strip()]
    known = [entry.key for entry in NETWORKS]
    for key in keys:
        if key not in known:
            raise UsageError(f"--networks {key!r}: allowed: {', '.join(known)}")
    return tuple(entry for entry in NETWORKS if not keys or entry.key in keys)


def tasks(entries: tuple[StudyNetwork, ...], n_seeds: int) -> list[tuple[StudyNetwork, int]]:
    """Return every training, all entries with seed 0 first, then with seed 1, and so on."""
    return [(entry, seed) for seed in range(n_seeds) for entry in entries]
