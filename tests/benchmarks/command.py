"""Functions that all benchmarks use: make the command, run work or camlake in a new process, choose the
number type.
"""

import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from jobs.benchmark.machine import Figures
from jobs.benchmark.memory import peak_bytes
from jobs.benchmark.result import Config, record
from jobs.terminal.console import Screen, verb
from pipeline.models.localize.runtime import resolve_precision
from schemas.errors import CamlakeError
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import Precision, option

T = TypeVar("T")

LOOK_S = 0.1
"""How often the memory of a command is read."""


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

    return verb(about, config_class, run, f"python -m tests.benchmarks.{name} {example}".strip())


def resolved_precision(config: MeasureConfig) -> Precision:
    """Return the number type of all networks: the configured one, or for ``auto`` what ``annotate`` uses on CPU."""
    return resolve_precision(config.precision, "cpu")


def in_new_process(work: Callable[..., T], *arguments: Any) -> T:
    """Return ``work(*arguments)`` from a new process, so that no side profits from another side's imports or start."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class Watched(NamedTuple):
    """A command that has ended well."""

    seconds: float
    peak: int
    """The peak bytes of its process."""
    said: str
    """What it wrote to stderr."""


def run_watched(*words: str) -> Watched:
    """Run ``camlake`` with these words in a new process; raises CamlakeError where it fails."""
    started_s, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-m", "camlake", *words], stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            with suppress(OSError, StopIteration):  # it has just ended
                peak = max(peak, peak_bytes(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
        seconds = time.monotonic() - started_s
        said.seek(0)
        lines = said.read()
    if process.returncode:
        raise CamlakeError(f"camlake {words[0]} ended with {process.returncode}: {' | '.join(lines.splitlines()[-5:])}")
    return Watched(seconds, peak, lines)
