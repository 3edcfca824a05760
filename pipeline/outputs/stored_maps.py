"""Cuts new boxes from stored maps and returns them as rows of the tables."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrays.calibration import Calibration
from pipeline.arrays.maps import dequantize
from pipeline.models.localize.box_rules import Boxes, BoxRule, CutMaps, boxes_in_pixels, cut_maps
from schemas.box_rules import HEURISTIC_CLASSES
from schemas.tables import TABLES, Table

_CUT_CELLS = 250_000
"""Map cells × thresholds that are cut at once: so many grids stay in a processor's cache, as in evaluate's sweep."""


class NewTables(NamedTuple):
    """The new rows of some inputs."""

    tables: dict[Table, pa.Table]
    """The tables images, boxes and quarantine; one without rows may be missing."""
    maps_without_box: int
    """Maps with no positive value."""
    maps_without_prob: int
    """Maps whose boxes are left out, because the probability of their class is not known."""


def new_tables(
    rows: Mapping[Table, pa.Table], rule: BoxRule, run_id: str, method: str, calibration: Calibration | None
) -> NewTables:
    """Return rows for the run ``run_id``: images with their new boxes, and unchanged rejections.

    ``rows`` holds the rows of the same inputs in images, boxes, heatmaps and quarantine. The probability of a class is
    that of its stored box; for the most probable class it is ``top1_prob`` of the image.
    """
    tables: dict[Table, pa.Table] = {}
    if rejected := len(rows["quarantine"]):
        tables["quarantine"] = _set(rows["quarantine"], "run_id", pa.repeat(run_id, rejected))
    images, maps = rows["images"], rows["heatmaps"]
    if not len(images):
        return NewTables(tables, 0, 0)
    without_box = int((maps["heat_max"].to_numpy() <= 0).sum())
    maps = _first_ranks(maps) if rule.name == "heuristic" else maps
    image = pc.index_in(maps["image_id"], images["image_id"].combine_chunks()).to_numpy().astype(np.int64)
    sizes_hw = np.stack([images[side].to_numpy() for side in ("height_px", "width_px")], axis=1).astype(np.int64)
    boxes = boxes_in_pixels(rule, list(_cut(rule, maps, sizes_hw[image])))
    prob = _probabilities(images, rows["boxes"], image, maps["rank"].to_numpy())
    known = ~np.isnan(prob[boxes.map])
    without_prob = len(np.unique(boxes.map[~known]))
    boxes = Boxes._make(column[known] for column in boxes)
    n_boxes = np.bincount(image[boxes.map], minlength=len(images)).astype(np.int32)
    images = _set(images, "run_id", pa.repeat(run_id, len(images)))
    tables["images"] = _set(images, "n_boxes", pa.array(n_boxes))
    columns = _columns(maps, boxes) | {"class_prob": prob[boxes.map], "run_id": pa.repeat(run_id, len(boxes.map))}
    columns |= {"uri": images["uri"].take(pa.array(image[boxes.map]))}
    columns |= {"method": pa.repeat(method, len(boxes.map))}
    scores = calibration.scores(columns) if calibration else pa.nulls(len(boxes.map), pa.float32())
    columns |= {"box_score": scores}
    schema = TABLES["boxes"].schema()
    tables["boxes"] = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    return NewTables(tables, without_box, without_prob)


def _set(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    index = rows.schema.get_field_index(name)
    return rows.set_column(index, rows.schema.field(name), values.cast(rows.schema.field(name).type))


def _first_ranks(maps: pa.Table) -> pa.Table:
    """Return the maps of the classes that the heuristic uses."""
    return maps.filter(pc.less(maps["rank"], HEURISTIC_CLASSES))


def _cut(rule: BoxRule, maps: pa.Table, sizes_hw: NDArray[np.int64]) -> Iterator[CutMaps]:
    """Yield the boxes of the maps: maps of one shape together, at most _CUT_CELLS at a time."""
    shapes = np.stack([maps[name].to_numpy() for name in ("heat_h", "heat_w")], axis=1)
    ranks = maps["rank"].to_numpy().astype(np.int64)
    for height, width in np.unique(shapes, axis=0).tolist():
        same = np.flatnonzero((shapes == (height, width)).all(axis=1))
        at_once = max(1, _CUT_CELLS // (height * width * len(rule.thresholds)))
        for start in range(0, len(same), at_once):
            own = same[start : start + at_once]
            part = maps.take(pa.array(own))
            heat = pc.list_flatten(part["heat"]).to_numpy().reshape(-1, height, width)
            low, high = part["heat_min"].to_numpy(), part["heat_max"].to_numpy()
            yield cut_maps(rule, dequantize(heat, low, high), own, ranks[own], sizes_hw[own])


def _probabilities(
    images: pa.Table, boxes: pa.Table, image: NDArray[np.int64], rank: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return class_prob (N,) of N maps, NaN where it is unknown; ``image`` (N,) gives rows of ``images``."""
    ids = images["image_id"].combine_chunks()
    of_box = pc.index_in(boxes["image_id"], ids).to_numpy().astype(np.int64)
    keys = _keys(of_box, boxes["rank"].to_numpy())
    keys = np.concatenate([_keys(np.arange(len(images)), np.zeros(len(images), np.int32)), keys])
    values = np.concatenate([images["top1_prob"].to_numpy(), boxes["class_prob"].to_numpy()])
    keys, first = np.unique(keys, return_index=True)
    wanted = _keys(image, rank)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[first[place]], np.float32(np.nan))


def _keys(image: NDArray[np.int64], rank: NDArray[np.int32]) -> NDArray[np.int64]:
    return (image << 32) + rank


def _columns(maps: pa.Table, boxes: Boxes) -> dict[str, Any]:
    own = pa.array(boxes.map)
    columns: dict[str, Any] = {name: maps[name].take(own) for name in ("image_id", "rank", "class_id", "label")}
    columns |= {"component": boxes.component, "threshold": boxes.threshold, "area_frac": boxes.area_frac}
    return columns | {side: boxes.xyxy[:, index] for index, side in enumerate(("xmin", "ymin", "xmax", "ymax"))}
