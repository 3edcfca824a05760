"""``camlake models``: the networks that camlake runs and trains, one row each."""

from typing import TYPE_CHECKING

from jobs.terminal.console import Screen, main, verb
from schemas.options.config import JobConfig, option

if TYPE_CHECKING:
    from pipeline.models.known_networks import Row


class ModelsConfig(JobConfig):
    """The options of ``camlake models``."""

    name: str = option("", "only networks whose name contains this", "Options")
    check: str | None = option(None, "build this one network here, and print its row", "Options")


def run(config: ModelsConfig, screen: Screen) -> None:
    """Print one row for each network whose name contains ``config.name``, or for the one network to check."""
    from pipeline.models.known_networks import COLUMNS, known_networks

    if config.check is not None:
        rows = [_checked(config.check)]
        title = f"{config.check}, as it is built here"
    else:
        rows = [row for row in known_networks() if config.name in str(row["network"])]
        exact = sum(row["map"] != "none" for row in rows)
        title = f"{exact} networks with exact class activation maps, {len(rows) - exact} without"
    screen.table(title, COLUMNS, [[row[name] for name in COLUMNS] for row in rows])


def _checked(name: str) -> "Row":
    from pipeline.models import registry
    from pipeline.models.known_networks import row_of

    return row_of(registry.get(name))


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
