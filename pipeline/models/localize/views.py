"""Several looks at one picture: mirrored, cropped and scaled, and how their maps are laid onto one canvas.

A picture arrives once, as the largest square that any view needs. A view is a part of that square, scaled on the device
to the side that the network sees, mirrored or not. Ten-crop is that of Krizhevsky et al. 2012: five crops of S×S from a
square of 8/7·S, the corners and the middle, and their mirrors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from schemas.annotate import Tta

CROP_SHARE = 7 / 8
"""Side of a ten-crop's crops by that of the square they are cut from."""
_ROUNDING_PX = 1e-6


class View(NamedTuple):
    """A square part of a picture; lengths are in pixels of the scaled picture."""

    frame_px: int
    """Side that the whole square is scaled to."""
    top_px: int
    left_px: int
    side_px: int
    """Side of the part, which the network sees."""
    mirrored: bool


def make_views(image_size: int, tta: Tta = "none", scales: Sequence[float] = (1.0,)) -> tuple[View, ...]:
    """Return the views of each scale in turn; sides are ``image_size`` times the scale, rounded to pixels."""
    found: list[View] = []
    for scale in scales:
        side = round(image_size * scale)
        frame = round(side / CROP_SHARE) if tta == "tencrop" else side
        room = frame - side
        middle = [(room // 2, room // 2)]
        corners = [(top, left) for top in (0, room) for left in (0, room)]
        for mirrored in (False,) if tta == "none" else (False, True):
            places = corners + middle if tta == "tencrop" else middle
            found += [View(frame, top, left, side, mirrored) for top, left in places]
    return tuple(found)


@dataclass(frozen=True)
class ViewPlan:
    """The views of a picture and the canvas for their maps."""

    views: tuple[View, ...]
    canvas_hw: tuple[int, int]
    """Rows and columns of the canvas, which covers the whole square as finely as the finest of the views' maps."""

    @property
    def side_px(self) -> int:
        """Return the side of the square in which a picture arrives."""
        return max(view.frame_px for view in self.views)

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Return the sides that the network sees, each once."""
        return tuple(dict.fromkeys(view.side_px for view in self.views))

    @property
    def image_pixels(self) -> int:
        """Return the pixels that the network sees of one picture, in all views together."""
        return sum(view.side_px**2 for view in self.views)

    @property
    def plain(self) -> bool:
        """Return whether the network sees the picture once, whole and as it is."""
        return len(self.views) == 1 and self.views[0] == View(self.side_px, 0, 0, self.side_px, mirrored=False)

    def inputs(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield what the network sees in each view, (B, s, s, 3) uint8, of ``pixels`` (B, S, S, 3) uint8.

        Scaled down with bilinear weights as wide as the scale demands, so that nothing is skipped, and rounded.
        """
        frame, scaled = self.side_px, pixels
        for view in self.views:
            if view.frame_px != frame:
                frame, scaled = view.frame_px, _scaled(pixels, view.frame_px)
            rows, columns = (slice(start, start + view.side_px) for start in (view.top_px, view.left_px))
            part = scaled[:, rows, columns]
            yield (part.flip(2) if view.mirrored else part).contiguous()


def plan_views(views: tuple[View, ...], map_hw: Callable[[int], tuple[int, int]]) -> ViewPlan:
    """Return the plan of ``views``; ``map_hw`` gives the (h, w) of a map by the side of the network's input.

    The canvas has the resolution of the largest map: as many cells as it would have if its view were the whole square.
    """
    sizes = [(view.frame_px / view.side_px, map_hw(view.side_px)) for view in views]
    height, width = (max(round(larger * size[axis]) for larger, size in sizes) for axis in (0, 1))
    return ViewPlan(views, (height, width))


class Canvas:
    """Lays the maps of a plan's views onto one canvas.

    A map is the bilinear surface through its cell centres, held constant beyond the outermost ones. A cell of the
    canvas is the mean, over the views whose part holds the cell's centre (its edges do), of the surface there.
    """

    def __init__(self, plan: ViewPlan, map_hw: Callable[[int], tuple[int, int]], device: str) -> None:
        """``map_hw`` as for ``plan_views``; the maps will be on ``device``."""
        self._plain = plan.plain
        self._weights = [_weights(view, plan.canvas_hw, map_hw(view.side_px), device) for view in plan.views]
        counts = [rows.sum(1)[:, None] * columns.sum(1)[None, :] for rows, columns in self._weights]
        self._count = torch.stack(counts).sum(0).round()

    def laid(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, n, H, W) of each view's maps (B, n, h, w); of a plain plan the very maps of its one view."""
        if self._plain:
            return maps[0]
        total = torch.stack(
            [rows @ one @ columns.T for one, (rows, columns) in zip(maps, self._weights, strict=True)]
        ).sum(0)
        return total / self._count


def mean_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the mean of each view's tensor; of one view that very tensor."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).mean(0)


def _scaled(pixels: Tensor, side_px: int) -> Tensor:
    planes = pixels.permute(0, 3, 1, 2).float()
    scaled = F.interpolate(planes, (side_px, side_px), mode="bilinear", align_corners=False, antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _weights(view: View, canvas_hw: tuple[int, int], map_hw: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Return the weights (H, h) of a map's rows and (W, w) of its columns in those of the canvas."""
    rows = _axis_weights(canvas_hw[0], map_hw[0], view.top_px, view)
    columns = _axis_weights(canvas_hw[1], map_hw[1], view.left_px, view)
    if view.mirrored:
        columns = columns[:, ::-1].copy()
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def _axis_weights(canvas: int, cells: int, start_px: int, view: View) -> NDArray[np.float32]:
    """Return (canvas, cells) float32: zero in the rows whose centre lies outside of the view, else they sum to one."""
    centre_px = (np.arange(canvas) + 0.5) * view.frame_px / canvas - start_px
    inside = (centre_px > -_ROUNDING_PX) & (centre_px < view.side_px + _ROUNDING_PX)
    at = (centre_px * cells / view.side_px - 0.5).clip(0, cells - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)
    found: NDArray[np.float32] = (weights * inside[:, None]).astype(np.float32)
    return found
