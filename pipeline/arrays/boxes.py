"""Bounding boxes cut from low-resolution class activation maps, exactly and without upsampling them.

A map of h×w cells is the bilinear surface through its cell centres, held constant beyond the outermost centres: the
limit of OpenCV's resize as the upsampled image grows. Its level set {M >= t} is known in closed form:

- A component always holds a cell centre (a bilinear patch has its maximum at a corner). Two neighbouring centres
  above t are joined along their grid edge; two diagonal ones, with the other two below, when the saddle between them
  is at least t.
- For a fixed x the surface is linear in y, so the leftmost and rightmost points of a component lie on horizontal grid
  edges, where they are crossings of a linear function; likewise for y.
- The area inside a patch is the integral of a quotient of linear functions: a logarithm.

Everything is batched over maps and levels: no loop over images, classes or thresholds.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Components = Literal["largest", "all"]


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
    row for it; a constant map gives the whole image, [0, 0, w, h], for every level up to its value.
    """
    n_levels = levels.shape[1]
    heights = (maps[:, None].float() - levels[:, :, None, None].float()).flatten(0, 1)
    surface = torch.nn.functional.pad(heights[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    foreground = surface >= 0
    labels = _component_labels(surface, foreground)
    first_cells = foreground.flatten(1) & (labels == torch.arange(labels.shape[1], device=maps.device))
    boxes = _extents(surface, foreground, labels)

    surface_index, cell = first_cells.nonzero(as_tuple=True)
    component = _component_ranks(surface, labels, first_cells)[surface_index, cell]
    keep = component == 0 if components == "largest" else torch.ones_like(component, dtype=torch.bool)
    surface_index, cell, component = surface_index[keep], cell[keep], component[keep]
    order = torch.argsort(surface_index * labels.shape[1] + component)
    surface_index, cell, component = surface_index[order], cell[order], component[order]
    return LevelBoxes(
        surface_index // max(n_levels, 1), surface_index % max(n_levels, 1), component, boxes[surface_index, cell]
    )


def _component_labels(surface: Tensor, foreground: Tensor) -> Tensor:
    """Return (P, H·W) int64: the smallest node index of each foreground node's component, H·W for background."""
    n_surfaces, height, width = surface.shape
    background = height * width
    nodes = torch.arange(background, device=surface.device).view(1, height, width)
    labels = torch.where(foreground, nodes, background)
    down_right, down_left = _saddle_links(surface, foreground)
    while True:
        near = torch.nn.functional.pad(labels, (1, 1, 1, 1), value=background)
        merged = torch.minimum(labels, torch.minimum(near[:, 1:-1, :-2], near[:, 1:-1, 2:]))
        merged = torch.minimum(merged, torch.minimum(near[:, :-2, 1:-1], near[:, 2:, 1:-1]))
        for link, one, other in (
            (down_right, (slice(None, -1), slice(None, -1)), (slice(1, None), slice(1, None))),
            (down_left, (slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))),
        ):
            a, b = (slice(None), *one), (slice(None), *other)
            joined = torch.where(link, torch.minimum(merged[a], merged[b]), background)
            merged[a] = torch.minimum(merged[a], joined)
            merged[b] = torch.minimum(merged[b], joined)
        merged = torch.where(foreground, merged, background).flatten(1)
        jumped = torch.nn.functional.pad(merged, (0, 1), value=background).gather(1, merged)
        if torch.equal(jumped, labels.flatten(1)):
            return jumped
        labels = jumped.view(n_surfaces, height, width)


def _saddle_links(surface: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Return which patches (P, H-1, W-1) join top-left to bottom-right, and top-right to bottom-left, over a saddle.

    With the level subtracted, the saddle of corners a b / c d is (ad - bc) / (a + d - b - c).
    """
    a, b, c, d = _corners(surface)
    up_a, up_b, up_c, up_d = _corners(foreground)
    return up_a & up_d & (a * d >= b * c), up_b & up_c & (b * c >= a * d)


def _corners(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return grid[:, :-1, :-1], grid[:, :-1, 1:], grid[:, 1:, :-1], grid[:, 1:, 1:]


def _positions(n_nodes: int, device: torch.device) -> Tensor:
    """Return where the nodes of a padded axis stand, in cells: 0, then the cell centres, then the far edge."""
    centres = torch.arange(n_nodes, device=device, dtype=torch.float32) - 0.5
    return centres.clamp(0, n_nodes - 2)


def _extents(surface: Tensor, foreground: Tensor, labels: Tensor) -> Tensor:
    """Return (P, H·W, 4) float32: at each component's first node the box around the component."""
    left, right = _reach(surface, foreground)
    top, bottom = (reach.mT for reach in _reach(surface.mT, foreground.mT))
    n_surfaces, n_nodes = labels.shape

    def over_component(reach: Tensor, reduce: str, start: float) -> Tensor:
        out = torch.full((n_surfaces, n_nodes + 1), start, device=surface.device)
        return out.scatter_reduce(1, labels, reach.flatten(1), reduce)[:, :n_nodes]

    return torch.stack(
        [
            over_component(left, "amin", torch.inf),
            over_component(top, "amin", torch.inf),
            over_component(right, "amax", -torch.inf),
            over_component(bottom, "amax", -torch.inf),
        ],
        dim=-1,
    )


def _reach(surface: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far left and right of each foreground node its row stays above the level, up to the next node."""
    position = _positions(surface.shape[-1], surface.device)
    step = position.diff()
    here, there = surface[..., :-1], surface[..., 1:]
    falls_right = foreground[..., :-1] & ~foreground[..., 1:]
    falls_left = foreground[..., 1:] & ~foreground[..., :-1]
    right = torch.where(falls_right, step * here / (here - there), 0.0)
    left = torch.where(falls_left, step * there / (there - here), 0.0)
    pad = torch.nn.functional.pad
    return position - pad(left, (1, 0)), position + pad(right, (0, 1))


def _component_ranks(surface: Tensor, labels: Tensor, first_cells: Tensor) -> Tensor:
    """Return (P, H·W) int64: at each component's first node its place by area; areas are only computed where needed."""
    ranks = torch.zeros_like(labels)
    contested = (first_cells.sum(dim=1) > 1).nonzero()[:, 0]
    if len(contested):
        area = _component_areas(surface[contested], labels[contested])
        area = torch.where(first_cells[contested], area, -1.0)
        by_area = torch.argsort(area, dim=1, descending=True, stable=True)
        places = torch.arange(labels.shape[1], device=labels.device).expand_as(by_area)
        ranks[contested] = torch.zeros_like(by_area).scatter(1, by_area, places)
    return ranks


def _component_areas(surface: Tensor, labels: Tensor) -> Tensor:
    """Return (P, H·W) float64: at each component's first node the area of the component in square cells."""
    n_surfaces, height, width = surface.shape
    grid = surface.double()
    node_labels = labels.view(n_surfaces, height, width)
    patch_area = (
        _positions(height, grid.device).diff()[:, None] * _positions(width, grid.device).diff()[None, :]
    ).double()
    # Crossings of the top (a to b) and bottom (c to d) edge cut each patch into up to three pieces of constant sign.
    a, b, c, d = _corners(grid)
    cuts = torch.stack([torch.zeros_like(a), _crossing(a, b), _crossing(c, d), torch.ones_like(a)]).sort(dim=0).values
    x0, x1 = cuts[:-1], cuts[1:]
    middle = (x0 + x1) / 2
    top_inside = a + (b - a) * middle >= 0
    bottom_inside = c + (d - c) * middle >= 0
    share = (x1 - x0) * _inside_share(a + (b - a) * x0, a + (b - a) * x1, c + (d - c) * x0, c + (d - c) * x1)
    share = torch.where(top_inside & bottom_inside, x1 - x0, share)
    share = torch.where(top_inside | bottom_inside, share, 0.0) * patch_area

    label_a, label_b, label_c, label_d = _corners(node_labels)
    outside = height * width
    # On an edge the foreground touches one end or both, so a piece belongs to the end that it lies at.
    top_owner = torch.where((a >= 0) & ((b < 0) | (middle < 0.5)), label_a, label_b)
    bottom_owner = torch.where((c >= 0) & ((d < 0) | (middle < 0.5)), label_c, label_d)
    owner = torch.where(top_inside, top_owner, torch.where(bottom_inside, bottom_owner, outside))
    flat_owner = owner.movedim(0, 1).flatten(1)
    flat_share = share.movedim(0, 1).flatten(1)
    areas = torch.zeros(n_surfaces, outside + 1, dtype=torch.float64, device=grid.device)
    return areas.scatter_add(1, flat_owner, flat_share)[:, :outside]


def _crossing(start: Tensor, end: Tensor) -> Tensor:
    """Return where a linear function on [0, 1] is zero; 0 where it has no sign change."""
    changes = (start >= 0) != (end >= 0)
    return torch.where(changes, start / torch.where(changes, start - end, 1.0), 0.0)


def _inside_share(top0: Tensor, top1: Tensor, bottom0: Tensor, bottom1: Tensor) -> Tensor:
    """Return the mean over a piece of the share of each column that is above 0, where exactly one edge is.

    That share is p / q with p the value on the inside edge and q the drop to the other edge, both linear in x:
    the mean is dp/dq + (p0·dq - q0·dp) / dq² · ln(q1/q0), by its series where q hardly changes.
    """
    top_is_inside = top0 + top1 > bottom0 + bottom1
    p0, p1 = torch.where(top_is_inside, top0, bottom0), torch.where(top_is_inside, top1, bottom1)
    tiny = torch.finfo(torch.float64).tiny
    q0, q1 = (top0 - bottom0).abs().clamp_min(tiny), (top1 - bottom1).abs().clamp_min(tiny)
    dp, dq = p1 - p0, q1 - q0
    z = dq / q0
    series = (p0 * (1 - z / 2 + z**2 / 3 - z**3 / 4) + dp * (1 / 2 - z / 3 + z**2 / 4 - z**3 / 5)) / q0
    safe = torch.where(dq == 0, 1.0, dq)
    closed = dp / safe + (p0 * safe - q0 * dp) / safe**2 * torch.log(q1 / q0)
    return torch.where(z.abs() < 1e-3, series, closed).clamp(0, 1)
