"""Kill a run five times at random moments, complete it, and compare its tables with those of an uninterrupted run."""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.benchmark.machine import Figures
from jobs.benchmark.photographs import make_photographs
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from schemas.errors import CamlakeError
from schemas.options.benchmark import MeasureConfig
from schemas.tables import TABLES
from tests.benchmarks.command import benchmark
from tests.references.equal_rows import same_rows

KILLS = 5
SEED = 0
"""Seed of the moments of the kills: the number of further commits, and the seconds after the last of these commits."""
IMAGES_PER_COMMIT = 32
"""A number so small that the 62 commits of 2,000 images last longer than five kills."""


def measure(config: MeasureConfig, reporter: Reporter) -> Figures:
    """Return the kills and the number of equal rows of each table; raises CamlakeError where tables differ."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(config, folder / "images", config.count)
        (folder / "images" / "broken.jpg").write_text("no picture")
        whole, killed = folder / "whole", folder / "killed"
        _annotate(folder / "images", whole)
        generator, moments = random.Random(SEED), []
        while len(moments) < KILLS:
            # The kill waits for commits, not for a time, so that the run on a slow machine is also killed at work.
            more, after_s = generator.randint(1, 2), generator.uniform(0, 0.3)
            moments.append(_kill(folder / "images", killed, more, after_s))
            reporter.say(f"killed after {moments[-1]:.1f} s, {_commits(killed)} commits so far")
        _annotate(folder / "images", killed)
        rows = {table: same_rows(whole, killed, table) for table in TABLES}
        attempts = len(list(killed.glob("_runs/*/manifest.json")))
    return {"kills": KILLS, "killed after s": moments, "runs that had begun": attempts, "equal rows": rows}


def _commits(out: Path) -> int:
    return len(list(out.glob("_runs/*/commits/*.json")))


def _command(images: Path, out: Path) -> list[str]:
    options = ["--model", "camlake_demo", "--images-per-commit", str(IMAGES_PER_COMMIT), "--max-rejected", "1"]
    options += ["--precision", "fp32"]  # The rounding of bf16 alone can change the order of classes.
    return [sys.executable, "-m", "jobs.annotate", str(images), "--out", str(out), *options]


def _annotate(images: Path, out: Path) -> None:
    done = subprocess.run(_command(images, out), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CamlakeError(f"annotate failed: {done.stderr.strip()}")


def _kill(images: Path, out: Path, more: int, after_s: float) -> float:
    """Kill a run ``after_s`` seconds after ``more`` further commits, and return its age in seconds.

    Raises CamlakeError if the run ends before the kill.
    """
    wanted, started = _commits(out) + more, time.perf_counter()
    process = subprocess.Popen(
        _command(images, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while _commits(out) < wanted and process.poll() is None:
        time.sleep(0.02)
    time.sleep(after_s)
    if process.poll() is not None:
        raise CamlakeError("the run was complete before it could be killed; use a larger --count")
    process.kill()
    process.wait()
    return round(time.perf_counter() - started, 1)


command = benchmark(
    "kills",
    "Kill a run five times, complete it and compare its tables with those of an uninterrupted run.",
    MeasureConfig,
    measure,
    "",
)

if __name__ == "__main__":
    main(command)
