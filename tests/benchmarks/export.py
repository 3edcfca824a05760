"""Measure ``camlake export``: seconds and peak memory for 1,000,000 boxes without pictures, in several formats.

The output is synthetic: random boxes of two or three classes an image, committed by the real code in files of the usual
size. Each format is written by the command as a user gives it, its start included, without masks; COCO with masks of
maps of 7x7 is measured on a part of the boxes.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.outputs.export.destination import DONE
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import option
from schemas.tables import TABLES, Table
from tests.benchmarks.command import benchmark, run_watched
from tests.fake_lake import START, FakeLake, manifest_of

BOXES_OF = (2, 3)
"""Images have two and three boxes in turn."""
IMAGES_PER_COMMIT = 20_000
SIDES_WH = (500, 375)
CLASSES = 1000
FORMATS = ("coco", "hf", "csv", "labelstudio", "cvat")


class ExportMeasure(MeasureConfig):
    """The configuration of this measurement."""

    boxes: int = option(1_000_000, "boxes of the synthetic output", "Options", ge=1_000)
    masks: int = option(20_000, "boxes of the output that is exported with masks", "Options", ge=1_000)


def measure(config: ExportMeasure, reporter: Reporter) -> Figures:
    """Return for each format the seconds, the peak MiB of the process and the MB of the result."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "labels")
        images = synthetic_output(out, config.boxes)
        figures |= {"boxes": config.boxes, "images": images}
        reporter.say(f"{config.boxes} boxes of {images} images committed")
        for name in FORMATS:
            seconds, peak, size = _export(str(out), config.boxes, f"{temporary}/{name}", name, "--no-masks")
            figures[f"{name}: s"] = round(seconds, 2)
            figures[f"{name}: peak MiB of the process"] = round(peak / 2**20)
            figures[f"{name}: MB written"] = round(size / 1e6, 1)
            reporter.say(f"{name}: {seconds:.1f} s, {peak / 2**30:.2f} GiB, {size / 1e6:.0f} MB")
        synthetic_output(Path(temporary, "mapped"), config.masks, maps=True)
        seconds, peak, size = _export(f"{temporary}/mapped", config.masks, f"{temporary}/masks", "coco")
        figures |= {"coco with masks: boxes": config.masks, "coco with masks: s": round(seconds, 2)}
        figures["coco with masks: peak MiB of the process"] = round(peak / 2**20)
        reporter.say(f"coco with masks of {config.masks} boxes: {seconds:.1f} s, {size / 1e6:.0f} MB")
    return figures


def _export(out: str, boxes: int, dest: str, name: str, *options: str) -> tuple[float, int, int]:
    """Return the seconds of the command ``camlake export``, its peak bytes, and the bytes that it wrote."""
    options = ("--images", "reference", "--split", "train=.8,val=.2", *options)
    done = run_watched("export", out, dest, "--to", name, *options)
    splits = json.loads(Path(dest, DONE).read_text())["splits"]
    assert sum(one["boxes"] for one in splits.values()) == boxes
    return done.seconds, done.peak, sum(file.stat().st_size for file in Path(dest).rglob("*") if file.is_file())


