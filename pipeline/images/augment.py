"""Random crops and mirroring of training images, drawn for each image by seed and epoch alone.

A view is the affine map (2, 3) from places of the network's input to places of the picture, both in [-1, 1] from edge
to edge, x before y: what ``torch.nn.functional.affine_grid`` takes.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from schemas.config import Augment

CROP_AREA = (0.25, 1.0)
"""Range of a crop's share of the picture's area."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Range of a crop's width over its height, before both are cut to the picture."""
CROP_MARGIN = 8 / 7
"""Side of a picture that crops are taken from over that of the network's input: 256 for 224."""


def picture_side(image_size: int, augment: Augment) -> int:
    """Return the side in pixels that pictures are decoded to before the views are taken."""
    return math.ceil(image_size * CROP_MARGIN) if augment == "crop" else image_size


def draw_views(augment: Augment, seed: int, epoch: int, numbers: NDArray[np.int64]) -> Tensor:
    """Return the views (B, 2, 3) float32 of the images with these numbers (B,).

    An image's view depends on ``seed``, ``epoch`` and its number alone, not on the images beside it.
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
    """Return the inputs (B, 3, S, S) float32, values 0 to 255, of RGB ``pictures`` (B, D, D, 3) uint8; bilinear.

    The view of a whole picture of side S is the picture itself.
    """
    planes = pictures.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(views.to(planes.device), [len(planes), 3, image_size, image_size], align_corners=False)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
