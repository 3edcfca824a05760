"""Pictures of an output with their maps and boxes: the rows are read, and the images are fetched and decoded again."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.images.decode import DecodedImage, DecodeLimits, decode
from pipeline.outputs import reader as camlake
from pipeline.outputs.reader import Lake
from pipeline.outputs.report import MapView, PictureView
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import quote_list
from pipeline.storage.lake.whole_objects import list_dir
from pipeline.storage.truth.truth import Truth
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig
from schemas.tables import PLAN

LIMITS = DecodeLimits(max_pixels=100_000_000, max_bytes=100_000_000, timeout_s=30)


def picture_views(
    lake: Lake, out: str, storage: StorageConfig, model: str, n_pictures: int, truth: Truth | None = None
) -> list[PictureView]:
    """Return up to ``n_pictures`` images of one model, spread evenly over the output, with their maps and boxes.

    An image that can't be fetched any more, or has changed so that it can't be decoded, is left out.
    """
    images = lake.arrow("images", ["image_id", "run_id", "uri"], model=model).sort_by("image_id")
    if not len(images) or not n_pictures:
        return []
    chosen = images.take(np.unique(np.linspace(0, len(images) - 1, n_pictures).astype(int)))
    ids = chosen["image_id"].to_pylist()
    rows = {table: _by_image(lake, table, ids, model) for table in ("heatmaps", "boxes")}
    true_boxes = _true_boxes(truth, chosen["uri"].to_pylist())
    views = []
    for image_id, uri, picture in _pictures(out, storage, chosen):
        maps = [view for row in rows["heatmaps"][image_id] if (view := _map_view(row, rows["boxes"][image_id]))]
        views.append(PictureView(uri, picture.pixels, maps, true_boxes.get(uri, np.empty((0, 4), np.float32))))
    return views


def _by_image(lake: Lake, table: Any, ids: Sequence[str], model: str) -> dict[str, list[dict[str, Any]]]:
    relation = lake.relation(table, model).filter(f"image_id IN {quote_list(ids)}")
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in relation.order("image_id, rank").to_arrow_table().to_pylist():
        grouped[row["image_id"]].append(row)
    return grouped


def _map_view(heat: dict[str, Any], boxes: Sequence[dict[str, Any]]) -> MapView | None:
    """Return a map with its boxes at the lowest threshold; None for a map that gave no box."""
    own = [box for box in boxes if box["class_id"] == heat["class_id"]]
    if not own:
        return None
    own = [box for box in own if box["threshold"] == min(each["threshold"] for each in own)]
    sides = [[box[side] for side in ("xmin", "ymin", "xmax", "ymax")] for box in own]
    return MapView(
        heat["label"], own[0]["class_prob"], camlake.heatmap(heat), np.array(sides, np.float32).reshape(-1, 4)
    )


def _pictures(out: str, storage: StorageConfig, chosen: pa.Table) -> list[tuple[str, str, DecodedImage]]:
    """Return id, uri and pixels of the images that can still be read, in the order of ``chosen``."""
    fs, root = connect(out, storage)
    layout = LakePaths(root)
    plans = []
    for run_id in pc.unique(chosen["run_id"]).to_pylist():
        wanted = chosen.filter(pc.equal(chosen["run_id"], run_id))["image_id"]
        for path in list_dir(fs, layout.full(layout.plan_dir(run_id))):
            with fs.open(path, "rb") as file:
                plans.append(pq.read_table(file, filters=pc.field("image_id").isin(wanted), schema=PLAN))
    plan = pa.concat_tables([PLAN.empty_table(), *plans])
    found = []
    for row, data in zip(plan.to_pylist(), Fetcher(storage, LIMITS.max_bytes).fetch(plan), strict=True):
        try:
            if not isinstance(data, RejectedImage):
                found.append((row["image_id"], row["uri"], decode(data, LIMITS)))
        except RejectedImage:
            continue
    return sorted(found, key=lambda one: one[0])


def _true_boxes(truth: Truth | None, uris: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    if truth is None:
        return {}
    boxes: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for pair, place in enumerate(truth.match(uris)):
        if place >= 0:
            boxes[uris[place]].append(truth.boxes_xyxy[truth.owner == pair])
    return {uri: np.concatenate(parts).astype(np.float32) for uri, parts in boxes.items()}
