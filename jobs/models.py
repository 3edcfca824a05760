"""``camlake models``: the networks that camlake runs and trains, one row each, and what is found in any one network."""

from typing import Any

from pydantic import model_validator

from jobs.terminal.console import Screen, main, verb
from schemas.options.config import JobConfig, option
from schemas.options.network_names import CLASSIFIER_LAYER_HELP, FEATURE_LAYER_HELP, with_layers


class ModelsConfig(JobConfig):
    """The options of ``camlake models``."""

    name: str = option("", "only networks whose name contains this", "Options")
    check: str | None = option(
        None,
        "build this one network here, a listed one, timm/NAME, hf/FOLDER-OR-NAME or package.module:function, and say"
        " what is found in it",
        "Options",
    )
    feature_layer: str | None = option(None, FEATURE_LAYER_HELP.replace("--model", "--check"), "Options")
    classifier_layer: str | None = option(None, CLASSIFIER_LAYER_HELP, "Options")

    @model_validator(mode="before")
    @classmethod
    def _in_the_name(cls, values: Any) -> Any:
        return with_layers(values, "check") if isinstance(values, dict) else values


def run(config: ModelsConfig, screen: Screen) -> None:
    """Print one row for each network whose name contains ``config.name``, or what is found in the one to check."""
    from pipeline.models.known_networks import COLUMNS, known_networks

    if config.check is not None:
        from pipeline.models.localize.checking import findings

        screen.table(f"{config.check}, as it is built here", ("found", "value"), list(findings(config.check).items()))
        return
    rows = [row for row in known_networks() if config.name in str(row["network"])]
    exact = sum(row["map"] != "none" for row in rows)
    title = f"{exact} networks with exact class activation maps, {len(rows) - exact} without"
    screen.table(title, COLUMNS, [[row[name] for name in COLUMNS] for row in rows])


ABOUT = "List the networks: whether they have exact class activation maps, and where their weights come from."

command = verb(
    ABOUT,
    ModelsConfig,
    run,
    "camlake models --name resnet",
)

if __name__ == "__main__":
    main(command)
