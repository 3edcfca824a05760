"""The part of a class map that gave each box, at the size of its image, as COCO's run lengths."""

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from fsspec import AbstractFileSystem
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.arrays.figure_ground import min_max
from pipeline.models.localize.foreground import Foreground, foreground_of
from pipeline.outputs.export.batches import Batch
from pipeline.outputs.reader import heatmap
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.whole_objects import read_whole
from schemas.errors import StoreError
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url

_MAP_COLUMNS = ("heat_h", "heat_w", "heat_min", "heat_max", "heat", "fg_h", "fg_w", "fg_min", "fg_max", "fg")


class Masks:
    """Cuts masks by the rule by which a run cut its boxes."""

    def __init__(self, scaled: bool, foreground: Foreground | None) -> None:
        """``scaled``: thresholds are shares of a map's range, not of its maximum; ``foreground``: maps are fused."""
        self._scaled, self._foreground = scaled, foreground

    def of(self, batch: Batch) -> list[dict[str, Any] | None]:
        """Return the mask of each box: ``size`` and compressed ``counts`` as text; None where no pixel is inside.

        A pixel is inside where the map, interpolated to the image's size, reaches the box's threshold, and where it is
        connected with the box's part of the map. A box without a stored map has no mask.
        """
        names = [name for name in _MAP_COLUMNS if name in batch.boxes.schema.names]
        sizes = zip(*(batch.images[name].to_pylist() for name in ("height_px", "width_px")), strict=True)
        size_of = np.repeat(np.array(list(sizes), np.int64).reshape(-1, 2), np.diff(batch.offsets), axis=0).tolist()
        image_of = np.repeat(np.arange(len(batch)), np.diff(batch.offsets)).tolist()
        found: list[dict[str, Any] | None] = []
        known, surface = None, np.empty((0, 0), np.float32)
        for row, image, (height, width) in zip(_rows(batch.boxes, names), image_of, size_of, strict=True):
            if row["heat"] is None or not row["threshold"]:
                found.append(None)
                continue
            if known != (image, row["class_id"]):  # The boxes of one map follow each other.
                known, surface = (image, row["class_id"]), self._surface(row, (height, width))
            found.append(_encoded(surface >= row["threshold"], row))
        return found

    def _surface(self, row: Mapping[str, Any], size_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Return (W, H) the map at the image's size, in shares of the maximum; one without a positive value is all 0.

        Its columns lie one after the other, as in run lengths.
        """
        cells = heatmap(row)
        if self._foreground is not None:
            figure = {f"heat{name.removeprefix('fg')}": row[name] for name in _MAP_COLUMNS if name.startswith("fg")}
            maps, figures = (torch.from_numpy(one)[None, None] for one in (cells, heatmap(figure)))
            cells = self._foreground.fused(maps, figures[0])[0, 0].numpy()
        cells = min_max(torch.from_numpy(cells)[None])[0].numpy() if self._scaled else cells
        maximum = float(cells.max())
        shares = np.ascontiguousarray((cells / maximum if maximum > 0 else np.zeros_like(cells)).T)
        return np.asarray(cv2.resize(shares, size_hw, interpolation=cv2.INTER_LINEAR), np.float32)


def masks_of(run: RunManifest, fs: AbstractFileSystem, root: str) -> Masks:
    """Return the masks of a run's boxes; raises StoreError where its figure/ground direction is lost."""
    digest = run.settings.get("foreground", "off")
    foreground = None
    if digest != "off":
        path = LakePaths(root).foreground_file(run.model)
        content = read_whole(fs, path)
        foreground = None if content is None else foreground_of(content, path)
        if foreground is None or foreground.digest != digest:
            raise StoreError(
                f"{safe_url(path)}: the figure/ground direction of the maps is lost or changed; --no-masks does without"
            )
    return Masks(run.settings.get("box_rule") == "auto", foreground)


def _rows(boxes: pa.Table, names: list[str]) -> Iterator[dict[str, Any]]:
    columns = ["class_id", "threshold", "xmin", "ymin", "xmax", "ymax", *names]
    values = []
    for name in columns:
        column = boxes[name].combine_chunks()
        lists = pa.types.is_list(column.type)
        values.append(column.to_numpy(zero_copy_only=False) if lists else column.to_pylist())
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _encoded(inside: NDArray[np.bool_], row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the run lengths of the component of ``inside`` (W, H) that gave the box; None where it has no pixel."""
    width, height = inside.shape
    left, top = int(row["xmin"]), int(row["ymin"])
    right, bottom = min(width, int(np.ceil(row["xmax"]))), min(height, int(np.ceil(row["ymax"])))
    crop = inside[left:right, top:bottom].astype(np.uint8, order="C")
    if not crop.any():
        return None
    mask = np.zeros((width, height), np.uint8)
    mask[left:right, top:bottom] = _component(crop)
    runs = coco_mask.encode(mask.T)
    return {"size": [height, width], "counts": runs["counts"].decode("ascii")}


def _component(crop: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.bool_]:
    """Return the component that reaches the most of the crop's width and height.

    Two components of the box's part of the picture can't both reach all of its four sides.
    """
    _, hierarchy = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if np.count_nonzero(hierarchy[0, :, 3] < 0) == 1:  # The usual case: labels of the pixels take twenty times as long.
        return crop
    _, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8)
    sides = stats[1:, cv2.CC_STAT_WIDTH].astype(np.int64) * stats[1:, cv2.CC_STAT_HEIGHT]
    return np.asarray(labels == 1 + int(np.lexsort((stats[1:, cv2.CC_STAT_AREA], sides))[-1]))
