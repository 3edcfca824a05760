"""What is known of each network without its weights: what ``camlake models`` lists."""

from dataclasses import dataclass

from pipeline.models.building import cam_network, without_values
from pipeline.models.networks.heads import Pooling
from pipeline.models.registry import (
    DEMO,
    default_architecture,
    family_of,
    official_weights,
    poolings_of,
    preprocessing_of,
    source_of,
)


@dataclass(frozen=True)
class CatalogEntry:
    """One network, in its default form."""

    name: str
    map_hw: tuple[int, int] | None
    """Rows and columns of the class activation map at ``image_size``; None where the network only classifies."""
    channels: int
    """K, the length of the feature vector."""
    parameters: int
    """Of the usual number of classes at width 1."""
    image_size: int
    """Side of the input in pixels, as the default weights want it."""
    poolings: tuple[Pooling, ...]
    """What it can be built with; empty where the network only classifies."""
    head: str
    """The head, and where the last ReLU stands."""
    weights: tuple[str, ...]
    """What ``--weights`` takes by name, the default first; empty where the network must be trained first."""
    source: str | None
    """The torchvision network whose weights training starts from; None where it starts from random values."""


def describe(name: str) -> CatalogEntry:
    """Return what is known of a network; computes shapes only and loads nothing.

    Networks that only classify are described too. Raises ModelError for any other that ``load_network`` refuses.
    """
    architecture = default_architecture(name)
    family = family_of(name, exact_maps=False)
    network = cam_network(architecture, without_values(architecture), preprocessing_of(name))
    size = network.preprocessing.image_size
    official = official_weights(name)
    return CatalogEntry(
        name=name,
        map_hw=None if family.refusal else network.map_size(size),
        channels=network.channels,
        parameters=network.n_parameters,
        image_size=size,
        poolings=() if family.refusal else poolings_of(name),
        head=family.about,
        weights=("DEFAULT", *(entry.name for entry in official)) if official or name == DEMO else (),
        source=source_of(name),
    )
