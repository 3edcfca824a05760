"""Measure ``camlake report``: seconds and bytes for 10,000 images, and how soon Chromium paints and fills the page.

The rows are synthetic: two random boxes and five maps of 14×14 for each image, committed by the real code. The pictures
are photographs, or rendered ones, repeated under new names. Each page is written in a process of its own, by the real
verb's code; the seconds are those of the work, without the start of Python. First paint is what the browser reports;
ready is when the first picture stands in the grid, decoded.
"""

import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmark.machine import Figures
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs.page.run_report import report
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.layout import LakePaths, new_run_id
from pipeline.storage.lake.lease import Lease
from pipeline.storage.lake.whole_objects import write_whole
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import option
from schemas.options.reading import ReportConfig
from schemas.tables import PLAN, Table
from tests.benchmarks.command import benchmark, in_new_process
from tests.chromium import Chromium, chromium
from tests.fake_lake import START, FakeLake, image_id, manifest_of, schemas

SIDES_WH = (500, 375)
CLASSES = 1000
MAPS, BOXES, SIDE = 5, 2, 14
RENDERED = 100
PAGES = (120, 300, 500)
FIRST_PAINT = "performance.getEntriesByType('paint')[0].startTime"


class PageMeasure(MeasureConfig):
    """The configuration of this measurement."""

    outputs: int = option(10_000, "images of the synthetic output", "Options", ge=500)


def measure(config: PageMeasure, reporter: Reporter) -> Figures:
    """Return for each number of pictures the seconds, the MB of the page, and the browser's milliseconds."""
    figures: Figures = {"images": config.outputs}
    with tempfile.TemporaryDirectory() as temporary:
        files = _photographs(config.images, Path(temporary))
        out = Path(temporary, "labels")
        _synthetic_output(out, config.outputs, files)
        reporter.say(f"{config.outputs} images committed, of {len(files)} pictures")
        for pictures in PAGES:
            page = Path(temporary, f"{pictures}.html")
            seconds = in_new_process(_report, str(out), str(page), pictures)
            figures[f"{pictures} pictures: s"] = round(seconds, 2)
            figures[f"{pictures} pictures: MB"] = round(page.stat().st_size / 1e6, 2)
            with chromium(Path(temporary, f"profile-{pictures}")) as browser:
                _open(browser, page)  # The first page of a new profile also pays for the browser's start.
                times = [_open(browser, page) for _ in range(config.repeats)]
            for name, values in zip(("first paint", "ready"), zip(*times, strict=True), strict=True):
                figures[f"{pictures} pictures: {name}, ms, median"] = round(statistics.median(values))
                figures[f"{pictures} pictures: {name}, ms, greatest"] = round(max(values))
            reporter.say(
                ", ".join(f"{key} {value}" for key, value in figures.items() if key.startswith(f"{pictures} "))
            )
    return figures


def _report(out: str, page: str, pictures: int) -> float:
    started_s = time.perf_counter()
    report(ReportConfig(out=out, page=page, pictures=pictures))
    return time.perf_counter() - started_s


def _open(browser: Chromium, page: Path) -> tuple[float, float]:
    """Return the milliseconds from the start of the navigation to the first paint, and to the first pictures."""
    tab = browser.tab()
    tab.size(1440, 900)
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
    tab.open(page.as_uri(), "window.camlakeReadyMs > 0")
    tab.until("performance.getEntriesByType('paint').length > 0")
    assert tab.errors == []
    return tab.value(FIRST_PAINT), tab.value("window.camlakeReadyMs")


_WATCH = """
const watch = () => {
  const first = document.querySelector('.picture img');
  if (first && first.naturalWidth) window.camlakeReadyMs = performance.now();
  else requestAnimationFrame(watch);
};
watch();
"""


def _photographs(folder: str | None, temporary: Path) -> list[Path]:
    if folder is None:
        write_corpus(temporary / "rendered", RENDERED, seed=0, size_hw=SIDES_WH[::-1], broken=0)
        folder = str(temporary / "rendered" / "images")
    return sorted(path for path in Path(folder).iterdir() if path.is_file())


