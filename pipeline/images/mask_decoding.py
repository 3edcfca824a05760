"""Decodes masks of objects (COCO's polygons and run lengths, image files), and counts a map's pixels inside a mask."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.decode import USUAL_LIMITS, decode

Mask = NDArray[np.bool_]

SIDE = 224
"""Maps and masks are compared on SIDE×SIDE pixels, as wsolevaluation does."""
SCORES = 256
"""A map's values are compared in 256 steps, its stored precision."""
_ROUNDING = 2**-10
"""In steps: interpolation between equal values may be this much too low and must count as the same value."""


def polygon_mask(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> Mask:
    """Return (h, w): the union of polygons; each is x0 y0 x1 y1 … in pixels from the image's upper left corner.

    A pixel belongs to a polygon if its centre lies inside by the even-odd rule: an odd number of the polygon's edges
    cross the row of pixel centres to the left of it. No polygon gives an empty mask.
    """
    height, width = size_hw
    mask = np.zeros(size_hw, np.bool_)
    for polygon in polygons:
        start = np.asarray(polygon, np.float64).reshape(-1, 2) - 0.5
        end = np.roll(start, -1, axis=0)
        # All edges are turned downwards, so that an edge walked in both directions crosses a row at the same place.
        upwards = start[:, 1:] > end[:, 1:]
        start, end = np.where(upwards, end, start), np.where(upwards, start, end)
        low, high = (np.ceil(np.clip(ends[:, 1], 0, height)) for ends in (start, end))
        n_rows = (high - low).astype(np.int64)
        edge = np.repeat(np.arange(len(start)), n_rows)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(n_rows) - n_rows - low.astype(np.int64), n_rows)
        (x0, y0), (x1, y1) = start[edge].T, end[edge].T
        crossing = x0 + (row - y0) / (y1 - y0) * (x1 - x0)
        changes = np.zeros((height, width + 1), np.int64)
        np.add.at(changes, (row, np.ceil(np.clip(crossing, 0, width)).astype(np.int64)), 1)
        mask |= changes[:, :width].cumsum(axis=1) % 2 == 1
    return mask


def run_length_mask(counts: Sequence[int] | str, size_hw: tuple[int, int]) -> Mask:
    """Return the mask (h, w) of COCO's run lengths, given as a list or as COCO's compressed text.

    Runs go column by column and begin with background. Raises ValueError where the runs don't fill the image.
    """
    runs = np.asarray(_decompressed(counts) if isinstance(counts, str) else counts, np.int64)
    height, width = size_hw
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths of {int(runs.sum())} pixels for an image of {width}×{height}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decompressed(text: str) -> list[int]:
    """Return the run lengths of COCO's text.

    A character has 5 bits of a number, the lowest first. From the fourth number on, a number is the difference to the
    run length two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def mask_of_file(data: bytes) -> Mask:
    """Return (SIDE, SIDE): True where an encoded image, resized by nearest neighbour, has a grey value above 0.

    Raises RejectedImage where the image can't be decoded.
    """
    return _at_side(cv2.cvtColor(decode(data, USUAL_LIMITS, alpha="drop").pixels, cv2.COLOR_RGB2GRAY) > 0)


def pixel_counts(heat: NDArray[np.uint8], foreground: Mask, ignored: Mask) -> NDArray[np.int64]:
    """Return (2, SCORES): the numbers of pixels inside and outside the object with each value of the map.

    ``heat`` (h, w) spans 0 to 255, or is all 0. The map is resized bilinearly to SIDE×SIDE, the masks (H, W) by nearest
    neighbour. Pixels that are ``ignored`` and not inside the object are not counted.
    """
    surface = cv2.resize(heat.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    inside, left_out = _at_side(foreground), _at_side(ignored)
    values = np.clip(surface + _ROUNDING, 0, SCORES - 1).astype(np.int64)
    parts = (values[inside], values[~inside & ~left_out])
    return np.stack([np.bincount(part, minlength=SCORES) for part in parts])


def central_counts(foreground: Mask, ignored: Mask, share: float) -> NDArray[np.int64]:
    """Return (2, 2): numbers of pixels inside and outside the object, each outside (0) and inside (1) the central box.

    The central box covers ``share`` of each side. Ignored pixels are treated as in ``pixel_counts``.
    """
    margin = round(SIDE * (1 - share) / 2)
    box = np.zeros((SIDE, SIDE), np.int64)
    box[margin : SIDE - margin, margin : SIDE - margin] = 1
    inside, left_out = _at_side(foreground), _at_side(ignored)
    return np.stack([np.bincount(box[part], minlength=2) for part in (inside, ~inside & ~left_out)])


def _at_side(mask: Mask) -> Mask:
    scaled = cv2.resize(mask.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    return np.asarray(scaled > 0)
