"""From an upright image to the network's square input, and from cells of its map back to pixels of the image."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.config import Resize

_PAD_GRAY = 128
"""Close to the mean of ImageNet's pixels, so the padding is near zero after normalization."""


@dataclass(frozen=True)
class ResizePlan:
    """How images become S×S inputs of a network whose map at S×S has h×w cells.

    ``squash`` gives every image the whole square: both axes are scaled on their own. ``fit`` keeps the aspect ratio,
    to the nearest map cell: the longest side covers all cells of its axis, the shorter side a whole number of cells,
    and the rest is gray. So the covered cells show exactly the image, nothing else, and box edges scale linearly.
    """

    resize: Resize
    image_size: int
    """S, side of the network's input in pixels."""
    map_hw: tuple[int, int]
    """(h, w) of the network's map for an S×S input."""

    def covered(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return the (rows, cols) of the map that an upright image covers, from the top left; each at least 1."""
        rows, cols = self.map_hw
        if self.resize == "squash":
            return rows, cols
        longest_px = max(height_px, width_px)
        return max(1, round(rows * height_px / longest_px)), max(1, round(cols * width_px / longest_px))

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the network's input, (S, S, 3) uint8 RGB, C-contiguous, of an upright (H, W, 3) uint8 image.

        Scaled with OpenCV's bilinear interpolation, without antialiasing, as published CAM code does. In ``fit`` the
        image takes the covered cells' share of S, rounded to pixels.
        """
        size = self.image_size
        rows, cols = self.covered(*pixels.shape[:2])
        height, width = round(rows * size / self.map_hw[0]), round(cols * size / self.map_hw[1])
        scaled = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        if (height, width) == (size, size):
            return np.asarray(scaled, np.uint8)
        square = np.full((size, size, 3), _PAD_GRAY, np.uint8)
        square[:height, :width] = scaled
        return square


def map_to_image_xyxy(
    boxes_cells: NDArray[np.floating], covered_hw: tuple[int, int], size_hw: ArrayLike
) -> NDArray[np.float64]:
    """Return boxes in pixels of the upright original, (N, 4) float64 xmin, ymin, xmax, ymax, half-open.

    ``boxes_cells``: (N, 4), the same order, in cells of the map: cell i spans [i, i + 1). ``covered_hw``: (rows, cols)
    that the image covers (``ResizePlan.covered``). ``size_hw``: (height, width) of the original in pixels, or (N, 2)
    of each box's own. The scaling is exactly linear: (0, 0, cols, rows) is the whole image. No boxes, (0, 4), give
    (0, 4).
    """
    scale_hw = np.asarray(size_hw, np.float64) / np.asarray(covered_hw)
    boxes_px: NDArray[np.float64] = boxes_cells * scale_hw[..., [1, 0, 1, 0]]
    return boxes_px
