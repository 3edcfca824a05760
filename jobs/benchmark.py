"""``camlake benchmark``: the figures that camlake claims, measured here; ratios in one run, with spread."""

import importlib
import json
from pathlib import Path
from typing import Any

from jobs.console import Screen, main, verb
from jobs.suites.common import Figures, machine_facts
from schemas.benchmark import BenchmarkConfig


def run(config: BenchmarkConfig, screen: Screen) -> None:
    """Measure one suite, print its figures and, where asked, write them as JSON.

    What the figures depend on is asked first: nothing that fails is left for when hours of measuring are over.
    """
    suite = importlib.import_module(f"jobs.suites.{config.suite.replace('-', '_')}")
    machine = machine_facts()
    if config.suite == "peers":
        machine["peers"] = suite.versions()
    figures: Figures = suite.measure(config, screen)
    screen.table(
        f"{config.suite} on {machine['cores']} cores of {machine['processor']}", ("figure", "value"), rows(figures)
    )
    if config.result:
        document = {
            "suite": config.suite,
            "config": config.model_dump(exclude={"result"}),
            "machine": machine,
            "figures": figures,
        }
        Path(config.result).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        screen.say(f"written: {config.result}")


def rows(figures: Figures) -> list[tuple[str, str]]:
    """Return the figures as rows; a repeated one as its median with least and greatest."""
    return [(name, _shown(value)) for name, value in figures.items()]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "median" in value:
        return f"{value['median']:.3g} ({value['min']:.3g} to {value['max']:.3g}, {len(value['runs'])} runs)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


ABOUT = "Measure this machine: speed, published scores, memory, crash recovery, boxes."

command = verb(
    "benchmark",
    ABOUT,
    BenchmarkConfig,
    run,
    "camlake benchmark end-to-end --model squeezenet1_1 --result result.json",
)

if __name__ == "__main__":
    main(command)