def _synthetic_output(out: Path, images: int, files: list[Path]) -> None:
    """Commit an output whose images lie, in turn, in ``files``."""
    lake, run_id = FakeLake(str(out)), new_run_id()
    uris = [f"photographs/{number:09d}.jpg" for number in range(images)]
    chosen = [files[number % len(files)] for number in range(images)]
    source = {
        "image_id": [image_id(uri) for uri in uris],
        "uri": uris,
        "size_bytes": [file.stat().st_size for file in chosen],
    }
    with Lease.acquire(lake.fs, lake.root, run_id) as lease:
        manifest = manifest_of(run_id, planned=images)
        start_run(lake.fs, lake.root, manifest)
        sink = io.BytesIO()
        pq.write_table(_table(PLAN, images, source | {"path": [str(file.resolve()) for file in chosen]}), sink)
        write_whole(lake.fs, lake.path(f"{LakePaths(lake.root).plan_dir(run_id)}/00000.parquet"), sink.getvalue())
        lake.commit(run_id, lease.generation, "000000", _rows(run_id, source))
        finish_run(lake.fs, lake.root, manifest, lease.generation)


def _rows(run_id: str, source: dict[str, list[Any]]) -> dict[Table, pa.Table]:
    """Return the rows of all images: their boxes are of their first classes, their maps are smooth."""
    rng = np.random.default_rng(0)
    images, (width, height) = len(source["uri"]), SIDES_WH
    classes = rng.integers(0, CLASSES, (images, MAPS))
    prob = np.sort(rng.random((images, MAPS)), axis=1)[:, ::-1]
    shared = {"run_id": run_id, "format": "JPEG", "width_px": width, "height_px": height, "annotated_at": START}
    top = {"top1_class_id": classes[:, 0], "top1_label": _names(classes[:, 0]), "top1_prob": prob[:, 0]}
    tables = {"images": _table(schemas()["images"], images, source | shared | top | {"n_boxes": BOXES})}
    for table, of_each in (("boxes", BOXES), ("heatmaps", MAPS)):
        count = images * of_each
        low = rng.random((count, 2)) * 0.5
        high = low + 0.1 + rng.random((count, 2)) * 0.4
        columns = {name: np.repeat(np.array(source[name]), of_each) for name in ("image_id", "uri")}
        columns |= {"run_id": run_id, "rank": np.tile(np.arange(of_each), images), "method": "cam"}
        columns |= {"class_id": classes[:, :of_each].flatten(), "label": _names(classes[:, :of_each].flatten())}
        columns |= {"class_prob": prob[:, :of_each].flatten(), "box_score": 0.7 * prob[:, :of_each].flatten()}
        columns |= {"component": 0, "threshold": 0.2, "xmin": low[:, 0] * width, "ymin": low[:, 1] * height}
        columns |= {"xmax": high[:, 0] * width, "ymax": high[:, 1] * height, "area_frac": (high - low).prod(axis=1)}
        columns |= {"heat_h": SIDE, "heat_w": SIDE, "heat_min": -1.0, "heat_max": 4.0}
        if table == "heatmaps":
            waves = np.sin(np.linspace(0, 3, SIDE * SIDE)[None] * rng.uniform(1, 30, (count, 1)))
            cells = pa.array((127 + 127 * waves).astype(np.uint8).flatten())
            columns["heat"] = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * SIDE * SIDE, cells)
        tables[table] = _table(schemas()[table], count, columns)
    return tables


def _names(classes: np.ndarray) -> np.ndarray:
    return np.char.add("class ", classes.astype(str))


def _table(schema: pa.Schema, count: int, columns: dict[str, Any]) -> pa.Table:
    """Return ``count`` rows of ``schema``; a single value stands for all rows, and a missing column is null."""
    found = []
    for one in schema:
        value = columns.get(one.name)
        many = isinstance(value, list | np.ndarray | pa.Array)
        found.append(pa.array(value if many else [value] * count).cast(one.type))
    return pa.table(found, schema=schema)


command = benchmark(
    "report_page",
    "Measure `camlake report`: seconds, bytes, and how soon a browser shows the page.",
    PageMeasure,
    measure,
    "--images PHOTOS --result report-page.json",
)

if __name__ == "__main__":
    main(command)
