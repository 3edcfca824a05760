"""Bounding boxes cut from low-resolution class activation maps, exactly and without upsampling them.

A map of h×w cells is the bilinear surface through its cell centres, held constant beyond the outermost centres: the
limit of OpenCV's resize as the upsampled image grows. Its level set {M >= t} is known in closed form:

- A component always holds a cell centre (a bilinear patch has its maximum at a corner). Two neighbouring centres
  above t are joined along their grid edge; two diagonal ones, with the other two below, when the saddle between them
  is at least t.
- For a fixed x the surface is linear in y, so the leftmost and rightmost points of a component lie on horizontal grid
  edges, where they are crossings of a linear function; likewise for y.
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
"""What stands for -inf and NaN: far below every level, and yet finite."""
_AREA_STEPS = 2.0**30
"""Areas are compared in steps of a 2^-30 cell: equal ones stay equal in any order of summation."""


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

    A map with no positive value, or with a NaN, has no foreground: its levels are +inf.
    """
    maximum = maps.flatten(1).amax(dim=1, keepdim=True)
    return torch.where(maximum > 0, maximum * thresholds, torch.inf)


def level_boxes(maps: Tensor, levels: Tensor, *, components: Components = "largest") -> LevelBoxes:
    """Return the bounding boxes of {M >= t} for each of N maps (N, h, w) and each of its T absolute levels (N, T).

    Components of equal area keep the order of their first cell, by rows. A map that nowhere reaches a level gives no
    row for it; a constant map gives the whole image, [0, 0, w, h], for every level up to its value; a NaN cell is
    below every level. The result is on the device of ``maps``.
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

    ``saddles``: flat indices of the cells that a saddle joins. The highest label spreads along rows, over saddles and
    along columns until nothing changes: a pass costs a few dozen operations, smooth maps need two to five passes, a
    spiral one for each of its turns.
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
    """Return, for steps of 1, 2, 4, … cells along ``axis``, the mask of cells in one run with all up to that step."""
    runs: list[Tensor] = []
    step = 1
    while step < mask.shape[axis]:
        shorter, shift = (runs[-1], step // 2) if runs else (mask, 1)
        length = shorter.shape[axis] - shift
        runs.append(shorter.narrow(axis, 0, length) & shorter.narrow(axis, shift, length))
        step *= 2
    return runs


def _spread(labels: Tensor, runs: list[Tensor], axis: int) -> None:
    """Give, in place, each cell the highest label of its run along ``axis``: the reach doubles with every step."""
    for power, joined in enumerate(runs):
        length = joined.shape[axis]
        here, there = labels.narrow(axis, 0, length), labels.narrow(axis, 2**power, length)
        torch.maximum(there, here & joined, out=there)
        torch.maximum(here, there & joined, out=here)


def _ordered_components(heights: Tensor, kinds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return label, surface and place by area, each (R,) int64, of all components, ordered by surface and place.

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

    Between a cell above the level and one below, |u| / (|u| + |v|) is where the surface crosses it. Between two of
    one component it is some point between their centres, and does no harm.
    """
    size, device = heights.shape[axis], heights.device
    here, there = heights.abs().narrow(axis, 0, size - 1), heights.abs().narrow(axis, 1, size - 1)
    share = here / (here + there).clamp_min(torch.finfo(torch.float32).tiny)
    centre = torch.arange(size - 1, device=device).view((-1, 1) if axis else (-1, 1, 1)) + 0.5
    crossing = (centre + share).index_select(2, surface)
    # Coordinates are not negative, so a product with 0 or 1 takes others out of a maximum; the least is mirrored.
    last, first = size * inside.select(axis, size - 1), size * inside.select(axis, 0)
    greatest = torch.cat([(crossing * inside.narrow(axis, 0, size - 1)).flatten(0, 1), last]).amax(dim=0)
    mirrored = torch.cat([((size - crossing) * inside.narrow(axis, 1, size - 1)).flatten(0, 1), first]).amax(dim=0)
    return size - mirrored, greatest
