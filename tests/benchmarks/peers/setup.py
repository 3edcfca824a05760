"""The network, photographs and options with which all sides of a comparison work."""

from dataclasses import dataclass
from pathlib import Path

from jobs.benchmark.photographs import weights_file
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import Precision
from tests.benchmarks.command import resolved_precision
from tests.references.network_by_hand import ByHand

BATCH = 32
"""Images of a forward pass; the same as camlake's default on CPU."""


@dataclass(frozen=True)
class Setup:
    """The values that every side gets; they are plain values, because each side runs in a new process."""

    photographs: Path
    """A folder of JPEG files."""
    out: Path
    """The folder into which a side writes its tables."""
    model: str
    weights: str
    precision: Precision
    """The number type of the network; never ``auto``."""

    def paths(self) -> list[str]:
        """Return the paths of the photographs, sorted by name."""
        return sorted(str(path) for path in self.photographs.iterdir())

    def network(self) -> ByHand:
        """Load and return the network as tests.references.network_by_hand writes it."""
        return ByHand.load(self.model, self.weights, self.precision)


def setup_in(config: MeasureConfig, folder: Path) -> Setup:
    """Return the setup of all sides: the photographs in ``folder``, the network and the number type of ``config``."""
    return Setup(
        photographs=folder / "photographs",
        out=folder / "out",
        model=config.model,
        weights=weights_file(config, folder),
        precision=resolved_precision(config),
    )
