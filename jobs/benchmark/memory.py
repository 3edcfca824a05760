"""Run the job on 100, 10,000 and 100,000 tiny images: the driver's peak memory, time per image, time to first results.

Each size runs in a new process, as ``camlake annotate`` would; times count from before the process starts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from jobs.benchmark.machine import Figures
from jobs.benchmark.photographs import make_photographs
from pipeline.annotate.reporter import Advance, Reporter
from pipeline.graph.annotate.driver import annotate
from pipeline.models.networks.demo_network import DEMO
from schemas.errors import CamlakeError
from schemas.options.annotate import AnnotateConfig
from schemas.options.benchmark import BenchmarkConfig, MeasureConfig

SIZES = (100, 10_000, 100_000)
TINY_HW = (48, 48)
IMAGE_SIZE = 32
PICTURES = 64
"""Number of different pictures; they are repeated under new names."""


def measure(config: BenchmarkConfig, reporter: Reporter) -> Figures:
    """Return for each size the memory and the times of one run.

    Neither the driver's memory nor the time per image should grow with the size.
    """
    figures: Figures = {}
    peaks, times_s = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = make_photographs(MeasureConfig(), folder / "pictures", PICTURES, TINY_HW)
        for count in SIZES:
            seen = _annotate(_linked(pictures, folder / f"images-{count}", count), folder / f"out-{count}")
            reporter.say(f"{count} images: {seen}")
            peaks.append(seen["peak_bytes"])
            times_s.append(seen["took_s"] / count)
            figures |= {
                f"{count} images: driver's peak MiB": peaks[-1] / 2**20,
                f"{count} images: ms an image, start included": 1e3 * times_s[-1],
                f"{count} images: s to the first annotated image": seen["first_annotated_s"],
                f"{count} images: s to the first commit": seen["first_commit_s"],
                f"{count} images: start": seen["steps"],
            }
    figures |= {f"memory at {SIZES[-1]} to {count}": peaks[-1] / peak for count, peak in zip(SIZES, peaks, strict=True)}
    return figures | {"time an image at 100000 to 10000": times_s[-1] / times_s[-2]}


def _linked(pictures: Sequence[Path], folder: Path, count: int) -> Path:
    """Create ``folder`` with ``count`` links to the pictures, and return it."""
    folder.mkdir()
    for index in range(count):
        os.link(pictures[index % len(pictures)], folder / f"{index:07d}.jpg")
    return folder


def _annotate(images: Path, out: Path) -> Figures:
    """Run the job in a new process and return the figures that the process measured."""
    command = [sys.executable, "-m", "jobs.benchmark.memory", str(images), str(out), str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CamlakeError(f"annotate failed: {done.stderr.strip()}")
    seen: Figures = json.loads(done.stdout.splitlines()[-1])
    return seen


class _Timeline(Reporter):
    """A reporter that stores the time of each step of the job, in seconds since ``started``."""

    def __init__(self, started: float) -> None:
        self._started = started
        self.steps: dict[str, float] = {}

    def say(self, text: str, **facts: Any) -> None:
        """Store the time of the step under the first words of ``text``."""
        self.steps[" ".join(text.split()[:3])] = round(time.time() - self._started, 2)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Store the time at which the first image was done."""

        def advance(done: int, rejected: int = 0) -> None:
            if done:
                self.steps.setdefault("first annotated image", round(time.time() - self._started, 2))

        yield advance


def peak_bytes(pid: int | Literal["self"] = "self") -> int:
    """Return the peak memory of a process so far in bytes, with the pages of mapped libraries.

    The value comes from /proc on Linux: psutil has only the present memory, and ru_maxrss starts at the memory of the
    parent process.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Annotate a folder and print the figures as JSON; the arguments are the folder, the output and the start time."""
    images, out, started = sys.argv[1], sys.argv[2], float(sys.argv[3])
    timeline = _Timeline(started)
    timeline.say("imports")
    annotate(AnnotateConfig(input=images, out=out, model=DEMO, image_size=IMAGE_SIZE), timeline)
    took_s = time.time() - started
    commits_s = [path.stat().st_mtime - started for path in Path(out).glob("_runs/*/commits/*.json")]
    seen = {
        "took_s": took_s,
        "peak_bytes": peak_bytes(),
        "first_annotated_s": timeline.steps.get("first annotated image", took_s),
        "first_commit_s": min(commits_s),
        "steps": timeline.steps,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
