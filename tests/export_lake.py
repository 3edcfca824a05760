"""An output made by hand for the tests of ``camlake export``: real pictures, listed as inputs, with chosen boxes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.export import run as run_export
from jobs.terminal.console import Screen
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.layout import LakePaths, new_run_id
from pipeline.storage.lake.lease import Lease
from schemas.options.config import StorageConfig
from schemas.options.export import ExportConfig
from schemas.tables import TABLES
from tests.fake_lake import MODEL, START, FakeLake, manifest_of, schemas

HOSTILE = {
    3: 'O\'Neil "the" <b>&amp;',
    7: "naïve/日本 🐟",
    8: "line\nbreak, comma; tab\t",
    20: "cat",
}
"""Labels by class id."""
HEAT = {"heat_h": 2, "heat_w": 3, "heat_min": -1.0, "heat_max": 1.0, "heat": [0, 51, 102, 153, 204, 255]}
"""The map -1 -0.6 -0.2 and 0.2 0.6 1."""


class Told(NamedTuple):
    """A box of the output."""

    class_id: int
    xyxy: tuple[float, float, float, float]
    score: float | None = 0.5
    prob: float = 0.5
    rank: int = 0
    component: int = 0
    threshold: float = 0.5


def write_pictures(folder: Path, sizes_wh: Mapping[str, tuple[int, int]]) -> None:
    """Write a picture of noise for each name; the name's suffix chooses the format."""
    rng = np.random.default_rng(0)
    for name, (width, height) in sizes_wh.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(target), rng.integers(0, 256, (height, width, 3), np.uint8))


def make_lake(
    out: Path,
    inputs: Sequence[Path],
    size_wh: tuple[int, int],
    boxes: Mapping[str, Sequence[Told]],
    *,
    labels: Mapping[int, str] = HOSTILE,
    heat: Mapping[str, Any] = HEAT,
    figure: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    model: str = MODEL,
) -> FakeLake:
    """Return an output of all ``inputs``; ``boxes`` by the ends of the uris, none for all others."""
    storage = StorageConfig()
    plan = pa.Table.from_batches([part for one in inputs for part in list_inputs(str(one), storage).batches])
    lake = FakeLake(str(out))
    run_id = new_run_id()
    rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for planned in plan.to_pylist():
        own = next((found for end, found in boxes.items() if planned["uri"].endswith(end)), ())
        key = {"image_id": planned["image_id"], "run_id": run_id}
        version = {name: planned[name] for name in ("uri", "etag", "size_bytes", "modified_at")}
        top = {"top1_class_id": 3, "top1_label": "x", "top1_prob": 0.5, "n_boxes": len(own), "annotated_at": START}
        kind = "PNG" if ".png" in planned["uri"] else "JPEG"
        shape = {"width_px": size_wh[0], "height_px": size_wh[1], "format": kind}
        rows["images"].append(key | version | shape | top)
        for box in own:
            called = {"rank": box.rank, "class_id": box.class_id, "label": labels[box.class_id]}
            sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box.xyxy, strict=True))
            area = (box.xyxy[2] - box.xyxy[0]) * (box.xyxy[3] - box.xyxy[1]) / (size_wh[0] * size_wh[1])
            cut = {"component": box.component, "threshold": box.threshold, "method": "cam", "uri": planned["uri"]}
            scores = {"area_frac": area, "box_score": box.score, "class_prob": box.prob}
            rows["boxes"].append(key | called | sides | cut | scores)
            if box.component == 0:
                rows["heatmaps"].append(key | called | heat)
        rows["foreground"] += [key | figure] if figure else []
    tables = {table: pa.Table.from_pylist(rows[table], schema=schema) for table, schema in schemas().items()}
    with Lease.acquire(lake.fs, lake.root, run_id) as lease:
        manifest = manifest_of(run_id, model, len(plan))
        manifest = manifest.model_copy(update={"settings": manifest.settings | dict(settings)})
        start_run(lake.fs, lake.root, manifest)
        place = Path(lake.path(LakePaths(lake.root).plan_dir(run_id)))
        place.mkdir(parents=True)
        pq.write_table(plan, place / "part-00000.parquet")
        lake.commit(run_id, lease.generation, "000000", tables, model)
        finish_run(lake.fs, lake.root, manifest, lease.generation)
    return lake


def export(lake: FakeLake, dest: Path | str, to: str, **options: Any) -> None:
    """Run the verb in this process."""
    storage = {name: value for name, value in lake.storage.model_dump().items() if value is not None}
    run_export(ExportConfig.resolve({"out": lake.out, "dest": str(dest), "to": to, **storage, **options}), Screen())
