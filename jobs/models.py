"""``camlake models``: the networks that camlake runs and trains, one row each."""

from typing import TYPE_CHECKING

from jobs.console import Screen, main, verb
from schemas.options.config import JobConfig, option

if TYPE_CHECKING:
    from pipeline.models.networks.entry import NetworkEntry


class ModelsConfig(JobConfig):
    """The options of ``camlake models``."""

    name: str = option("", "only networks whose name contains this", "Options")


def run(config: ModelsConfig, screen: Screen) -> None:
    """Print one row for each network whose name contains ``config.name``."""
    from pipeline.models import registry

    entries = [entry for entry in registry.entries() if config.name in entry.name]
    columns = ("network", "map", "input px", "channels", "parameters (M)", "pooling", "head", "weights")
    exact = sum(entry.exact_maps for entry in entries)
    title = f"{exact} networks with exact class activation maps, {len(entries) - exact} without"
    screen.table(title, columns, [_row(entry) for entry in entries])


def _row(entry: "NetworkEntry") -> tuple[str | int | float, ...]:
    """Return the network's columns; the numbers are those of its default architecture."""
    network = entry.outline()
    size = network.preprocessing.image_size
    rows, columns = network.map_size(size)
    return (
        entry.name,
        f"{rows}×{columns}" if entry.exact_maps else "none",
        size,
        network.channels,
        round(network.n_parameters / 1e6, 1),
        ", ".join(entry.poolings).upper() if entry.exact_maps else "none",
        entry.family.about,
        weights_of(entry),
    )


def weights_of(entry: "NetworkEntry") -> str:
    """Return the names that ``--weights`` accepts, or the weights from which a training of the network starts."""
    if entry.official_weights:
        return ", ".join(entry.official_weights)
    return f"trained from {entry.source}'s convolutions" if entry.source else "trained from random values"


ABOUT = "List the networks: whether they have exact class activation maps, and where their weights come from."

command = verb(
    "models",
    ABOUT,
    ModelsConfig,
    run,
    "camlake models --name resnet",
)

if __name__ == "__main__":
    main(command)
