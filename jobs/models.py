"""``camlake models``: the networks that have exact class activation maps, and what is known of each."""

from jobs.console import Screen, main, verb
from pipeline.models.registry import describe, model_names
from schemas.config import ModelsConfig


def run(config: ModelsConfig, screen: Screen) -> None:
    """Print one row for each network whose name contains ``config.name``."""
    cards = [describe(name) for name in model_names() if config.name in name]
    rows = [
        (
            card.name,
            f"{card.map_hw[0]}×{card.map_hw[1]}",
            card.image_size,
            card.channels,
            round(card.parameters / 1e6, 1),
            card.head,
            ", ".join(card.weights),
        )
        for card in cards
    ]
    columns = ("network", "map", "input px", "channels", "parameters (M)", "head", "weights")
    screen.table(f"{len(rows)} networks with exact class activation maps", columns, rows)


command = verb(
    "models",
    ModelsConfig,
    run,
    "camlake models --name resnet",
)

if __name__ == "__main__":
    main(command)
