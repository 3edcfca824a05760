"""What a network is before it has values."""

from dataclasses import dataclass

from pipeline.models.networks.heads import Pooling

WIDTH_STEPS = 64
"""Widths are multiples of 1/64, so that the length of a network's last layer tells its width exactly."""
GREATEST_WIDTH = 4.0


@dataclass(frozen=True)
class Architecture:
    """Enough to build a network; see ``pipeline.models.registry.check`` for what goes together."""

    name: str
    """As ``--model`` takes it."""
    pooling: Pooling = "gap"
    width: float = 1.0
    """Multiplies the channels of every layer; they are rounded to multiples of 8."""
    classes: int = 1000
