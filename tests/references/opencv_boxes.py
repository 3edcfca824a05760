"""Boxes by OpenCV (resize, threshold, connected components), as a reference for the exact boxes.

This module needs no network and no photograph. ``agreement`` counts how often an exact box equals OpenCV's box on an
upsampled map. For every other map it checks that the part of the map that causes the difference is narrower than a
pixel.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.arrays.boxes import foreground_levels, level_boxes

Floats = NDArray[np.float32] | NDArray[np.float64]
Verdict = Literal["agrees", "tie", "bridge", "hairline", "unexplained"]

THRESHOLD = 0.2
"""The CAM paper's threshold, as a share of the map's maximum."""
SCALE = 8
"""Pixels of the upsampled map for each cell, on each axis. Two edges agree if they differ by at most one such pixel."""
_FINE = 64
"""Pixels for each cell in the finer check. A detail narrower than one pixel at SCALE is several pixels wide here."""
_MOVES = np.concatenate([-(0.5 ** np.arange(17)), [0], 0.5 ** np.arange(17)])
"""Offsets of the levels that are tried, as shares of the surface's change over one fine pixel; denser near 0."""


def smooth_maps(count: int, side: int, blur: float, seed: int = 0) -> NDArray[np.float32]:
    """Return maps (count, side, side): white noise, blurred by a Gaussian.

    Its standard deviation is ``blur`` sevenths of the side.
    """
    noise = np.random.default_rng(seed).normal(size=(count, side, side)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(one, (0, 0), blur * side / 7) for one in noise])


def component_boxes(surface: Floats, level: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return boxes (K, 4) xyxy and pixel counts (K,) of the 8-connected components of ``surface >= level``.

    The largest component comes first. Components of equal size keep OpenCV's order, by rows.
    """
    foreground = (surface >= level).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    x, y, width, height, area = stats[1:][np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")].T
    return np.stack([x, y, x + width, y + height], axis=1).astype(np.float64), area.astype(np.int64)


def upsampled(grid: Floats, size_hw: tuple[int, int]) -> Floats:
    """Return a map scaled to (height, width) by OpenCV's bilinear interpolation."""
    scaled: Floats = cv2.resize(grid, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return scaled


class _Case(NamedTuple):
    """One map at one level with its exact components, the largest first."""

    grid: Floats
    level: float
    exact: NDArray[np.float64]
    """(K, 4) in cells."""


def agreement(maps: NDArray[np.float32]) -> Counter[Verdict]:
    """Count the verdicts (see ``_verdict``) on the maps (N, h, w); maps without a positive value are not counted."""
    return Counter(_verdict(case) for case in _cases(maps))


def _cases(maps: NDArray[np.float32]) -> Iterator[_Case]:
    tensor = torch.from_numpy(maps)
    levels = foreground_levels(tensor, torch.tensor([THRESHOLD]))
    found = level_boxes(tensor, levels, components="all")
    index, start = np.unique(found.map_index.numpy(), return_index=True)
    for row, exact in zip(index, np.split(found.boxes_xyxy.double().numpy(), start[1:]), strict=True):
        yield _Case(maps[row], float(levels[row, 0]), exact)


def _verdict(case: _Case) -> Verdict:
    """Compare OpenCV's largest box on the upsampled map with the exact box.

    "agrees": every edge differs by at most one pixel of the map upsampled SCALE times. "tie" and "bridge": the edges
    agree to that width only on the map upsampled _FINE times, so that a detail narrower than a pixel makes the
    difference. It is a "tie" where OpenCV's box at SCALE is the box of another exact component, which has more pixels
    at SCALE only; otherwise it is a "bridge" (or a tip, or a whole component). "hairline": the edges agree only for a
    level that differs by no more than the surface's change over one fine pixel. "unexplained": none of these.
    """
    coarse = _opencv_box(case, SCALE)
    if _is_near(case.exact[:1], coarse):
        return "agrees"
    fine = _opencv_box(case, _FINE)
    if _is_near(case.exact[:1], fine):
        return "tie" if _is_near(case.exact[1:], coarse) else "bridge"
    around, vanishes = _around(case)
    hairline = _is_near(around, fine) if fine is not None else vanishes
    return "hairline" if hairline else "unexplained"


def _opencv_box(case: _Case, scale: int) -> NDArray[np.float64] | None:
    height, width = case.grid.shape
    boxes, _ = component_boxes(upsampled(case.grid, (height * scale, width * scale)), case.level)
    return boxes[0] / scale if len(boxes) else None


def _is_near(exact: NDArray[np.float64], box: NDArray[np.float64] | None) -> bool:
    """Return whether one of the boxes (K, 4) has every edge within a pixel at SCALE of ``box``; False for None."""
    # The 1.01 allows a hundredth of a pixel for rounding in OpenCV's weights and in float32.
    return box is not None and bool((np.abs(exact - box) <= 1.01 / SCALE).all(axis=1).any())


def _around(case: _Case) -> tuple[NDArray[np.float64], bool]:
    """Return the exact boxes (K, 4) at nearby levels, and whether one of these levels has no box.

    A nearby level differs by no more than the surface's change over one fine pixel.
    """
    steepest = max(np.abs(np.diff(case.grid, axis=axis)).max(initial=0) for axis in (0, 1))
    change = 2 * steepest / _FINE
    levels = torch.from_numpy(case.level + change * _MOVES).float()
    found = level_boxes(torch.from_numpy(case.grid[None]), levels[None], components="all")
    return found.boxes_xyxy.double().numpy(), len(found.level_index.unique()) < len(_MOVES)
