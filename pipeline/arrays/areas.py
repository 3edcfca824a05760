"""Areas of the components of level sets of bilinear surfaces, in closed form.

Four neighbouring cell centres a b / c d span a patch. Inside a patch the level set is one or two pieces cut off at a
corner, a strip along an edge, or the patch without such pieces. For each x of a piece, the share of the column that
lies in the piece is a quotient of two linear functions, and the integral of this quotient is a logarithm. So one
formula gives the area of every piece. It is computed only for the patches that the boundary of the level set crosses.

Grids are (h, w, P), P surfaces with their level subtracted. The h+1 × w+1 patches include the half and quarter patches
along the image's edge, where the surface is constant outwards.
"""

import torch
from torch import Tensor

_FALLING, _RISING = 9, 6
"""Kinds of patches in which only a and d (falling) or only b and c (rising) are inside and are not connected."""
_FALLING_JOINED, _RISING_JOINED = 16, 17
"""The same kinds where the saddle connects the two corners."""

_ORDERS = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0), (0, 2, 1, 3), (1, 3, 0, 2))
"""Orders of the corners a b c d.

The first four begin with a corner, its two neighbours and the opposite corner; the last two with the edges ac and bd.
"""
_FIRST_ORDER = (0, 0, 1, 0, 2, 4, 1, 3, 3, 0, 5, 2, 2, 1, 0, 0, 1, 0)
"""For each kind the index of the order that begins with the cut-off corner, or with the strip's edge."""
_SECOND_ORDER = {_FALLING: 3, _RISING: 2, _FALLING_JOINED: 2, _RISING_JOINED: 3}
"""The index of the order that begins with the second cut-off corner."""
_BASE = (0, -1, -1, -2, -1, -2, -1, 1, -1, -1, -2, 1, -2, 1, 1, 0, 1, 1)
"""For each kind the constant part of a correction, in quarters of a patch.

It is negative where the piece is inside, because its corners were counted as quarters already, and positive where the
piece is outside.
"""


def patch_kinds(foreground: Tensor) -> Tensor:
    """Return the kinds (h+1, w+1, P) uint8 of the patches of a foreground (h, w, P).

    A kind is the sum of 1 where a is inside, 2 for b, 4 for c and 8 for d.
    """
    height, width, _ = foreground.shape
    rows, columns = _clamped(height, foreground.device), _clamped(width, foreground.device)
    corners = foreground.to(torch.uint8).index_select(0, rows).index_select(1, columns)
    pairs = corners[:, :-1] + 2 * corners[:, 1:]
    return pairs[:-1] + 4 * pairs[1:]


