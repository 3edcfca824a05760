"""The part of a class map that gave each box, at the size of its image, as COCO's run lengths."""

from collections.abc import Iterator
from functools import lru_cache
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
from pipeline.outputs.stored_maps import map_shapes, map_values
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.whole_objects import read_whole
from schemas.errors import StoreError
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url

_SIDES = ("xmin", "ymin", "xmax", "ymax")


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
        sizes = np.stack([batch.images[name].to_numpy() for name in ("width_px", "height_px")], axis=1)
        sizes = np.repeat(sizes, np.diff(batch.offsets), axis=0)
        sides = np.stack([batch.boxes[name].to_numpy() for name in _SIDES], axis=1)
        starts = sides[:, :2].astype(np.int64)
        ends = np.minimum(np.ceil(sides[:, 2:]).astype(np.int64), sizes)
        thresholds = batch.boxes["threshold"].to_numpy()
        found: list[dict[str, Any] | None] = [None] * len(batch.boxes)
        needed = ("heat",) if self._foreground is None else ("heat", "fg")
        stored = [batch.boxes[name].is_valid().to_numpy() for name in needed]
        mapped = np.flatnonzero(np.all([thresholds != 0, *stored], axis=0))
        for own, shares in self._shares(batch.boxes.take(pa.array(mapped))):
            rows = mapped[own]
            places = zip(*(each[rows].tolist() for each in (starts, ends, sizes)), strict=True)
            for row, cells, threshold, place in zip(rows.tolist(), shares, thresholds[rows], places, strict=True):
                found[row] = _mask(cells, threshold, *place)
        return found

    def _shares(self, boxes: pa.Table) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield places (n,) in ``boxes`` and their maps (n, w, h) in shares of each one's maximum.

        The columns of a map lie one after the other, as in run lengths. One without a positive value is all 0.
        """
        shapes = map_shapes(boxes, "heat")
        if self._foreground is not None:
            shapes = np.concatenate([shapes, map_shapes(boxes, "fg")], axis=1)
        for shape in np.unique(shapes, axis=0):
            own = np.flatnonzero((shapes == shape).all(axis=1))
            rows = boxes.take(pa.array(own))
            cells = torch.from_numpy(map_values(rows, "heat"))
            if self._foreground is not None:
                cells = self._foreground.fused(cells[:, None], torch.from_numpy(map_values(rows, "fg")))[:, 0]
            cells = min_max(cells) if self._scaled else cells
            highest = cells.amax((1, 2), keepdim=True)
            yield own, (cells / highest).where(highest > 0, 0.0).transpose(1, 2).contiguous().numpy()


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


def _mask(
    cells: NDArray[np.float32], threshold: np.float32, start_xy: list[int], end_xy: list[int], size_wh: list[int]
) -> dict[str, Any] | None:
    """Return the run lengths of the box's part of a map (w, h); None where it has no pixel.

    Only the box is interpolated: bilinear, as ``cv2.resize`` does it, with one matrix for each side.
    """
    (left, top), (right, bottom), (width, height) = start_xy, end_xy, size_wh
    of_x, of_y = _weights(cells.shape[0], width)[left:right], _weights(cells.shape[1], height)[top:bottom]
    inside = of_x @ (cells @ of_y.T) >= threshold
    if not inside.any():
        return None
    columns = np.zeros((right - left) * height + 2, np.uint8)
    columns[1:-1].reshape(-1, height)[:, top:bottom] = _component(inside.view(np.uint8))
    ends = np.flatnonzero(columns[1:] != columns[:-1]) + left * height
    counts = np.diff(np.concatenate([[0], ends, [width * height]]))
    runs = coco_mask.frPyObjects(
        {"counts": counts[: len(counts) - (counts[-1] == 0)], "size": [height, width]}, height, width
    )
    return {"size": [height, width], "counts": runs["counts"].decode("ascii")}


@lru_cache(128)
def _weights(cells: int, pixels: int) -> NDArray[np.float32]:
    """Return (pixels, cells): the shares of the cells in each pixel of a side."""
    return np.asarray(cv2.resize(np.eye(cells, dtype=np.float32), (cells, pixels)), np.float32)


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
