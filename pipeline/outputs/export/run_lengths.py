"""Cuts a box's part of a class map at the size of its image, as COCO's run lengths; for many boxes in processes.

It imports nothing heavy, because each of these processes imports it.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

PROCESSES_FROM = 50_000
"""Least boxes of an export that is worth the second in which its processes start."""
MOST_PROCESSES = 16
_AT_ONCE = 500

Mask = dict[str, Any] | None
"""``size`` and compressed ``counts`` as text; None where no pixel is inside."""


class BoxMaps(NamedTuple):
    """N boxes with their maps."""

    cells: NDArray[np.float32]
    """(N, w, h): maps, whose columns lie one after the other, as in run lengths."""
    thresholds: NDArray[np.float32]
    """(N,)."""
    places: NDArray[np.int64]
    """(N, 3, 2): in pixels the first x and y of the box, those behind its last ones, width and height of the image."""

    def parts(self) -> Iterator["BoxMaps"]:
        """Yield some boxes at a time."""
        for start in range(0, len(self.cells), _AT_ONCE):
            yield BoxMaps._make(column[start : start + _AT_ONCE] for column in self)


Cut = Callable[[BoxMaps], list[Mask]]


@contextmanager
def mask_cutter(boxes: int) -> Iterator[Cut]:
    """Yield a function that returns the masks of boxes; for an export of many ``boxes`` all cores work for it."""
    cores = min(os.cpu_count() or 1, MOST_PROCESSES)
    if boxes < PROCESSES_FROM or cores == 1:
        yield cut_masks
        return
    with ProcessPoolExecutor(
        cores,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is the parent's to answer.
    ) as pool:
        yield lambda maps: [*chain.from_iterable(pool.map(cut_masks, maps.parts()))]


def cut_masks(maps: BoxMaps) -> list[Mask]:
    """Return the mask of each box, by the component of its map that gave it."""
    rows = zip(maps.cells, maps.thresholds, maps.places.tolist(), strict=True)
    return [_mask(cells, threshold, *place) for cells, threshold, place in rows]


def _mask(
    cells: NDArray[np.float32], threshold: np.float32, start_xy: list[int], end_xy: list[int], size_wh: list[int]
) -> Mask:
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
