"""Five kills at random moments, then one completion: the tables against those of an uninterrupted run."""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.console import Screen
from jobs.suites.common import Figures, make_photographs
from pipeline.outputs import reader as camlake
from schemas.benchmark import BenchmarkConfig
from schemas.errors import CamlakeError
from schemas.tables import TABLES, Table

KILLS = 5
SEED = 0
"""Of the moments: after how many more commits, and how long after the last of them."""
IMAGES_PER_COMMIT = 32
"""So few that the 62 commits of 2,000 images outlast five kills."""
VARYING = {"run_id", "annotated_at", "rejected_at", "date"}
"""Columns that say when and by whom, not what."""

ROUNDING = 1e-3
"""How far float32 values may be apart, of 1 and of themselves; box edges in pixels move with the maps' last digits."""


def measure(config: BenchmarkConfig, screen: Screen) -> Figures:
    """Return how often the run was killed and whether the tables are equal; raises CamlakeError where they are not."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(config, folder / "images", config.count)
        (folder / "images" / "broken.jpg").write_text("no picture")
        whole, killed = folder / "whole", folder / "killed"
        _annotate(folder / "images", whole)
        generator, moments = random.Random(SEED), []
        while len(moments) < KILLS:
            # By commits, not by the clock, so that a slow machine is killed at work too.
            more, after_s = generator.randint(1, 2), generator.uniform(0, 0.3)
            moments.append(_kill(folder / "images", killed, more, after_s))
            screen.say(f"killed after {moments[-1]:.1f} s, {_commits(killed)} commits so far")
        _annotate(folder / "images", killed)
        rows = {table: same_rows(whole, killed, table) for table in TABLES}
        attempts = len(list(killed.glob("_runs/*/manifest.json")))
    return {"kills": KILLS, "killed after s": moments, "runs that had begun": attempts, "equal rows": rows}


def _commits(out: Path) -> int:
    return len(list(out.glob("_runs/*/commits/*.json")))


def _command(images: Path, out: Path) -> list[str]:
    options = ["--model", "camlake_demo", "--images-per-commit", str(IMAGES_PER_COMMIT), "--max-rejected", "1"]
    options += ["--precision", "fp32"]  # Of bf16 the rounding alone can turn classes around.
    return [sys.executable, "-m", "jobs.annotate", str(images), "--out", str(out), *options]


def _annotate(images: Path, out: Path) -> None:
    done = subprocess.run(_command(images, out), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CamlakeError(f"annotate failed: {done.stderr.strip()}")


def _kill(images: Path, out: Path, more: int, after_s: float) -> float:
    """Kill a run some seconds after so many more commits, and return its age; raises CamlakeError if it ended."""
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


def same_rows(whole: Path, killed: Path, table: Table) -> int:
    """Return the number of rows of a table; raises CamlakeError where the outputs differ in it beyond rounding.

    A resumed run may put an image into another batch or place of it, and there float32 sums end in other digits.
    """
    one, other = (_sorted_rows(out, table) for out in (whole, killed))
    if len(one) != len(other):
        raise CamlakeError(f"{table}: {len(one)} rows uninterrupted, {len(other)} after kills")
    for name in one.column_names:
        if not _alike(one[name], other[name]):
            raise CamlakeError(f"{table}: {name} is not the same in a run of one piece and after kills")
    return len(one)


def _sorted_rows(out: Path, table: Table) -> pa.Table:
    with camlake.open(str(out)) as lake:
        rows = lake.arrow(table)
    rows = rows.select([name for name in rows.column_names if name not in VARYING])
    keys = [name for name in ("image_id", "rank", "class_id", "threshold", "component") if name in rows.column_names]
    return rows.sort_by([(name, "ascending") for name in keys]).combine_chunks()


def _alike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if not pa.types.is_floating(kind := getattr(one.type, "value_type", one.type)) and kind != pa.uint8():
        return one.equals(other)
    if kind != one.type:
        one, other = one.combine_chunks(), other.combine_chunks()
        if not one.value_lengths().equals(other.value_lengths()):
            return False
        one, other = one.flatten(), other.flatten()
    if kind == pa.uint8():  # levels of a heatmap
        one, other = one.cast(pa.int16()), other.cast(pa.int16())
    off = 1 if kind == pa.uint8() else ROUNDING
    return np.allclose(one.to_numpy(), other.to_numpy(), rtol=ROUNDING, atol=off, equal_nan=True)
