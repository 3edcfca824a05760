"""Measure what a long life of an output costs the start of a run: CPU seconds and memory for the documents of all runs.

The output is synthetic: manifests of complete runs, whose data files don't exist, on the local disk; the listing of the
data files is made up. What is measured is opening a run and asking for all runs as often as ``annotate`` does. Reading
the committed rows, to know which images are done, is not part of it.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from jobs.benchmark.machine import Figures
from jobs.benchmark.memory import peak_bytes
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.storage.lake import commit
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.records import load_runs, write_record
from pipeline.storage.lake.run import RunRequest, open_run
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import StorageConfig, option
from schemas.runs import DataFile
from tests.benchmarks.command import benchmark, in_new_process
from tests.fake_lake import MODEL, SETTINGS, START, FakeLake, manifest_of

TABLES = ("images", "boxes", "heatmaps", "features", "quarantine")
MOST_CPU_S, MOST_MIB = 3.0, 300
"""What the start of a run may take; its memory is what it adds to the imported program."""
LOADS_BESIDE = 3
"""How often ``annotate`` asks for all runs beside opening one: before it, for what is done, for what is deleted."""


class ManyRunsMeasure(MeasureConfig):
    """The configuration of this measurement."""

    runs: int = option(365, "runs of the synthetic output", "Options", ge=1, le=10_000)
    files: int = option(500, "files of each run", "Options", ge=1, le=10_000)


def measure(config: ManyRunsMeasure, reporter: Reporter) -> Figures:
    """Return the CPU seconds and the added MiB of the start of a run, and of one look at all runs."""
    with tempfile.TemporaryDirectory() as out:
        written = synthetic_output(FakeLake(out), config.runs, config.files)
        reporter.say(f"{config.runs} manifests of {config.files} files: {written / 1e6:.0f} MB")
        samples = [in_new_process(_start, out) for _ in range(config.repeats)]
    first_s, start_s, added = (sorted(values)[len(values) // 2] for values in zip(*samples, strict=True))
    figures: Figures = {
        "runs": config.runs,
        "files of each run": config.files,
        "documents: MB": round(written / 1e6, 1),
        "all runs, first time: CPU s": round(first_s, 2),
        "start of a run: CPU s": round(start_s, 2),
        "start of a run: MiB added": round(added / 2**20),
        "allowed: CPU s": MOST_CPU_S,
        "allowed: MiB": MOST_MIB,
    }
    reporter.say(f"start of a run: {start_s:.2f} CPU s, {added / 2**20:.0f} MiB added")
    return figures


def synthetic_output(lake: FakeLake, runs: int, files: int) -> int:
    """Write the manifests of complete runs, one a day, and return their bytes."""
    paths, written = LakePaths(lake.root), 0
    for number in range(runs):
        at = START + timedelta(days=number)
        manifest = manifest_of(f"{at:%Y%m%dT%H%M%S}.000-{number:06x}", at=at)
        named = tuple(_files(manifest.run_id, f"{at:%Y-%m-%d}", files))
        ended = {"status": "complete", "ended_at": at + timedelta(hours=1), "files": named}
        path = paths.full(paths.manifest_path(manifest.run_id))
        write_record(lake.fs, path, manifest.model_copy(update=ended))
        written += Path(path).stat().st_size
    return written


def _files(run_id: str, date: str, files: int) -> Iterator[DataFile]:
    for number in range(files):
        table, task = TABLES[number % len(TABLES)], number // len(TABLES)
        digest = hashlib.blake2b(f"{run_id} {number}".encode(), digest_size=16).hexdigest()
        path = f"{table}/model={MODEL}/date={date}/part-{run_id}-{task:06d}-{digest[:8]}.parquet"
        yield DataFile(table, path, 100, 123_456, digest)


def _start(out: str) -> tuple[float, float, int]:
    """Return the CPU seconds of a first look at all runs, those of the start of a run, and the bytes that it added."""
    lake, before = FakeLake(out), peak_bytes()
    request = RunRequest(out, StorageConfig(), MODEL, SETTINGS, {"input": "photos"}, manifest_of("none").lineage)
    began_s = time.process_time()
    runs = load_runs(lake.fs, lake.root)
    first_s = time.process_time() - began_s
    listed = {file.path: file.size_bytes for run in runs for file in run.files}
    del runs
    commit.list_data_files = lambda fs, root: listed
    began_s = time.process_time()
    for _ in range(LOADS_BESIDE):
        load_runs(lake.fs, lake.root)
    with open_run(request):
        start_s = time.process_time() - began_s
    return first_s, first_s + start_s, peak_bytes() - before


ABOUT = "Measure what hundreds of earlier runs cost the start of a run."

command = benchmark("many_runs", ABOUT, ManyRunsMeasure, measure, "--result many-runs-2cores.json")

if __name__ == "__main__":
    main(command)
