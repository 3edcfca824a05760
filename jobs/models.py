"""``camlake models``: the networks that camlake runs and trains, and what is known of each."""

from jobs.console import Screen, main, verb
from pipeline.models.catalog import CatalogEntry, describe
from pipeline.models.registry import classifier_names, model_names
from schemas.models import ModelsConfig


def run(config: ModelsConfig, screen: Screen) -> None:
    """Print one row for each network whose name contains ``config.name``."""
    entries = [describe(name) for name in [*model_names(), *classifier_names()] if config.name in name]
    rows = [
        (
            entry.name,
            f"{entry.map_hw[0]}×{entry.map_hw[1]}" if entry.map_hw else "none",
            entry.image_size,
            entry.channels,
            round(entry.parameters / 1e6, 1),
            ", ".join(entry.poolings).upper() or "none",
            entry.head,
            weights_of(entry),
        )
        for entry in entries
    ]
    columns = ("network", "map", "input px", "channels", "parameters (M)", "pooling", "head", "weights")
    exact = sum(entry.map_hw is not None for entry in entries)
    screen.table(f"{exact} networks with exact class activation maps, {len(rows) - exact} without", columns, rows)


def weights_of(entry: CatalogEntry) -> str:
    """Say where the weights come from: names for ``--weights``, or training and what it starts from."""
    if entry.weights:
        return ", ".join(entry.weights)
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
