"""The rules of ``several_objects``: boxes of the largest component, of all components, and of each peak of a map."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.arrays.boxes import level_boxes
from pipeline.arrays.figures import Pairs
from pipeline.arrays.metrics import IOU_DELTA, Bools, Floats, Ints, iou
from pipeline.images.resize import map_to_image_xyxy

CUTS = np.arange(0.2, 0.82, 0.04)
"""Thresholds of all rules."""


SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""Least areas of a component's box, as shares of the largest one's."""


PROMINENCES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""Least prominences of a peak, as shares of the map's maximum."""


class Cut(NamedTuple):
    """R boxes of all P pairs by one setting of a rule, ordered by pair, the best guess of a pair first."""

    pair: Ints
    """(R,)."""
    xyxy: Floats
    """(R, 4) in pixels."""


class Counts(NamedTuple):
    """What a setting finds for each of P pairs of an image and a class."""

    right: Floats
    """(P,) objects with a right box."""
    boxes: Floats
    """(P,)."""
    objects: Floats
    """(P,)."""

    def recall(self, own: Bools) -> float:
        """Return the recall of the pairs in the mask ``own`` (P,)."""
        return float(self.right[own].sum() / self.objects[own].sum())

    def precision(self, own: Bools) -> float:
        """Return the precision of these pairs; 0 without a box."""
        return float(self.right[own].sum() / max(self.boxes[own].sum(), 1))


class Maps(NamedTuple):
    """The fused maps of the pairs, with the truth of the pairs."""

    fused: NDArray[np.float32]
    """(P, h, w) in [0, 1]."""
    pairs: Pairs
    uris: tuple[str, ...]
    """(P,)."""


def settings_of(rule: str, maps: Maps) -> Iterator[tuple[str, Counts]]:
    """Yield each setting of a rule, in words, with what it finds."""
    if rule == "peaks":
        for prominence in PROMINENCES:
            basins = [basins_of(grid, prominence) for grid in maps.fused]
            for cut in CUTS:
                yield (
                    f"prominence {prominence:g}, cut at {cut:.2f} of the peak",
                    count(peaks_of(maps, basins, cut), maps),
                )
        return
    for cut in CUTS:
        every = components(maps, cut)
        if rule == "largest":
            yield f"cut at {cut:.2f}", count(of_share(every, 1.0), maps)
        for share in SHARES if rule == "components" else ():
            yield f"cut at {cut:.2f}, boxes of {share:g} of the largest", count(of_share(every, share), maps)


def components(maps: Maps, cut: float) -> Cut:
    """Return the boxes of all components at a threshold, the largest component of a pair first."""
    fused = torch.from_numpy(maps.fused)
    found = level_boxes(fused, torch.full((len(fused), 1), float(cut)), components="all")
    return Cut(found.map_index.numpy(), _in_pixels(maps, found.boxes_xyxy.numpy(), found.map_index.numpy()))


def of_share(every: Cut, share: float) -> Cut:
    """Return each pair's first box, and those others that have at least ``share`` of its area; 1 takes the first."""
    _, first = np.unique(every.pair, return_index=True)
    is_first = np.isin(np.arange(len(every.pair)), first)
    areas = (every.xyxy[:, 2:] - every.xyxy[:, :2]).prod(axis=1)
    of_first = areas[first][np.searchsorted(every.pair[first], every.pair)]
    kept = is_first | ((areas >= share * of_first) & (share < 1))
    return Cut(every.pair[kept], every.xyxy[kept])


def peaks_of(maps: Maps, basins: list[list[tuple[float, Bools]]], cut: float) -> Cut:
    """Return the box of each peak's own map, cut at a share of the peak's height, the highest peak first."""
    pair = np.array([number for number, own in enumerate(basins) for _ in own], np.int64)
    heights = torch.tensor([height for own in basins for height, _ in own], dtype=torch.float32)
    inside = np.stack([basin for own in basins for _, basin in own])
    own_maps = torch.from_numpy(np.where(inside, maps.fused[pair], 0).astype(np.float32))
    found = level_boxes(own_maps, heights[:, None] * float(cut))
    row = found.map_index.numpy()
    return Cut(pair[row], _in_pixels(maps, found.boxes_xyxy.numpy(), pair[row]))


def basins_of(grid: NDArray[np.float32], prominence: float) -> list[tuple[float, Bools]]:
    """Return the height and the cells (h, w) of each peak of a map in [0, 1], the highest peak first.

    The cells are visited from the highest to the lowest. Each cell joins the highest peak among its eight neighbours
    that were visited before; a cell without such a neighbour is a new peak. Where two peaks meet, the lower one becomes
    a part of the higher one if it is less than ``prominence`` above that cell; otherwise both keep their cells.
    """
    height, width = grid.shape
    owner = np.full((height, width), -1)
    peaks: list[float] = []
    part_of: list[int] = []

    def root(peak: int) -> int:
        while part_of[peak] != peak:
            peak = part_of[peak]
        return peak

    for cell in np.argsort(-grid, axis=None, kind="stable"):
        y, x = divmod(int(cell), width)
        around = owner[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        near = sorted({root(peak) for peak in around[around >= 0].tolist()})  # A peak's number grows as heights fall.
        if not near:
            near = [len(peaks)]
            peaks.append(float(grid[y, x]))
            part_of.append(near[0])
        for lower in near[1:]:
            if peaks[lower] - grid[y, x] < prominence:
                part_of[lower] = near[0]
        owner[y, x] = near[0]
    roots = np.array([root(peak) for peak in range(len(peaks))])[owner]
    return [(peaks[peak], roots == peak) for peak in np.unique(roots).tolist()]


def _in_pixels(maps: Maps, cells_xyxy: NDArray[np.float32], pair: Ints) -> Floats:
    return map_to_image_xyxy(cells_xyxy, maps.fused.shape[1:], maps.pairs.sizes_wh[pair][:, ::-1])


def count(cut: Cut, maps: Maps) -> Counts:
    """Return what the boxes find: in their order, each takes the free object of its pair that it fits best."""
    pairs = maps.pairs
    n_pairs = len(pairs.image)
    right = np.zeros(n_pairs)
    for pair in range(n_pairs):
        overlap = iou(cut.xyxy[cut.pair == pair], pairs.boxes[pairs.owner == pair])
        for row in overlap:  # A column is -1 once its object has a box.
            if row.max(initial=0.0) >= IOU_DELTA:
                right[pair] += 1
                overlap[:, row.argmax()] = -1.0
    boxes = np.bincount(cut.pair, minlength=n_pairs).astype(np.float64)
    return Counts(right, boxes, np.bincount(pairs.owner, minlength=n_pairs).astype(np.float64))
