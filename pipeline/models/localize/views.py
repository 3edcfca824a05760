"""Test-time augmentation: several views of one picture (mirrored, cropped, scaled), whose maps are averaged.

A picture arrives once, as the largest square that any view needs. A view is a part of that square, scaled on the device
to the network's input side and mirrored if asked for. Ten-crop is that of Krizhevsky et al. 2012: five crops of S×S
from a square of 8/7·S (the four corners and the middle) and their mirror images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from schemas.options.annotate import Tta

CROP_SHARE = 7 / 8
"""Side of a ten-crop's crop divided by the side of the square that it is cut from."""
_ROUNDING_PX = 1e-6
"""A cell's centre that lies on a view's edge counts as inside, in spite of rounding."""


class View(NamedTuple):
    """A square part of a picture; lengths are in pixels of the scaled picture."""

    frame_px: int
    """Side that the whole square is scaled to before the part is cut out."""
    top_px: int
    left_px: int
    side_px: int
    """Side of the part, which is the network's input."""
    mirrored: bool


def make_views(image_size: int, tta: Tta = "none", scales: Sequence[float] = (1.0,)) -> tuple[View, ...]:
    """Return the views of each scale in turn; sides are ``image_size`` times the scale, rounded to pixels."""
    views: list[View] = []
    for scale in scales:
        side = round(image_size * scale)
        frame = round(side / CROP_SHARE) if tta == "tencrop" else side
        room = frame - side
        middle = [(room // 2, room // 2)]
        corners = [(top, left) for top in (0, room) for left in (0, room)]
        for mirrored in (False,) if tta == "none" else (False, True):
            crops = corners + middle if tta == "tencrop" else middle
            views += [View(frame, top, left, side, mirrored) for top, left in crops]
    return tuple(views)


@dataclass(frozen=True)
class ViewPlan:
    """The views of a picture and the canvas for their maps."""

    views: tuple[View, ...]
    canvas_hw: tuple[int, int]
    """Rows and columns of the canvas: the map of the whole square, with cells as small as in the finest view."""

    @property
    def side_px(self) -> int:
        """Return the side of the square in which a picture arrives."""
        return max(view.frame_px for view in self.views)

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Return the different sides of the network's inputs, in the order of the views."""
        return tuple(dict.fromkeys(view.side_px for view in self.views))

    @property
    def image_pixels(self) -> int:
        """Return the pixels of one picture's inputs, all views together."""
        return sum(view.side_px**2 for view in self.views)

    @property
    def is_single(self) -> bool:
        """Whether there is one view, the whole picture as it is."""
        return len(self.views) == 1 and self.views[0] == View(self.side_px, 0, 0, self.side_px, mirrored=False)

    def inputs(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the network's input of each view, (B, s, s, 3) uint8, from ``pixels`` (B, S, S, 3) uint8.

        Pictures are scaled down by antialiased bilinear interpolation and rounded to whole values.
        """
        frame, scaled = self.side_px, pixels
        for view in self.views:
            if view.frame_px != frame:
                frame, scaled = view.frame_px, _scaled(pixels, view.frame_px)
            rows, columns = (slice(start, start + view.side_px) for start in (view.top_px, view.left_px))
            part = scaled[:, rows, columns]
            yield (part.flip(2) if view.mirrored else part).contiguous()


def plan_views(views: tuple[View, ...], map_hw: Callable[[int], tuple[int, int]]) -> ViewPlan:
    """Return the plan of ``views``; ``map_hw`` returns the (h, w) of the map for a side of the network's input.

    The canvas has the resolution of the largest map, continued from the part that its view shows to the whole square.
    """
    sizes = [(view.frame_px / view.side_px, map_hw(view.side_px)) for view in views]
    height, width = (max(round(larger * size[axis]) for larger, size in sizes) for axis in (0, 1))
    return ViewPlan(views, (height, width))


class Canvas:
    """Averages the maps of a plan's views on one canvas.

    A map is the bilinear surface through its cell centres, constant beyond the outermost centres. The value of a canvas
    cell is the mean of the views' surfaces at the cell's centre, over the views whose part contains that centre, edges
    included.
    """

    def __init__(self, plan: ViewPlan, map_hw: Callable[[int], tuple[int, int]], device: str) -> None:
        """``map_hw`` as for ``plan_views``; ``device``: where the maps are."""
        self._is_single = plan.is_single
        self._weights = [_weights(view, plan.canvas_hw, map_hw(view.side_px), device) for view in plan.views]
        counts = [rows.sum(1)[:, None] * columns.sum(1)[None, :] for rows, columns in self._weights]
        self._count = torch.stack(counts).sum(0).round()

    def lay(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the canvas (B, n, H, W) of the views' maps, each (B, n, h, w); a single view's maps stay unchanged."""
        if self._is_single:
            return maps[0]
        total = torch.stack(
            [rows @ view_maps @ columns.T for view_maps, (rows, columns) in zip(maps, self._weights, strict=True)]
        ).sum(0)
        return total / self._count


def mean_of_views(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean of one tensor a view, all of one shape; for one view its tensor unchanged."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(0)


def _scaled(pixels: Tensor, side_px: int) -> Tensor:
    planes = pixels.permute(0, 3, 1, 2).float()
    scaled = F.interpolate(planes, (side_px, side_px), mode="bilinear", align_corners=False, antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _weights(view: View, canvas_hw: tuple[int, int], map_hw: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Return (H, h) and (W, w): how much each row and column of a map weighs in each row and column of the canvas."""
    rows = _axis_weights(canvas_hw[0], map_hw[0], view.top_px, view)
    columns = _axis_weights(canvas_hw[1], map_hw[1], view.left_px, view)
    if view.mirrored:
        columns = columns[:, ::-1].copy()
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def _axis_weights(canvas: int, cells: int, start_px: int, view: View) -> NDArray[np.float32]:
    """Return (canvas, cells) float32; a row sums to one, or is zero where its centre lies outside of the view."""
    centre_px = (np.arange(canvas) + 0.5) * view.frame_px / canvas - start_px
    inside = (centre_px > -_ROUNDING_PX) & (centre_px < view.side_px + _ROUNDING_PX)
    at = (centre_px * cells / view.side_px - 0.5).clip(0, cells - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)
    axis_weights: NDArray[np.float32] = (weights * inside[:, None]).astype(np.float32)
    return axis_weights