def mark_saddles(heights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flat indices, each (D,), of the two cells that a saddle >= 0 connects; mark the patches in ``kinds``.

    With the level subtracted the saddle of a b / c d is (ad - bc) / (a + d - b - c). In float64 the products of
    float32 heights are exact.
    """
    width, n_surfaces = heights.shape[1:]
    row, column, surface = ((kinds == _FALLING) | (kinds == _RISING)).nonzero(as_tuple=True)
    corner = ((row - 1) * width + column - 1) * n_surfaces + surface
    corners = torch.stack([corner, corner + n_surfaces, corner + width * n_surfaces, corner + (width + 1) * n_surfaces])
    a, b, c, d = heights.flatten()[corners].double()
    falling = kinds[row, column, surface] == _FALLING
    joined = torch.where(falling, a * d >= b * c, b * c >= a * d)
    now = torch.where(
        joined, torch.where(falling, _FALLING_JOINED, _RISING_JOINED), torch.where(falling, _FALLING, _RISING)
    )
    kinds[row, column, surface] = now.to(torch.uint8)
    one, other = torch.where(falling, corners[0], corners[1]), torch.where(falling, corners[3], corners[2])
    return one[joined], other[joined]


def component_areas(heights: Tensor, kinds: Tensor, labels: Tensor, contested: Tensor) -> Tensor:
    """Return (h·w + 1, P) float64: the area of each label's component on each surface, in square cells.

    ``labels`` (h, w, P) has one number in 0 … h·w for each component. ``contested`` (P,) is true for the surfaces whose
    areas are needed; on other surfaces the areas have no meaning. ``mark_saddles`` must have marked ``kinds``.
    """
    height, width, n_surfaces = heights.shape
    owner = (labels.long() * n_surfaces + torch.arange(n_surfaces, device=labels.device)).flatten()
    areas = torch.zeros((height * width + 1) * n_surfaces, dtype=torch.float64, device=heights.device)
    # Each cell centre counts as one square cell, a quarter in each patch around it; crossed patches are corrected.
    areas.scatter_add_(0, owner, areas.new_ones(1).expand(len(owner)))
    where, extra = _corrections(heights, kinds, contested)
    return areas.scatter_add_(0, owner.index_select(0, where), extra).view(-1, n_surfaces)


def _corrections(heights: Tensor, kinds: Tensor, contested: Tensor) -> tuple[Tensor, Tensor]:
    """Return for E pieces of crossed patches the flat index of an inside cell and the correction of its area."""
    height, width, n_surfaces = heights.shape
    corners, sizes = _patches(height, width, heights.device)
    found = (kinds * contested.to(torch.uint8)).flatten(0, 1)
    patch, surface = ((found != 0) & (found != 15)).nonzero(as_tuple=True)
    kind = found.flatten().index_select(0, patch * n_surfaces + surface).long()
    first, second, base = _tables(heights.device)
    order = first[kind]
    twice = (second[kind] >= 0).nonzero()[:, 0]
    order = torch.cat([order, second[kind[twice]]])
    patch, surface, kind = (torch.cat([each, each[twice]]) for each in (patch, surface, kind))

    ordered = corners[:, torch.tensor(_ORDERS, device=corners.device)].flatten(0, 1).T
    cells = ordered.index_select(1, patch * len(_ORDERS) + order) * n_surfaces + surface
    a, b, c, d = heights.flatten().index_select(0, cells.flatten()).view(4, -1).double()
    inside = a >= 0
    strip = inside == (b >= 0)
    length = torch.where(strip, 1.0, a / (a - b))
    far = torch.where(strip, b, 0.0)
    piece = length * _mean_quotient(a.abs(), far.abs(), (a - c).abs(), (far - c - (d - c) * length).abs())
    quarters = base[kind] / 4
    return torch.where(inside, cells[0], cells[1]), sizes[patch] * (quarters + torch.where(inside, piece, -piece))


def _clamped(size: int, device: torch.device) -> Tensor:
    """Return -1, 0, … size as indices of an axis held constant beyond its ends."""
    return torch.arange(-1, size + 1, device=device).clamp(0, size - 1)


def _patches(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cells a b c d at the corners of each patch, (N, 4) int64, and the patches' areas, (N,) float64."""
    cells = _clamped(height, device)[:, None] * width + _clamped(width, device)
    corners = torch.stack([cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], dim=-1).flatten(0, 1)
    sides = [torch.ones(size + 1, dtype=torch.float64, device=device) for size in (height, width)]
    for side in sides:
        side[[0, -1]] = 0.5
    return corners, torch.outer(*sides).flatten()


def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each kind its first order, its second one or -1, and its quarters."""
    second = [_SECOND_ORDER.get(kind, -1) for kind in range(len(_FIRST_ORDER))]
    return (
        torch.tensor(_FIRST_ORDER, device=device),
        torch.tensor(second, device=device),
        torch.tensor(_BASE, dtype=torch.float64, device=device),
    )


def _mean_quotient(p0: Tensor, p1: Tensor, q0: Tensor, q1: Tensor) -> Tensor:
    """Return the mean of p / q over an interval; p and q are linear, 0 <= p <= q, and given at both ends.

    The mean is dp/dq + (p0·dq - q0·dp) / dq² · ln(q1/q0). Where q hardly changes, a series is used instead.
    """
    tiny = torch.finfo(torch.float64).tiny
    q0, q1 = q0.clamp_min(tiny), q1.clamp_min(tiny)
    dp, dq = p1 - p0, q1 - q0
    z = dq / q0
    series = (p0 * (1 - z / 2 + z**2 / 3 - z**3 / 4) + dp * (1 / 2 - z / 3 + z**2 / 4 - z**3 / 5)) / q0
    safe = torch.where(dq == 0, 1.0, dq)
    closed = dp / safe + (p0 * safe - q0 * dp) / safe**2 * torch.log(q1 / q0)
    return torch.where(z.abs() < 1e-3, series, closed).clamp(0, 1)
