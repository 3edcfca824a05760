"""Figure/ground maps of batches on the device, and class maps fused with them before boxes are cut."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.localize.foreground import Foreground
from pipeline.models.localize.stride16 import stride16_hw
from pipeline.models.localize.views import Canvas, View, plan_views
from pipeline.models.networks.network import CamNetwork


class FigureMaps(NamedTuple):
    """The figure/ground maps of B images, in main memory."""

    maps: NDArray[np.float32]
    """(B, h, w) with their padding; the values of images that are not finite are undefined."""
    valid_hw: NDArray[np.int64]
    """(B, 2) rows and columns that show the picture, from the top left."""


class Fusion:
    """Computes figure/ground maps of one direction on a device and fuses class maps with them; safe with threads."""

    def __init__(self, foreground: Foreground, network: CamNetwork, views: tuple[View, ...], device: str) -> None:
        """``views`` are the views of the class maps."""
        self._foreground = foreground.to(device)
        map_hw = functools.partial(stride16_hw, network.trunk, foreground.card.tensor)
        self._canvas = Canvas(plan_views(views, map_hw), map_hw, device)

    def maps(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return figure/ground maps (B, H, W) float32 on a canvas, from the stride-16 tensor of each view."""
        maps = [self._foreground.maps(tensor)[:, None] for tensor in tensors if tensor is not None]
        return self._canvas.lay(maps)[:, 0]

    def fused(self, class_maps: Tensor, figure: Tensor, valid_hw: tuple[int, int]) -> Tensor:
        """Return the fused maps (G, n, H', W'), in [0, 1], of the part that shows the pictures.

        ``class_maps`` (G, n, h, w) and ``figure`` (G, H, W) have their padding; ``valid_hw`` are the rows and columns
        of ``class_maps`` that show the picture.
        """
        rows, columns = figure_valid_hw(np.array(valid_hw), class_maps.shape[2:], figure.shape[1:]).tolist()
        return self._foreground.fused(class_maps[:, :, : valid_hw[0], : valid_hw[1]], figure[:, :rows, :columns])


def figure_valid_hw(valid_hw: NDArray[np.int64], map_hw: Sequence[int], figure_hw: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows and columns (…, 2) of figure/ground maps that show what ``valid_hw`` (…, 2) of class maps do.

    ``map_hw`` and ``figure_hw``: sizes of the maps with their padding. The result is rounded to whole cells.
    """
    scaled: NDArray[np.int64] = np.rint(valid_hw * np.array(figure_hw) / np.array(map_hw)).clip(min=1).astype(np.int64)
    return scaled
