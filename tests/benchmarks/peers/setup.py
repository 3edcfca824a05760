"""The network, photographs and options with which all sides of a comparison work."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.options.config import Precision

if TYPE_CHECKING:
    from tests.references.network_by_hand import ByHand

BATCH = 32
"""Images of a forward pass; the same as camlake's default on CPU."""


@dataclass(frozen=True)
class Setup:
    """The values that every side gets; they are plain values, because each side runs in a new process."""

    photographs: str
    """A folder of JPEG files."""
    out: str
    """The folder into which a side writes its tables."""
    model: str
    weights: str
    precision: Precision
    """The number type of the network; never ``auto``."""

    def paths(self) -> list[str]:
        """Return the paths of the photographs, sorted by name."""
        return sorted(str(path) for path in Path(self.photographs).iterdir())

    def network(self) -> "ByHand":
        """Load and return the network as tests.references.network_by_hand writes it."""
        from tests.references.network_by_hand import ByHand

        return ByHand.load(self.model, self.weights, self.precision)
