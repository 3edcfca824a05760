"""Cuts a box's part of a class map at the size of its image, as COCO's run lengths."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Mask = dict[str, Any] | None
"""``size`` and compressed ``counts`` as text; None where no pixel is inside."""


def cut_masks(maps: NDArray[np.float32], thresholds: NDArray[np.float32], places: NDArray[np.int64]) -> Iterator[Mask]:
    """Yield the masks of N boxes, each the component of its map that gave the box.

    ``maps`` (N, w, h): the columns of a map lie one after the other, as in run lengths. ``places`` (N, 3, 2): in pixels
    the first x and y of the box, those behind its last ones, width and height of the image.
    """
    for cells, threshold, place in zip(maps, thresholds, places.tolist(), strict=True):
        yield _mask(cells, threshold, *place)


def _mask(
    cells: NDArray[np.float32], threshold: np.float32, start_xy: list[int], end_xy: list[int], size_wh: list[int]
) -> Mask:
    """Return the run lengths of the box's part of a map (w, h); None where it has no pixel.

    Only the box is interpolated: bilinear, as ``cv2.resize`` does it, with one matrix for each side.
    """
    (left, top), (right, bottom), (width, height) = start_xy, end_xy, size_wh
    of_x, of_y = _weights(cells.shape[0], width)[left:right], _weights(cells.shape[1], height)[top:bottom]
    framed, inside = _framed(right - left, bottom - top)
    np.greater_equal(of_x @ (cells @ of_y.T), threshold, out=inside)
    x, y = _ends(framed, bottom - top)
    if not len(x):
        return None
    if not _is_chain(x, y):
        inside[:] = _component(np.ascontiguousarray(inside).view(np.uint8))
        x, y = _ends(framed, bottom - top)
    ends = (left + x) * height + top + y
    if bottom - top == height:  # A run that ends with its column may go on at the start of the next one.
        goes_on = ends[1:-1:2] == ends[2::2]
        ends = ends[np.concatenate([[True], np.repeat(~goes_on, 2), [True]])]
    counts = np.empty(len(ends) + 1, np.int64)
    counts[0], counts[1:-1], counts[-1] = ends[0], ends[1:] - ends[:-1], width * height - ends[-1]
    runs = coco_mask.frPyObjects(
        {"counts": counts[: len(counts) - (counts[-1] == 0)], "size": [height, width]}, height, width
    )
    return {"size": [height, width], "counts": runs["counts"].decode("ascii")}


def _framed(width: int, height: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return pixels, column by column with a False before and behind each one, and (width, height) their view."""
    framed = np.zeros(width * (height + 1) + 1, np.bool_)
    return framed, framed[1:].reshape(width, height + 1)[:, :height]


def _ends(framed: NDArray[np.bool_], height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return x and y of the pixels at which a run of a column begins, and behind which it ends."""
    (changes,) = (framed[1:] != framed[:-1]).nonzero()
    x, y = np.divmod(changes, height + 1)
    return x, y


def _is_chain(x: NDArray[np.int64], y: NDArray[np.int64]) -> bool:
    """Return whether each run touches the next one, as they do in most masks: then they are one component."""
    columns, first, end = x[::2], y[::2], y[1::2]
    touch = (columns[1:] - columns[:-1] == 1) & (first[1:] <= end[:-1]) & (first[:-1] <= end[1:])
    return bool(touch.all())


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