def synthetic_output(out: Path, boxes: int, maps: bool = False) -> int:
    """Commit an output with ``boxes`` boxes, each with its map where ``maps``; return the number of its images."""
    images = -(-boxes * len(BOXES_OF) // sum(BOXES_OF))
    lake, rng, run_id = FakeLake(str(out)), np.random.default_rng(0), new_run_id()
    with Lease.acquire(lake.fs, lake.root, run_id) as lease:
        manifest = manifest_of(run_id, planned=images)
        start_run(lake.fs, lake.root, manifest)
        left = boxes
        for task, start in enumerate(range(0, images, IMAGES_PER_COMMIT)):
            rows = synthetic_rows(run_id, np.arange(start, min(start + IMAGES_PER_COMMIT, images)), left, rng)
            left -= len(rows["boxes"])
            rows |= {"heatmaps": _maps(rows["boxes"])} if maps else {}
            lake.commit(run_id, lease.generation, f"{task:06d}", rows)
        finish_run(lake.fs, lake.root, manifest, lease.generation)
    return images


def _maps(boxes: pa.Table) -> pa.Table:
    """Return the maps of boxes, 7x7 cells: a hill in the middle of each box."""
    centre = np.arange(7) + 0.5
    sides = {name: boxes[name].to_numpy()[:, None] for name in ("xmin", "ymin", "xmax", "ymax")}
    away = []
    for low, high, side in (("ymin", "ymax", SIDES_WH[1]), ("xmin", "xmax", SIDES_WH[0])):
        middle, width = (sides[low] + sides[high]) / 2 / side * 7, (sides[high] - sides[low]) / side * 7
        away.append(((centre - middle) / np.maximum(width, 1)) ** 2)
    hills = np.exp(-4 * (away[0][:, :, None] + away[1][:, None, :])).reshape(len(boxes), -1)
    cells = np.rint(255 * hills / hills.max(axis=1, keepdims=True)).astype(np.uint8)
    schema, n = TABLES["heatmaps"].schema(), len(boxes)
    numbers = {"heat_h": np.full(n, 7), "heat_w": np.full(n, 7), "heat_min": np.zeros(n), "heat_max": np.ones(n)}
    columns = {name: boxes[name] for name in schema.names if name in boxes.schema.names}
    heat = pa.ListArray.from_arrays(pa.array(np.arange(0, 49 * n + 1, 49), pa.int32()), pa.array(cells.reshape(-1)))
    columns |= {name: pa.array(values) for name, values in numbers.items()} | {"heat": heat}
    return pa.table([columns[one.name].cast(one.type) for one in schema], schema=schema)


def synthetic_rows(
    run_id: str, numbers: NDArray[np.int64], most_boxes: int, rng: np.random.Generator
) -> dict[Table, pa.Table]:
    """Return images and boxes of a task, of the images of these numbers; at most ``most_boxes`` boxes."""
    count = len(numbers)
    uris = np.array([f"s3://photographs/{number // 1000:06d}/{number:09d}.jpg" for number in numbers])
    ids = np.array([hashlib.blake2b(uri.encode(), digest_size=16).hexdigest() for uri in uris])
    image = np.repeat(np.arange(count), np.resize(BOXES_OF, count))[:most_boxes]
    rank = np.concatenate([[0], (np.diff(image) == 0)]).astype(np.int64)
    rank = rank + np.concatenate([[0], rank[:-1]]) * rank
    n, (width, height) = len(image), SIDES_WH
    class_id = (rng.integers(0, CLASSES, count)[image] + 331 * rank) % CLASSES
    low = rng.random((n, 2)) * 0.6
    high = low + 0.05 + rng.random((n, 2)) * 0.35
    prob = rng.random(n).astype(np.float32)
    shared = {"image_id": ids[image], "run_id": np.full(n, run_id), "uri": uris[image], "method": np.full(n, "cam")}
    numbers = {"rank": rank, "class_id": class_id, "component": np.zeros(n), "threshold": np.full(n, 0.2)}
    sides = {"xmin": low[:, 0] * width, "ymin": low[:, 1] * height, "xmax": high[:, 0] * width}
    sides |= {"ymax": high[:, 1] * height, "area_frac": (high - low).prod(axis=1)}
    labels = {"label": np.array([f"class {number}, of many" for number in class_id])}
    boxes = shared | numbers | sides | labels | {"class_prob": prob, "box_score": prob * np.float32(0.5)}
    same = {"run_id": run_id, "etag": "v1", "size_bytes": 100_000, "modified_at": START, "format": "JPEG"}
    same |= {"width_px": width, "height_px": height, "top1_class_id": 0, "top1_label": "x", "top1_prob": 0.5}
    same |= {"annotated_at": START}
    images = {name: pa.array([value] * count) for name, value in same.items()}
    images |= {"image_id": ids, "uri": uris, "n_boxes": np.bincount(image, minlength=count)}
    found = {}
    for table, columns in (("images", images), ("boxes", boxes)):
        schema = TABLES[table].schema()
        arrays = [pa.array(columns[one.name]).cast(one.type) for one in schema]
        found[table] = pa.table(arrays, schema=schema)
    return found


command = benchmark(
    "export",
    "Measure `camlake export`: seconds and peak memory for synthetic boxes, by format.",
    ExportMeasure,
    measure,
    "--result export.json",
)

if __name__ == "__main__":
    main(command)
