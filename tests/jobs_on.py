"""Run jobs for the tests: without output in this process, or as a user's command in another process."""

import subprocess
import sys
from pathlib import Path

from jobs.terminal.console import Screen
from pipeline.graph.annotate.driver import annotate
from schemas.options.annotate import AnnotateConfig
from schemas.runs import RunManifest

ROOT = Path(__file__).resolve().parents[1]


def run_annotate(input_, out, **options) -> RunManifest:
    """Annotate with the demo network in one process of the local engine, in float32, so that rows can be compared."""
    defaults = {"model": "camlake_demo", "actors": 1, "batch_size": 8, "precision": "fp32"}
    defaults |= {"engine": "local", "topk": 2, "max_rejected": 1.0, "box_rule": "paper"}
    return annotate(AnnotateConfig.resolve({"input": str(input_), "out": str(out), **defaults, **options}), Screen())


def command(verb, *words) -> list[str]:
    """Return the command line of a verb, as a job submission would run it."""
    return [sys.executable, "-m", f"jobs.{verb}", *map(str, words)]


def run_command(verb, *words, **options) -> subprocess.CompletedProcess:
    """Run a verb in a new process and return the completed process."""
    return subprocess.run(
        command(verb, *words), cwd=ROOT, capture_output=True, text=True, check=False, timeout=240, **options
    )
