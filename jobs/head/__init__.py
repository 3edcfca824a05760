"""``camlake head``: linear heads on stored features, fitted to labels, shown, applied, and to rank images by.

Each action is a file here with a function ``run``.
"""

import importlib

from jobs.terminal.console import Screen, verb
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.head import HeadConfig


def run(config: HeadConfig, screen: Screen) -> None:
    """Run the action of ``config`` and print what came of it."""
    if config.action != "show":
        refuse_no_output(config.place, config)
    importlib.import_module(f"jobs.head.{config.action}").run(config, screen)


ABOUT = "Fit linear heads to labels on stored features, show them, and apply them, without network and images."

command = verb(
    ABOUT,
    HeadConfig,
    run,
    "camlake head fit s3://bucket/labels --labels mirror-in-lake.csv --out mirror-in-lake.safetensors",
)
