"""Measure what queries of boxes read: seconds and bytes through an object store, as annotate and compact write them.

The output is synthetic: random boxes in files of the usual size, committed by the real code, with classes as frequent
as words are (the k-th takes 1/k of the first), most scores low and the uris shuffled. "By image" has the same rows in
the order and the encoding that camlake had before boxes were ordered by label. DuckDB reads with two threads; a store
counts the bytes that it hands out. Each figure in percent is of all bytes of the table. The score .5 is where
the confident boxes' row groups begin; a lower one reads the others too.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from jobs.benchmark.machine import Figures
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.compaction.compact import Wanted, compact
from pipeline.storage.lake.compaction.dropped import Expiry
from pipeline.storage.lake.layout import LakePaths, new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.query import CommittedFiles, quote_list
from pipeline.storage.lake.records import committed_files, load_runs
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import option
from schemas.runs import DataFile
from schemas.tables import TABLES
from tests.benchmarks.command import benchmark
from tests.benchmarks.export import CLASSES, IMAGES_PER_COMMIT, synthetic_rows
from tests.fake_lake import FakeLake, manifest_of

RARE = 776
"""A class of about 170 boxes in a million; the common one is class 0."""


class QueryMeasure(MeasureConfig):
    """The configuration of this measurement."""

    boxes: int = option(1_000_000, "boxes of the synthetic output", "Options", ge=1_000)


class CountingStore(AbstractFileSystem):
    """The local disk as a store that counts the bytes of its answers."""

    protocol = "counted"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.requests = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return a range of a file."""
        with Path(path).open("rb") as file:
            file.seek(start or 0)
            data = file.read(-1 if end is None else end - (start or 0))
        self.bytes += len(data)
        self.requests += 1
        return data


def measure(config: QueryMeasure, reporter: Reporter) -> Figures:
    """Return for each layout the bytes of boxes, and for each query the share of them, the requests and the seconds."""
    figures: Figures = {"boxes": config.boxes}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "labels")
        _write(out, config.boxes)
        figures |= _figures("by image", *_by_image(out, Path(temporary, "plain")), 0)
        first = int(figures["by image: bytes"])
        reporter.say(", ".join(f"{key} {value}" for key, value in figures.items()))
        for name in ("annotate", "compact"):
            if name == "compact":
                lake, started_s = FakeLake(str(out)), time.perf_counter()
                compact(lake.fs, lake.root, Wanted(128 * 10**6, 0, Expiry()), lambda text: None)
                figures[f"{name}: s"] = round(time.perf_counter() - started_s, 1)
            figures |= _figures(name, *_boxes(out), first)
            reporter.say(", ".join(f"{key} {value}" for key, value in figures.items() if key.startswith(f"{name}:")))
    return figures


def _figures(name: str, files: Sequence[DataFile], root: str, first: int) -> Figures:
    total = sum(file.size_bytes for file in files)
    figures: Figures = {f"{name}: files": len(files), f"{name}: bytes": total}
    if first:
        figures[f"{name}: size against that by image"] = round(total / first, 3)
    return figures | {f"{name}: {key}": value for key, value in _queries(files, root, total).items()}


def _by_image(out: Path, place: Path) -> tuple[list[DataFile], str]:
    """Write the boxes again as they were before."""
    files, root = _boxes(out)
    written = []
    for file in files:
        rows = pq.read_table(Path(root, file.path), partitioning=None).sort_by("image_id")
        path = place / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            rows,
            path,
            row_group_size=20_480,
            compression="zstd",
            compression_level=3,
            use_dictionary=sorted(TABLES["boxes"].repeated),
            write_page_index=True,
            write_page_checksum=True,
        )
        written.append(replace(file, size_bytes=path.stat().st_size))
    return written, str(place)


def _write(out: Path, boxes: int) -> None:
    lake, rng, run_id = FakeLake(str(out)), np.random.default_rng(0), new_run_id()
    shares = 1 / np.arange(1, CLASSES + 1)
    numbers = rng.permutation(boxes)
    with Lease.acquire(lake.fs, lake.root, run_id) as lease:
        start_run(lake.fs, lake.root, manifest_of(run_id))
        start = 0
        while boxes:
            rows = synthetic_rows(run_id, numbers[start : start + IMAGES_PER_COMMIT], boxes, rng)
            found = rows["boxes"]
            class_id = rng.choice(CLASSES, len(found), p=shares / shares.sum())
            score = rng.beta(1, 3, len(found)).astype(np.float32)
            changed = {"class_id": class_id, "label": [f"class {one}, of many" for one in class_id]}
            changed |= {"class_prob": score, "box_score": score * np.float32(0.9)}
            for name, values in changed.items():
                index = found.schema.get_field_index(name)
                found = found.set_column(
                    index, found.schema.field(index), pa.array(values).cast(found.schema.types[index])
                )
            lake.commit(run_id, lease.generation, f"{start:09d}", rows | {"boxes": found})
            start += IMAGES_PER_COMMIT
            boxes -= len(found)
        manifest = manifest_of(run_id, planned=start)
        finish_run(lake.fs, lake.root, manifest, lease.generation)


def _boxes(out: Path) -> tuple[list[DataFile], str]:
    lake = FakeLake(str(out))
    return committed_files(load_runs(lake.fs, lake.root), "boxes"), lake.root


def _queries(files: Sequence[DataFile], root: str, total: int) -> dict[str, float]:
    image_id = _one("image_id", files, root)
    queries = {
        "rare label, score >= .5": f"SELECT * FROM boxes WHERE label = 'class {RARE}, of many' AND box_score >= 0.5",
        "rare label, score >= .3": f"SELECT * FROM boxes WHERE label = 'class {RARE}, of many' AND box_score >= 0.3",
        "rare label": f"SELECT * FROM boxes WHERE label = 'class {RARE}, of many'",
        "common label, box columns": "SELECT xmin, ymin, xmax, ymax, box_score FROM boxes"
        " WHERE label = 'class 0, of many'",
        "one image": f"SELECT * FROM boxes WHERE image_id = '{image_id}'",
        "all, mean score": "SELECT count(*), avg(box_score) FROM boxes",
    }
    figures: dict[str, float] = {}
    for name, query in queries.items():
        seconds, n_bytes = [], []
        for _ in range(5):
            store, started_s = CountingStore(), time.perf_counter()
            with duckdb.connect(config={"threads": 2}) as con:
                con.register_filesystem(CommittedFiles(store, LakePaths(root), files))
                urls = quote_list([f"camlake://{file.path}" for file in files])
                con.execute(f"CREATE VIEW boxes AS SELECT * FROM read_parquet({urls})")
                rows = len(con.sql(query).fetchall())
            seconds.append(time.perf_counter() - started_s)
            n_bytes.append(store.bytes)  # DuckDB asks for more at once where answers seem slow
        figures[f"{name}: %"] = round(100 * statistics.median(n_bytes) / total, 2)
        figures |= {f"{name}: requests": store.requests, f"{name}: rows": rows}
        figures[f"{name}: s"] = round(statistics.median(seconds), 3)
    return figures


def _one(column: str, files: Sequence[DataFile], root: str) -> str:
    path = LakePaths(root).full(files[0].path)
    return str(duckdb.sql(f"SELECT max({column}) FROM read_parquet({quote_list([path])})").fetchall()[0][0])


command = benchmark(
    "queries",
    "Measure what queries of boxes read, before and after `camlake compact`.",
    QueryMeasure,
    measure,
    "--result queries.json",
)

if __name__ == "__main__":
    main(command)
