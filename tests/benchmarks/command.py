"""Functions that all benchmarks use: make the command, run work in a new process, choose the number type."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from jobs.benchmark import Config, record
from jobs.suites.machine import Figures
from jobs.terminal.console import Screen, verb
from pipeline.models.localize.runtime import resolve_precision
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import Precision, option

T = TypeVar("T")


class TruthConfig(MeasureConfig):
    """The configuration of a measurement that can compare with true boxes."""

    truth: str | None = option(None, "file of true boxes of these photographs", "Options")


def benchmark(
    name: str,
    about: str,
    config_class: type[Config],
    measure: Callable[[Config, Screen], Figures],
    example: str,
    facts: Callable[[], Figures] = dict,
) -> Callable[..., None]:
    """Return the command ``python -m tests.benchmarks.NAME``: its options are the fields of ``config_class``.

    ``measure`` returns the figures. ``example`` are options for the help text. ``facts`` returns more facts about the
    machine for the JSON file.
    """

    def run(config: Config, screen: Screen) -> None:
        record(name.replace("_", "-"), measure, config, screen, facts())

    return verb(name, about, config_class, run, f"python -m tests.benchmarks.{name} {example}".strip())


def resolved_precision(config: MeasureConfig) -> Precision:
    """Return the number type of all networks: the configured one, or for ``auto`` what ``annotate`` uses on CPU."""
    return resolve_precision(config.precision, "cpu")


def in_new_process(work: Callable[..., T], *arguments: Any) -> T:
    """Return ``work(*arguments)`` from a new process, so that no side profits from another side's imports or start."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()
