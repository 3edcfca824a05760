"""Cuts a box's part of a class map at the size of its image, as COCO's run lengths.

A run is a stretch of a mask in one column. Many boxes are cut at a time: their pixels lie in one array, so numpy finds
the ends of all runs at once.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Mask = dict[str, Any] | None
"""``size`` and compressed ``counts`` as text; None where no pixel is inside."""

PIXELS = 500_000
"""About the pixels of the boxes that are cut together, where no single box has more. With four times as many the system
took and cleared pages of memory for each part, which cost 10 s of a million boxes."""


class _Ends(NamedTuple):
    """Where runs begin and end in turn, box by box."""

    box: NDArray[np.int64]
    x: NDArray[np.int64]
    """The column in the box."""
    y: NDArray[np.int64]
    """The row in the box: a run's first one, or the one behind its last."""


def cut_masks(maps: NDArray[np.float32], thresholds: NDArray[np.float32], places: NDArray[np.int64]) -> Iterator[Mask]:
    """Yield the masks of N boxes, each the component of its map that gave the box.

    ``maps`` (N, w, h): the columns of a map lie one after the other, as in run lengths. ``places`` (N, 3, 2): in pixels
    the first x and y of the box, those behind its last ones, width and height of the image.
    """
    pixels = (places[:, 1] - places[:, 0]).prod(axis=1).cumsum()
    parts = np.flatnonzero(np.diff(pixels // PIXELS)) + 1
    for first, behind in zip([0, *parts], [*parts, len(maps)], strict=True):
        yield from _cut(maps[first:behind], thresholds[first:behind], places[first:behind])


def _cut(maps: NDArray[np.float32], thresholds: NDArray[np.float32], places: NDArray[np.int64]) -> Iterator[Mask]:
    """Yield the masks of boxes; see ``cut_masks``.

    ``framed`` has their pixels column by column, and a False before the first and behind each column.
    """
    wide, high = (places[:, 1] - places[:, 0]).T
    starts = np.concatenate([[0], np.cumsum(wide * (high + 1))])
    framed = np.zeros(starts[-1] + 1, np.bool_)
    insides = [
        framed[start + 1 : end + 1].reshape(-1, height + 1)[:, :height]
        for start, end, height in zip(starts[:-1].tolist(), starts[1:].tolist(), high.tolist(), strict=True)
    ]
    for inside, cells, threshold, place in zip(insides, maps, thresholds, places.tolist(), strict=True):
        _compare(cells, threshold, place, inside)
    ends = _ends(framed, starts, high)
    if scattered := _scattered(ends):
        for box in scattered:
            insides[box][:] = _component(np.ascontiguousarray(insides[box]).view(np.uint8))
        ends = _ends(framed, starts, high)
    yield from _run_lengths(ends, places)


def _compare(
    cells: NDArray[np.float32], threshold: np.float32, place: list[list[int]], inside: NDArray[np.bool_]
) -> None:
    """Set ``inside`` where the map, interpolated as ``cv2.resize`` does it, reaches the threshold.

    Only the box is interpolated: bilinear, with one matrix for each side.
    """
    (left, top), (right, bottom), (width, height) = place
    of_x, of_y = _weights(cells.shape[0], width)[left:right], _weights(cells.shape[1], height)[top:bottom]
    np.greater_equal(of_x @ (cells @ of_y.T), threshold, out=inside)


def _ends(framed: NDArray[np.bool_], starts: NDArray[np.int64], high: NDArray[np.int64]) -> _Ends:
    """Return the ends of all runs; box b lies in ``framed`` behind ``starts[b]`` and is ``high[b]`` pixels high."""
    (changes,) = (framed[1:] != framed[:-1]).nonzero()
    box = np.repeat(np.arange(len(high)), np.diff(np.searchsorted(changes, starts)))
    return _Ends(box, *np.divmod(changes - starts[box], high[box] + 1))


def _scattered(ends: _Ends) -> list[int]:
    """Return the boxes in which a run doesn't touch the next one; all runs of the others are one component."""
    box, column, first, end = ends.box[::2], ends.x[::2], ends.y[::2], ends.y[1::2]
    touch = (column[1:] - column[:-1] == 1) & (first[1:] <= end[:-1]) & (first[:-1] <= end[1:])
    apart: list[int] = np.unique(box[1:][~touch & (box[1:] == box[:-1])]).tolist()
    return apart


def _run_lengths(ends: _Ends, places: NDArray[np.int64]) -> Iterator[Mask]:
    """Yield the run lengths of each box in the whole image."""
    (left, top), (width, height) = places[:, 0].T, places[:, 2].T
    box = ends.box
    behind = (left[box] + ends.x) * height[box] + top[box] + ends.y
    # A run that ends with its column of the image may go on at the start of the next one.
    goes_on = (behind[1:-1:2] == behind[2::2]) & (box[1:-1:2] == box[2::2])
    kept = np.concatenate([[True], np.repeat(~goes_on, 2), [True]])[: len(box)]
    behind, box = behind[kept], box[kept]
    firsts = np.searchsorted(box, np.arange(len(places) + 1))
    bounds = np.stack([np.zeros_like(width), width * height], axis=1).ravel()
    lengths = np.diff(np.insert(behind, np.repeat(firsts, 2)[1:-1], bounds))
    for number, (first, last) in enumerate(zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True)):
        counts = lengths[first + 2 * number : last + 2 * number + 1]
        yield _compressed(counts, int(width[number]), int(height[number])) if len(counts) > 1 else None


def _compressed(counts: NDArray[np.int64], width: int, height: int) -> Mask:
    size = [height, width]
    whole = {"counts": counts[: len(counts) - (counts[-1] == 0)], "size": size}
    return {"size": size, "counts": coco_mask.frPyObjects(whole, height, width)["counts"].decode("ascii")}


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
