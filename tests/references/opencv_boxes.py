"""OpenCV's boxes, which the exact ones are held against: resize, threshold, connected components.

Needs no network and no photograph; ``agreement`` says how often an exact box is OpenCV's on an upsampled map, and
shows of each other one that what parts the two is narrower than a pixel.
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
"""The paper's."""
SCALE = 8
"""How many pixels of the upsampled map a cell has on each axis; edges are to agree within one of them."""
_FINE = 64
"""The scale at which what parted two boxes at SCALE is many pixels wide, if it is there at all."""
_MOVES = np.concatenate([-(0.5 ** np.arange(17)), [0], 0.5 ** np.arange(17)])
"""Levels tried, as shares of what the surface changes over one fine pixel: the closer, the denser."""


def smooth_maps(count: int, side: int, blur: float, seed: int = 0) -> NDArray[np.float32]:
    """Return ``count`` maps of side×side cells: white noise blurred by a Gaussian of ``blur`` sevenths of the side."""
    noise = np.random.default_rng(seed).normal(size=(count, side, side)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(one, (0, 0), blur * side / 7) for one in noise])


def component_boxes(surface: Floats, level: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return boxes (K, 4) xyxy and pixel counts (K,) of the 8-connected components of ``surface >= level``.

    The largest comes first; of equal ones the one that is met first by rows.
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
    """Return how many of the maps (N, h, w) with a positive value get which verdict; see ``_verdict``."""
    return Counter(_verdict(case) for case in _cases(maps))


def _cases(maps: NDArray[np.float32]) -> Iterator[_Case]:
    tensor = torch.from_numpy(maps)
    levels = foreground_levels(tensor, torch.tensor([THRESHOLD]))
    found = level_boxes(tensor, levels, components="all")
    index, start = np.unique(found.map_index.numpy(), return_index=True)
    for row, exact in zip(index, np.split(found.boxes_xyxy.double().numpy(), start[1:]), strict=True):
        yield _Case(maps[row], float(levels[row, 0]), exact)


def _verdict(case: _Case) -> Verdict:
    """Return how OpenCV's largest box on the upsampled map stands to the exact one.

    "agrees": every edge within one of its pixels. Otherwise something narrower than a pixel is in play if on the 64
    times upsampled map every edge agrees within that same width: "tie" where OpenCV's box is that of another exact
    component, whose count of pixels only then came out larger, else "bridge" (or a tip, or a whole component).
    "hairline": not even then, but on a level that a move by one of the fine pixels makes of this one.
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
    """Tell whether one of the boxes (K, 4) has every edge within a pixel of SCALE of ``box``, which may be missing."""
    # A hundredth of a pixel for rounding, in OpenCV's weights and in float32.
    return box is not None and bool((np.abs(exact - box) <= 1.01 / SCALE).all(axis=1).any())


def _around(case: _Case) -> tuple[NDArray[np.float64], bool]:
    """Return the exact boxes (K, 4) at levels nearby, and whether a level has none.

    Nearby is within what the surface changes over a fine pixel.
    """
    steepest = max(np.abs(np.diff(case.grid, axis=axis)).max(initial=0) for axis in (0, 1))
    change = 2 * steepest / _FINE
    levels = torch.from_numpy(case.level + change * _MOVES).float()
    found = level_boxes(torch.from_numpy(case.grid[None]), levels[None], components="all")
    return found.boxes_xyxy.double().numpy(), len(found.level_index.unique()) < len(_MOVES)
