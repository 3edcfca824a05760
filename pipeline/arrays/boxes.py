"""Bounding boxes cut from low-resolution class activation maps, exactly and without upsampling them.

A map of h×w cells is the bilinear surface through its cell centres, held constant beyond the outermost centres: the
limit of OpenCV's resize as the upsampled image grows. Its level set {M >= t} is known in closed form:

- Every component contains a cell centre, because a bilinear patch has its maximum at a corner. Two neighbouring
  centres at or above t belong to one component. Two diagonal centres at or above t, with the other two centres of the
  patch below t, belong to one component if the saddle between them is at least t.
- For a fixed x the surface is linear in y, so the leftmost and rightmost points of a component lie on horizontal grid
  edges, where a linear function crosses t; likewise for y.
- The area of a component, by which the largest is chosen, is in ``areas.py``.

Everything is batched over maps and levels: no loop over images, classes or thresholds. A "surface" is a map at one
level, with the level subtracted. Grids are (h, w, P), the P surfaces last, so that every step runs along contiguous
memory.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.arrays.areas import component_areas, mark_saddles, patch_kinds

Components = Literal["largest", "all"]

_LOWEST = -1e38
"""Replaces -inf and NaN: a finite value far below every level."""
_AREA_STEPS = 2.0**30
"""Areas are rounded to 2^-30 of a cell before they are compared, so that the order of summation has no effect."""


class LevelBoxes(NamedTuple):
    """R boxes as flat rows, ordered by map, then level, then component (largest area first)."""

    map_index: Tensor
    """(R,) int64, row of ``maps``."""
    level_index: Tensor
    """(R,) int64, column of ``levels``."""
    component: Tensor
    """(R,) int64, 0 = the component of largest area."""
    boxes_xyxy: Tensor
    """(R, 4) float32 in cells: [0, w] × [0, h], cell i spans [i, i + 1)."""


def foreground_levels(maps: Tensor, thresholds: Tensor) -> Tensor:
    """Return the paper's levels, threshold × maximum, (N, T) for maps (N, h, w) and thresholds (T,) in (0, 1).

    A map with no positive value, or with a NaN, has no foreground: all of its levels are +inf.
    """
    maximum = maps.flatten(1).amax(dim=1, keepdim=True)
    return torch.where(maximum > 0, maximum * thresholds, torch.inf)


def level_boxes(maps: Tensor, levels: Tensor, *, components: Components = "largest") -> LevelBoxes:
    """Return the bounding boxes of the level sets {M >= t} of N maps (N, h, w), each at T absolute levels (N, T).

    "largest" gives at most one box for each map and level, "all" gives one box for each component. Components of equal
    area are ordered by their first cell, row by row. A map that is below a level everywhere gives no box at that level.
    A constant map gives the box of the whole image, [0, 0, w, h], at every level up to its value. A NaN cell is below
    every level. The result is on the device of ``maps``.
    """
    n_levels = max(levels.shape[1], 1)
    by_cell = maps.float().permute(1, 2, 0).contiguous()
    heights = (by_cell[..., None] - levels.float()).flatten(2)
    heights = torch.fmax(heights, heights.new_tensor(_LOWEST))
    kinds = patch_kinds(heights >= 0)
    labels = _component_labels(heights >= 0, mark_saddles(heights, kinds))
    label, surface, component = _ordered_components(heights, kinds, labels)
    if components == "largest":
        largest = component == 0
        label, surface, component = label[largest], surface[largest], component[largest]
    return LevelBoxes(surface // n_levels, surface % n_levels, component, _extents(heights, labels, label, surface))


def _component_labels(foreground: Tensor, saddles: tuple[Tensor, Tensor]) -> Tensor:
    """Return (h, w, P) int16 or int32: h·w minus the index of the component's first cell; 0 outside the foreground.

    ``saddles``: flat indices of the two cells that each saddle connects. The highest label spreads along rows, over
    saddles and along columns until no label changes. A pass costs a few dozen operations. Smooth maps need two to five
    passes, and a spiral needs one pass for each of its turns.
    """
    height, width, _ = foreground.shape
    kind = torch.int16 if height * width < 2**15 else torch.int32
    mask = -foreground.to(kind)
    labels = torch.arange(height * width, 0, -1, dtype=kind, device=mask.device).view(height, width, 1) & mask
    rows, columns = _runs(mask, 1), _runs(mask, 0)
    cells, (one, other) = labels.view(-1), saddles
    while True:
        _spread(labels, rows, 1)
        top = torch.maximum(cells[one], cells[other])
        cells.scatter_reduce_(0, one, top, "amax").scatter_reduce_(0, other, top, "amax")
        _spread(labels, columns, 0)
        apart = cells[one] != cells[other]
        if rows:
            apart = torch.cat([apart, ((labels[:, 1:] ^ labels[:, :-1]) & rows[0]).flatten() != 0])
        if not apart.any():
            return labels


def _runs(mask: Tensor, axis: int) -> list[Tensor]:
    """Return a mask for each step of 1, 2, 4, … cells: -1 where a cell and the cell a step further are in one run."""
    runs: list[Tensor] = []
    step = 1
    while step < mask.shape[axis]:
        shorter, shift = (runs[-1], step // 2) if runs else (mask, 1)
        length = shorter.shape[axis] - shift
        runs.append(shorter.narrow(axis, 0, length) & shorter.narrow(axis, shift, length))
        step *= 2
    return runs


def _spread(labels: Tensor, runs: list[Tensor], axis: int) -> None:
    """Set each label, in place, to the highest one of its run along ``axis``; every step doubles the distance."""
    for power, joined in enumerate(runs):
        length = joined.shape[axis]
        here, there = labels.narrow(axis, 0, length), labels.narrow(axis, 2**power, length)
        torch.maximum(there, here & joined, out=there)
        torch.maximum(here, there & joined, out=here)


def _ordered_components(heights: Tensor, kinds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return label, surface and rank by area of all R components, each (R,) int64, ordered by surface and rank.

    Areas are only computed on surfaces that have more than one component.
    """
    height, width, n_surfaces = heights.shape
    n_cells = height * width
    own = torch.arange(n_cells, 0, -1, dtype=labels.dtype, device=labels.device).view(height, width, 1)
    cell, surface = (labels == own).flatten(0, 1).nonzero(as_tuple=True)
    label = n_cells - cell
    counts = torch.zeros(n_surfaces, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(0, surface, torch.ones_like(surface))
    if len(surface) > n_surfaces or (counts > 1).any():
        areas = component_areas(heights, kinds, labels, counts > 1)[label, surface]
        by_area = torch.argsort((areas * _AREA_STEPS).round(), descending=True, stable=True)
        label, surface = label[by_area], surface[by_area]
    by_surface = torch.argsort(surface, stable=True)
    label, surface = label[by_surface], surface[by_surface]
    place = torch.arange(len(surface), device=labels.device) - (counts.cumsum(0) - counts)[surface]
    return label, surface, place


def _extents(heights: Tensor, labels: Tensor, label: Tensor, surface: Tensor) -> Tensor:
    """Return (R, 4) float32: the boxes of R components."""
    inside = (labels.index_select(2, surface) == label.to(labels.dtype)).to(heights.dtype)
    left, right = _reach(heights, inside, surface, 1)
    top, bottom = _reach(heights, inside, surface, 0)
    return torch.stack([left, top, right, bottom], dim=1)


def _reach(heights: Tensor, inside: Tensor, surface: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest coordinate (R,) along ``axis`` of components ``inside`` (h, w, R) 0 or 1.

    The surface crosses the level at |u| / (|u| + |v|) of the way from a cell above the level (height u) to a cell below
    it (height v). Between two cells of one component the same formula gives a point that changes no extent.
    """
    size, device = heights.shape[axis], heights.device
    here, there = heights.abs().narrow(axis, 0, size - 1), heights.abs().narrow(axis, 1, size - 1)
    share = here / (here + there).clamp_min(torch.finfo(torch.float32).tiny)
    centre = torch.arange(size - 1, device=device).view((-1, 1) if axis else (-1, 1, 1)) + 0.5
    crossing = (centre + share).index_select(2, surface)
    # No coordinate is negative, so multiplying by 0 removes cells outside the component from a maximum. The least
    # coordinate is the greatest one of the mirrored axis.
    last, first = size * inside.select(axis, size - 1), size * inside.select(axis, 0)
    greatest = torch.cat([(crossing * inside.narrow(axis, 0, size - 1)).flatten(0, 1), last]).amax(dim=0)
    mirrored = torch.cat([((size - crossing) * inside.narrow(axis, 1, size - 1)).flatten(0, 1), first]).amax(dim=0)
    return size - mirrored, greatest
