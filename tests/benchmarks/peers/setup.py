"""What all sides of a comparison work on."""

from dataclasses import dataclass
from pathlib import Path

from jobs.suites.photographs import weights_file
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import Precision
from tests.benchmarks.command import resolved_precision
from tests.references.network_by_hand import ByHand

BATCH = 32
"""Images of a forward pass, as camlake's default on CPU."""


@dataclass(frozen=True)
class Setup:
    """What every side works on: plain values, because each side runs in a process of its own."""

    photographs: Path
    """A folder of JPEG files."""
    out: Path
    """The folder that a side writes its tables to."""
    model: str
    weights: str
    precision: Precision
    """The number type of the network; never ``auto``."""

    def paths(self) -> list[str]:
        """Return the photographs, sorted by name."""
        return sorted(str(path) for path in self.photographs.iterdir())

    def network(self) -> ByHand:
        """Return the network by hand, with its weights."""
        return ByHand.load(self.model, self.weights, self.precision)


def setup_in(config: MeasureConfig, folder: Path) -> Setup:
    """Return what all sides work on: ``folder``'s photographs, with the network and number type of ``config``."""
    return Setup(
        photographs=folder / "photographs",
        out=folder / "out",
        model=config.model,
        weights=weights_file(config, folder),
        precision=resolved_precision(config),
    )
