"""Pictures of an output with their maps and boxes as arrays, for sheets of pictures."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.outputs import reader as camlake
from pipeline.outputs.drawing import MapView, PictureView
from pipeline.outputs.export.plans import add_plans
from pipeline.outputs.page.page_entries import Entry, entries_of
from pipeline.outputs.page.page_pictures import read_pictures
from pipeline.outputs.page.sample import sample
from pipeline.outputs.reader import Lake
from pipeline.storage.truth.truth import Truth
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig


def picture_views(
    lake: Lake, out: str, storage: StorageConfig, model: str, n_pictures: int, truth: Truth | None = None
) -> list[PictureView]:
    """Return up to ``n_pictures`` images of one model, chosen as for a page, with their maps and boxes.

    An image that can't be fetched any more, or has changed so that it can't be decoded, is left out.
    """
    con = lake.connection()
    entries = entries_of(con, model, sample(lake, model, n_pictures), truth)
    add_plans(lake, out, storage)
    read = dict(read_pictures(con, model, [one["id"] for one in entries], storage, None, lambda picture: picture))
    views = []
    for entry in entries:
        picture = read[entry["id"]]
        if not isinstance(picture, RejectedImage):
            maps = [_map_view(entry, index) for index, one in enumerate(entry["classes"]) if one["heat"]]
            with_boxes = [one for one in maps if len(one.boxes_xyxy)]
            views.append(PictureView(entry["uri"], picture.pixels, with_boxes, _boxes(entry["truth"])))
    return views


def _map_view(entry: Entry, index: int) -> MapView:
    """Return the map of one class with its boxes at the lowest threshold."""
    one = entry["classes"][index]
    boxes = [box for box in entry["boxes"] if box["class"] == index]
    lowest = min((box["threshold"] for box in boxes), default=0.0)
    sides = [box["xyxy"] for box in boxes if box["threshold"] == lowest]
    return MapView(one["label"], one["prob"] or 0.0, camlake.heatmap(_row(one["heat"])), _boxes(sides))


def _row(stored: Mapping[str, Any]) -> dict[str, Any]:
    heat = np.frombuffer(base64.b64decode(stored["q"]), np.uint8)
    return {
        "heat": heat,
        "heat_h": stored["h"],
        "heat_w": stored["w"],
        "heat_min": stored["lo"],
        "heat_max": stored["hi"],
    }


def _boxes(sides: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(sides, np.float32).reshape(-1, 4)
