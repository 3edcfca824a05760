"""Resizes upright images to the network's square input, and scales boxes from map cells to pixels of the image."""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.options.annotate import Resize
from schemas.options.network_names import Interpolation

MARGIN = 2.0
"""A JPEG that is decoded at a smaller scale has sides of at least this many times the sides of the input.

Measured with MobileNetV2 on photographs enlarged three times: with 2 no score changes by more than two images in 300,
and the mean IoU of the boxes with the boxes of the fully decoded photograph is .99 (ilsvrc300) and .93 (coco60); with 1
it is .97 and .86. For 4000×3000 pixels and an input of 224, 2 makes decoding 2.2 times as fast (scale 1/4), and 1 would
make it 2.7 times as fast (1/8).
"""

PAD_GRAY = 128
"""Gray value of padding, close to the mean of ImageNet's pixels and so close to zero after normalization."""


_BY_OPENCV: dict[Interpolation, int] = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}


@dataclass(frozen=True)
class ResizePlan:
    """How images become S×S inputs of a network whose map at S×S has h×w cells.

    ``squash`` scales both axes separately, so that an image fills the square. ``fit`` keeps the aspect ratio to the
    nearest map cell: the longer side covers all cells of its axis, the shorter side covers a whole number of cells, and
    the rest is gray. So the valid cells show the image and nothing else, and box edges scale linearly.
    """

    resize: Resize
    image_size: int
    """S, side of the network's input in pixels."""
    map_hw: tuple[int, int]
    """(h, w) of the network's map for an S×S input."""
    interpolation: Interpolation = "bilinear"

    def valid_hw(self, sizes_hw: ArrayLike) -> NDArray[np.int64]:
        """Return the numbers of rows and columns of the map, from the top left, that show an image; each at least 1.

        ``sizes_hw``: (height, width) in pixels of one upright image, or (N, 2) of N images; the result has this shape.
        """
        sizes = np.asarray(sizes_hw)
        cells: NDArray[np.int64] = np.broadcast_to(np.array(self.map_hw), sizes.shape)
        if self.resize == "squash":
            return cells
        covered: NDArray[np.float64] = np.rint(cells * sizes / sizes.max(axis=-1, keepdims=True))
        return covered.clip(min=1).astype(np.int64)

    def input_hw(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return the (height, width) in pixels that an upright image covers in the input, from the top left.

        It is the share of the valid cells of S, rounded to pixels.
        """
        return _input_hw(self, height_px, width_px)

    def least_hw(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return the least (height, width) in pixels at which ``apply`` needs an upright image of that size."""
        height, width = self.input_hw(height_px, width_px)
        return math.ceil(MARGIN * height), math.ceil(MARGIN * width)

    def apply(
        self,
        pixels: NDArray[np.uint8],
        size_hw: tuple[int, int] | None = None,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Return the network's input, (S, S, 3) uint8 RGB, C-contiguous, of an upright (h, w, 3) uint8 image.

        The image is scaled with OpenCV's ``interpolation`` without antialiasing, as in published CAM code.
        ``size_hw``: (height, width) of the original, needed where ``pixels`` were decoded at a smaller scale; by
        default the shape of ``pixels``. ``out``: an array (S, S, 3) uint8 for the result; by default a new one.
        """
        side = self.image_size
        square = np.empty((side, side, 3), np.uint8) if out is None else out
        height, width = self.input_hw(*(size_hw or pixels.shape[:2]))
        square[height:], square[:height, width:] = PAD_GRAY, PAD_GRAY
        cv2.resize(pixels, (width, height), dst=square[:height, :width], interpolation=_BY_OPENCV[self.interpolation])
        return square


@functools.lru_cache(maxsize=4096)
def _input_hw(plan: ResizePlan, height_px: int, width_px: int) -> tuple[int, int]:
    """Return what ``input_hw`` does; photographs have few sizes, and NumPy takes long for two numbers."""
    rows, cols = plan.valid_hw((height_px, width_px)).tolist()
    return round(rows * plan.image_size / plan.map_hw[0]), round(cols * plan.image_size / plan.map_hw[1])


def map_to_image_xyxy(
    boxes_cells: NDArray[np.floating], covered_hw: tuple[int, int], size_hw: ArrayLike
) -> NDArray[np.float64]:
    """Return boxes in pixels of the upright original, (N, 4) float64 xmin, ymin, xmax, ymax, half-open.

    ``boxes_cells``: (N, 4) in the same order, in cells of the map; cell i spans [i, i + 1). ``covered_hw``: the numbers
    of rows and columns of the map that show the image (``ResizePlan.valid_hw``). ``size_hw``: (height, width) of the
    original in pixels, or (N, 2) with one original for each box. The scaling is exactly linear: (0, 0, cols, rows)
    becomes the whole image. No boxes, (0, 4), give (0, 4).
    """
    scale_hw = np.asarray(size_hw, np.float64) / np.asarray(covered_hw)
    boxes_px: NDArray[np.float64] = boxes_cells * scale_hw[..., [1, 0, 1, 0]]
    return boxes_px
