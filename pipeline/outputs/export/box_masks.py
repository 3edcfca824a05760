"""The masks of an export: the part of a class map that gave each box."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from pipeline.arrays.figure_ground import min_max
from pipeline.models.localize.foreground import Foreground, foreground_of
from pipeline.outputs.export.batches import Batch
from pipeline.outputs.export.run_lengths import Mask, cut_masks
from pipeline.outputs.stored_maps import map_shapes, map_values
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.whole_objects import read_whole
from schemas.errors import StoreError
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class MaskCutter:
    """Cuts masks by the rule by which a run cut its boxes."""

    def __init__(self, scaled: bool, foreground: Foreground | None) -> None:
        """``scaled``: thresholds are shares of a map's range, not of its maximum; ``foreground``: maps are fused."""
        self._scaled, self._foreground = scaled, foreground

    def of(self, batch: Batch) -> list[Mask]:
        """Return the mask of each box.

        A pixel is inside where the map, interpolated to the image's size, reaches the box's threshold, and where it is
        connected with the box's part of the map. A box without a stored map has no mask.
        """
        sizes = np.stack([batch.images[name].to_numpy() for name in ("width_px", "height_px")], axis=1)
        sizes = np.repeat(sizes, np.diff(batch.offsets), axis=0)
        sides = np.stack([batch.boxes[name].to_numpy() for name in _SIDES], axis=1)
        ends = np.maximum(np.minimum(np.ceil(sides[:, 2:]), sizes), sides[:, :2])  # None is outside of its image.
        places = np.stack([sides[:, :2], ends, sizes], axis=1).astype(np.int64)
        thresholds = batch.boxes["threshold"].to_numpy()
        needed = ("heat",) if self._foreground is None else ("heat", "fg")
        stored = [batch.boxes[name].is_valid().to_numpy() for name in needed]
        mapped = np.flatnonzero(np.all([thresholds != 0, *stored], axis=0))
        found: list[Mask] = [None] * len(batch.boxes)
        for own, shares in self._shares(batch.boxes.take(pa.array(mapped))):
            rows = mapped[own]
            for row, mask in zip(rows.tolist(), cut_masks(shares, thresholds[rows], places[rows]), strict=True):
                found[row] = mask
        return found

    def _shares(self, boxes: pa.Table) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield places (n,) in ``boxes`` and their maps (n, w, h) in shares of each one's maximum.

        The columns of a map lie one after the other, as in run lengths. One without a positive value is all 0.
        """
        shapes = map_shapes(boxes, "heat")
        if self._foreground is not None:
            shapes = np.concatenate([shapes, map_shapes(boxes, "fg")], axis=1)
        for shape in np.unique(shapes, axis=0):
            own = np.flatnonzero((shapes == shape).all(axis=1))
            rows = boxes.take(pa.array(own))
            cells = torch.from_numpy(map_values(rows, "heat"))
            if self._foreground is not None:
                cells = self._foreground.fused(cells[:, None], torch.from_numpy(map_values(rows, "fg")))[:, 0]
            cells = min_max(cells) if self._scaled else cells
            highest = cells.amax((1, 2), keepdim=True)
            yield own, (cells / highest).where(highest > 0, 0.0).transpose(1, 2).contiguous().numpy()


def masks_of(run: RunManifest, fs: AbstractFileSystem, root: str) -> MaskCutter:
    """Return the masks of a run's boxes; raises StoreError where its figure/ground direction is lost."""
    digest = run.settings.get("foreground", "off")
    foreground = None
    if digest != "off":
        path = LakePaths(root).foreground_file(run.model)
        content = read_whole(fs, path)
        foreground = None if content is None else foreground_of(content, path)
        if foreground is None or foreground.digest != digest:
            raise StoreError(
                f"{safe_url(path)}: the figure/ground direction of the maps is lost or changed; --no-masks does without"
            )
    return MaskCutter(run.settings.get("box_rule") == "auto", foreground)
