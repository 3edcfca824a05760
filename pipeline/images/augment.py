"""Random crops and mirroring of training images.

A view is the affine map (2, 3) from positions in the network's input to positions in the picture, as
``torch.nn.functional.affine_grid`` takes it. Positions are x, y in [-1, 1] from edge to edge.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from schemas.options.train import Augment

CROP_AREA = (0.25, 1.0)
"""Range of the area of a crop as a share of the picture's area."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Range of a crop's width divided by its height, before both are limited to the picture."""
CROP_MARGIN = 8 / 7
"""Side of the picture from which crops are taken, divided by the side of the network's input: 256 for 224."""
VISIBLE = 0.25
"""Least share of a box's area inside a view; a box with less is not learned from this view."""


def picture_side(image_size: int, augment: Augment) -> int:
    """Return the side in pixels of the square to which pictures are decoded before the views are taken."""
    return math.ceil(image_size * CROP_MARGIN) if augment == "crop" else image_size


def draw_views(augment: Augment, seed: int, epoch: int, numbers: NDArray[np.int64]) -> Tensor:
    """Return the views (B, 2, 3) float32 of the images with these numbers (B,).

    The view of an image depends on ``seed``, ``epoch`` and the image's number only, not on the other images.
    """
    return torch.from_numpy(
        np.stack([_view(augment, np.random.default_rng((seed, epoch, n))) for n in numbers.tolist()])
    )


def _view(augment: Augment, rng: np.random.Generator) -> NDArray[np.float32]:
    view = np.eye(2, 3, dtype=np.float32)
    if augment == "none":
        return view
    mirrored = rng.random() < 0.5
    if augment == "crop":
        area, ratio = rng.uniform(*CROP_AREA), math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        size = np.minimum(1.0, np.sqrt([area * ratio, area / ratio]))
        view[:, 2] = (1 - size) * rng.uniform(-1, 1, 2)
        view[[0, 1], [0, 1]] = size
    if mirrored:
        view[0, 0] *= -1
    return view


def take_views(pictures: Tensor, views: Tensor, image_size: int) -> Tensor:
    """Return the network's inputs (B, 3, S, S) float32, 0 to 255, cut by ``views`` from ``pictures`` (B, D, D, 3).

    ``pictures`` are uint8 RGB and are interpolated bilinearly. A view of the whole picture with D = S returns the
    picture unchanged.
    """
    planes = pictures.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(views.to(planes.device), [len(planes), 3, image_size, image_size], align_corners=False)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)


def box_shares(boxes: Sequence[Sequence[float] | None], sizes_hw: NDArray[np.int64]) -> Tensor:
    """Return boxes (B, 4) float32 as shares of the pictures' sides, cut at the edges.

    ``boxes``: xmin ymin xmax ymax in pixels of pictures of ``sizes_hw`` (B, 2), or None. A row is NaN for None and for
    a box without area inside the picture.
    """
    pixels = np.array([box or (np.nan,) * 4 for box in boxes], np.float64).reshape(-1, 4)
    shares = (pixels / sizes_hw[:, [1, 0, 1, 0]]).clip(0, 1)
    shares[(shares[:, 2:] <= shares[:, :2]).any(axis=1)] = np.nan
    return torch.from_numpy(shares.astype(np.float32))


def view_boxes(boxes: Tensor, views: Tensor) -> Tensor:
    """Return the boxes (B, 4) of pictures in the frame of their views (B, 2, 3), cut at the edges.

    A box is xmin ymin xmax ymax as shares of the picture's sides; the result is in shares of the input's sides. A box
    with less than ``VISIBLE`` of its area in the view becomes NaN, because the visible part of the object does not show
    its box. A NaN box stays NaN.
    """
    scale, shift = views[:, [0, 1], [0, 1]], views[:, :, 2]
    ends = (2 * boxes.view(-1, 2, 2) - 1 - shift[:, None]) / scale[:, None]
    # A mirror swaps left and right.
    corners = torch.stack([ends.amin(1), ends.amax(1)], dim=1)
    inside = corners.clamp(-1, 1)
    seen = (inside[:, 1] - inside[:, 0]).prod(1) >= VISIBLE * (corners[:, 1] - corners[:, 0]).prod(1)
    return torch.where(seen[:, None], (inside.view(-1, 4) + 1) / 2, torch.nan)
