"""``camlake benchmark``: measures the speed of this machine and the costs of the job; figures have a spread.

Each suite is a file here that has a function ``measure`` from its configuration to figures.
"""

import importlib

from jobs.benchmark.result import record
from jobs.terminal.console import Screen, verb
from schemas.options.benchmark import BenchmarkConfig


def run(config: BenchmarkConfig, screen: Screen) -> None:
    """Measure one suite, print its figures and, with ``--result``, write them as JSON."""
    record(config.suite, importlib.import_module(f"jobs.benchmark.{config.suite}").measure, config, screen)


ABOUT = "Measure this machine: the speed of each stage, the driver's memory, the GPU."

command = verb(
    ABOUT,
    BenchmarkConfig,
    run,
    "camlake benchmark stages --model resnet18 --result result.json",
)
