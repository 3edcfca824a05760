"""The size and form of a network."""

from dataclasses import dataclass

from pipeline.models.networks.heads import Pooling

WIDTH_STEPS = 64
"""Widths are multiples of 1/64, so that the width follows exactly from the number of inputs of the last layer."""
GREATEST_WIDTH = 4.0
"""Greatest width that is allowed."""


@dataclass(frozen=True)
class Architecture:
    """The values that build a network; ``pipeline.models.registry.check`` refuses values that can't be combined."""

    name: str
    """Name of the network, as for ``--model``."""
    pooling: Pooling = "gap"
    width: float = 1.0
    """Factor of the channels of every layer, which are then rounded to multiples of 8."""
    classes: int = 1000
    """C, the number of classes."""
