"""How figures are printed and written: those of the program's suites and of tests.benchmarks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jobs.benchmark.machine import Figures, machine_facts
from jobs.terminal.console import Screen
from schemas.options.benchmark import MeasureConfig

Config = TypeVar("Config", bound=MeasureConfig)


def record(
    suite: str,
    measure: Callable[[Config, Screen], Figures],
    config: Config,
    screen: Screen,
    facts: Figures | None = None,
) -> None:
    """Print the figures of ``measure`` under the name ``suite`` and, with ``--result``, write them as JSON.

    The JSON document names the machine, the versions and the commit; ``facts`` are added to these facts. All facts are
    collected before the measurement, so that an error in them does not waste hours of measuring.
    """
    machine = machine_facts() | (facts or {})
    figures = measure(config, screen)
    screen.table(f"{suite} on {machine['cores']} cores of {machine['processor']}", ("figure", "value"), rows(figures))
    if config.result:
        document = {
            "suite": suite,
            "config": config.model_dump(exclude={"result"}),
            "machine": machine,
            "figures": figures,
        }
        Path(config.result).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        screen.say(f"written: {config.result}")


def rows(figures: Figures) -> list[tuple[str, str]]:
    """Return the figures as rows of a table; a repeated figure has its median, its least and its greatest value."""
    return [(name, _shown(value)) for name, value in figures.items()]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "median" in value:
        return f"{value['median']:.3g} ({value['min']:.3g} to {value['max']:.3g}, {len(value['runs'])} runs)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
