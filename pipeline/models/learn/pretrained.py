"""What a training starts from: the layers of a network that was trained before, and a last layer that is new."""

from dataclasses import dataclass

from pipeline.models.learn.conversion import convert
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.network import Preprocessing
from pipeline.models.registry import DEMO, check, preprocessing_of, source_of
from pipeline.models.weights.checkpoint import read_checkpoint, read_local, shown
from pipeline.models.weights.load_weights import Read
from pipeline.models.weights.state_fitting import State
from pipeline.models.weights.torchvision_weights import is_name, weights_by_name
from schemas.errors import ModelError


@dataclass(frozen=True)
class Pretrained:
    """Values that training starts from."""

    state: State
    """Whole, for just the architecture that was asked for."""
    new: tuple[str, ...]
    """Keys of the parameters that have random values."""
    source: str
    sha256: str
    preprocessing: Preprocessing
    """What the layers that were taken expect of the input."""


def load_pretrained(architecture: Architecture, weights: str = "DEFAULT", read: Read = read_local) -> Pretrained:
    """Return values to start training ``architecture`` from: pretrained layers, and a last layer that is always new.

    ``weights`` is DEFAULT or another of torchvision's names for the network that ``source_of`` names, or the URL of a
    file with that network's state or with an earlier checkpoint of the network itself. Raises ModelError where there
    are no such weights, they can't be read, or they fit no layer of the network.
    """
    check(architecture)
    name = architecture.name
    if is_name(weights):
        origin = name if name == DEMO else source_of(name)
        if origin is None:
            raise ModelError(
                f"--weights {weights}: torchvision has none for {name}; allowed: --weights none, or a file"
            )
        file, source, entry = weights_by_name(origin, weights, whole=origin == name)
    else:
        file, source, entry = read_checkpoint(weights, read), shown(weights), None
    converted = convert(architecture, file.state)
    preprocessing = file.card.preprocessing if file.card else preprocessing_of(name, entry)
    return Pretrained(converted.state, converted.new, source, file.sha256, preprocessing)
