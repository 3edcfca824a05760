"""The first values of a training: the layers of a network that was trained before, and a random last layer."""

from dataclasses import dataclass

from pipeline.models import registry
from pipeline.models.learn.conversion import convert
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.network import Preprocessing
from pipeline.models.weights.checkpoint import read_checkpoint, read_local
from pipeline.models.weights.load_weights import Read
from pipeline.models.weights.published import read_published
from pipeline.models.weights.state_fitting import State
from schemas.errors import ModelError
from schemas.options.network_names import names_weights


@dataclass(frozen=True)
class Pretrained:
    """Values that training starts from."""

    state: State
    """A complete state for exactly the requested architecture."""
    new: tuple[str, ...]
    """Keys of the parameters that have random values."""
    source: str
    """URL of the file without query and credentials, or the name of the weights."""
    sha256: str
    """SHA-256 of the file's bytes, 64 hex digits."""
    preprocessing: Preprocessing
    """The preprocessing that the trained layers expect."""


def load_pretrained(
    architecture: Architecture, weights: str = "DEFAULT", read: Read = read_local, key: str | None = None
) -> Pretrained:
    """Return values to start training ``architecture`` from: pretrained layers, and a last layer of random values.

    ``weights`` is DEFAULT or another name of weights of the network that the entry calls its source, or the URL of a
    file with that network's state or with an earlier checkpoint of the network itself. ``key`` chooses among the state
    dicts of a file. ``read`` returns the bytes of the file; its exceptions pass through. Raises ModelError, which ends
    the run, where there are no such weights, they can't be read, or they fit no layer of the network.
    """
    entry = registry.check(architecture)
    if not names_weights(weights):
        file = read_checkpoint(weights, read, key)
    elif entry.source is None:
        raise ModelError(
            f"--weights {weights}: torchvision has none for {entry.name}; allowed: --weights none, or a file"
        )
    else:
        file = read_published(entry.source, entry.official_weights or entry.published, weights, key)
    converted = convert(architecture, file.state)
    return Pretrained(
        converted.state, converted.new, file.description, file.sha256, file.preprocessing or entry.preprocessing
    )
