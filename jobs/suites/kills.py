"""Five kills at random moments, then one completion: the tables against those of an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from jobs.console import Screen
from jobs.suites.common import Figures, make_photographs
from pipeline import camlake
from schemas.config import BenchmarkConfig
from schemas.errors import CamlakeError
from schemas.tables import TABLES, Table

KILLS = 5
START_S = 2.0
"""No run is killed before it could take its lease."""
VARYING = {"run_id", "annotated_at", "rejected_at", "date"}
"""Columns that say when and by whom, not what."""


def measure(config: BenchmarkConfig, screen: Screen) -> Figures:
    """Return how often the run was killed and whether the tables are equal; raises CamlakeError where they are not."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photographs(config, folder / "images", config.count)
        (folder / "images" / "broken.jpg").write_text("no picture")
        whole, killed = folder / "whole", folder / "killed"
        started = time.perf_counter()
        _annotate(folder / "images", whole)
        duration_s = time.perf_counter() - started - START_S
        generator, kills = random.Random(), []
        for share in range(1, KILLS + 1):
            # Each run does what the ones before left, so its moment is drawn from a share of the whole that is left.
            after_s = generator.uniform(0.3, 0.9) * duration_s / share + START_S
            if _killed_after(folder / "images", killed, after_s):
                kills.append(round(after_s, 1))
                screen.say(f"killed after {after_s:.1f} s, {_commits(killed)} commits so far")
        _annotate(folder / "images", killed)
        rows = {table: _same_rows(whole, killed, table) for table in TABLES}
        attempts = len(list(killed.glob("_runs/*/manifest.json")))
    return {
        "kills": len(kills),
        "killed after s": kills,
        "uninterrupted s": round(duration_s + START_S, 1),
        "runs that had begun": attempts,
        "equal rows": rows,
    }


def _commits(out: Path) -> int:
    return len(list(out.glob("_runs/*/commits/*.json")))


def _command(images: Path, out: Path) -> list[str]:
    options = ["--model", "camlake_demo", "--images-per-commit", "256", "--max-rejected", "1"]
    return [sys.executable, "-m", "jobs.annotate", str(images), "--out", str(out), *options]


def _annotate(images: Path, out: Path) -> None:
    done = subprocess.run(_command(images, out), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CamlakeError(f"annotate failed: {done.stderr.strip()}")


def _killed_after(images: Path, out: Path, after_s: float) -> bool:
    """Kill a run after some seconds; return false where it was complete before."""
    process = subprocess.Popen(
        _command(images, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def _same_rows(whole: Path, killed: Path, table: Table) -> int:
    """Return the number of rows of a table; raises CamlakeError where the outputs differ in it."""
    one, other = (_sorted_rows(out, table) for out in (whole, killed))
    if not one.equals(other):
        raise CamlakeError(
            f"{table}: {len(one)} rows uninterrupted, {len(other)} after kills, and they are not the same"
        )
    return len(one)


def _sorted_rows(out: Path, table: Table) -> pa.Table:
    with camlake.open(str(out)) as lake:
        rows = lake.arrow(table)
    rows = rows.select([name for name in rows.column_names if name not in VARYING])
    keys = [name for name in ("image_id", "rank", "class_id", "threshold", "component") if name in rows.column_names]
    return rows.sort_by([(name, "ascending") for name in keys]).combine_chunks()
