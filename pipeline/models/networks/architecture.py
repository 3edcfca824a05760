"""The size and form of a network."""

from dataclasses import dataclass

from pipeline.models.networks.heads import Pooling

WIDTH_STEPS = 64
"""Widths are multiples of 1/64, so that the width follows exactly from the number of inputs of the last layer."""
GREATEST_WIDTH = 4.0
"""Greatest width that is allowed."""


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a network; ``pipeline.models.registry.check`` says which values can be combined."""

    name: str
    """As ``--model`` takes it."""
    pooling: Pooling = "gap"
    width: float = 1.0
    """Factor of the channels of every layer, which are then rounded to multiples of 8."""
    classes: int = 1000
    """C, the number of classes."""
