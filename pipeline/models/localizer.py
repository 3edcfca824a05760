"""From pixels to classes, maps, boxes and features in one forward pass, batched on the device."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arrays.boxes import Components, foreground_levels, level_boxes
from pipeline.images.resize import map_to_image_xyxy
from pipeline.models.network import CamNetwork
from pipeline.models.runtime import Runtime, resolve_precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class CamRule:
    """Which classes get maps, and how boxes are cut from them."""

    topk: int
    thresholds: tuple[float, ...]
    """Shares of a map's maximum, in (0, 1)."""
    components: Components
    min_area: float
    """Boxes under this share of the image's area are left out."""


class Maps(NamedTuple):
    """The M localized (image, class) pairs of a batch, ordered by image, then rank."""

    image: NDArray[np.int64]
    """(M,) row of the batch."""
    rank: NDArray[np.int32]
    """(M,) place of the class by probability among all classes; equal ones in the order of their ids."""
    class_id: NDArray[np.int32]
    class_prob: NDArray[np.float32]
    heat: list[NDArray[np.float32]]
    """M maps (rows, columns) of the cells that the picture covers."""


class Boxes(NamedTuple):
    """The R boxes of a batch, ordered by map, then threshold, then component."""

    map: NDArray[np.int64]
    """(R,) row of ``Maps``."""
    threshold: NDArray[np.float32]
    component: NDArray[np.int32]
    xyxy: NDArray[np.float32]
    """(R, 4) half-open, in pixels of the upright original."""
    area_frac: NDArray[np.float32]


class Localized(NamedTuple):
    """What one forward pass says of B images."""

    finite: NDArray[np.bool_]
    """(B,) false where the network gave a NaN or an infinity; such an image has no maps."""
    top1_class_id: NDArray[np.int32]
    top1_prob: NDArray[np.float32]
    pooled: NDArray[np.float32]
    """(B, K) the vectors that the linear layer saw."""
    maps: Maps
    boxes: Boxes


class Localizer:
    """A network on a device with a rule for its maps and boxes.

    In fp32 on CPU an image's results don't depend on its batch, but for the rounding of sums.
    """

    def __init__(self, network: CamNetwork, rule: CamRule, runtime: Runtime) -> None:
        """The runtime's device must be there."""
        self.device = torch.device(runtime.device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.rule = rule
        name = resolve_precision(runtime.precision, runtime.device)
        self._autocast = AUTOCAST.get(name)
        # PyTorch runs float32 convolutions in TF32 on CUDA unless told not to; fp32 is to mean fp32.
        torch.backends.cudnn.allow_tf32 = name != "fp32"

    @torch.inference_mode()
    def __call__(
        self,
        pixels: NDArray[np.uint8],
        sizes_hw: Sequence[tuple[int, int]],
        covered: Sequence[tuple[int, int]],
        classes: Sequence[Sequence[int]] | None = None,
    ) -> Localized:
        """Localize B images.

        ``pixels``: (B, S, S, 3) uint8 RGB. ``sizes_hw``: of the upright originals, in pixels. ``covered``: rows and
        columns of the map that each picture covers. ``classes``: for each image the classes that get maps beside the
        top-k.
        """
        with self._precision():
            features = self.network.features(torch.from_numpy(pixels).to(self.device, non_blocking=True))
        features = features.float()
        logits, pooled = self.network.head(features)
        finite = torch.isfinite(logits).all(dim=1)
        probabilities, order = logits.nan_to_num().softmax(dim=1).sort(dim=1, descending=True, stable=True)
        image, rank = self._chosen(order, finite, classes)
        class_ids = order[image, rank]
        maps = self._class_maps(features, image, class_ids)
        heat, boxes = self._cut(maps, image.cpu().numpy(), np.asarray(sizes_hw), np.asarray(covered))
        return Localized(
            finite.cpu().numpy(),
            order[:, 0].int().cpu().numpy(),
            probabilities[:, 0].float().cpu().numpy(),
            pooled.float().cpu().numpy(),
            Maps(
                image.cpu().numpy(),
                rank.int().cpu().numpy(),
                class_ids.int().cpu().numpy(),
                probabilities[image, rank].float().cpu().numpy(),
                heat,
            ),
            boxes,
        )

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()

    def _chosen(self, order: Tensor, finite: Tensor, classes: Sequence[Sequence[int]] | None) -> tuple[Tensor, Tensor]:
        """Return image and rank (M,) of the classes that get maps: the top-k and those named for each image."""
        chosen = torch.zeros_like(order, dtype=torch.bool)
        if classes and any(len(ids) for ids in classes):
            image = [row for row, ids in enumerate(classes) for _ in ids]
            named = [class_id for ids in classes for class_id in ids]
            chosen[image, named] = True
            chosen = chosen.gather(1, order)
        chosen[:, : self.rule.topk] = True
        image_index, rank = (chosen & finite[:, None]).nonzero(as_tuple=True)
        return image_index, rank

    def _class_maps(self, features: Tensor, image: Tensor, class_ids: Tensor) -> Tensor:
        """Return the maps (M, h, w) of M (image, class) pairs, computed for the whole batch at once."""
        if not len(image):
            return features.new_zeros(0, *features.shape[2:])
        counts = torch.bincount(image, minlength=len(features))
        place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
        padded = class_ids.new_zeros(len(features), int(counts.max()))
        padded[image, place] = class_ids
        maps: Tensor = self.network.head.class_maps(features, padded)
        return maps[image, place]

    def _cut(
        self, maps: Tensor, image: NDArray[np.int64], sizes_hw: NDArray[np.int64], covered: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.float32]], Boxes]:
        """Return the M maps cut to what each picture covers, and the boxes in pixels; one pass a covered shape."""
        heat: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(maps)
        parts = []
        thresholds = torch.tensor(self.rule.thresholds, device=maps.device)
        for shape in np.unique(covered[image], axis=0):
            index = np.flatnonzero((covered[image] == shape).all(axis=1))
            cut = maps[torch.from_numpy(index).to(maps.device), : shape[0], : shape[1]].contiguous()
            found = level_boxes(cut, foreground_levels(cut, thresholds), components=self.rule.components)
            for row, one in zip(index, cut.cpu().numpy(), strict=True):
                heat[row] = one
            map_index = index[found.map_index.cpu().numpy()]
            own_sizes = sizes_hw[image[map_index]].reshape(-1, 2)
            xyxy = map_to_image_xyxy(found.boxes_xyxy.cpu().numpy(), (shape[0], shape[1]), own_sizes)
            area_frac = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1) / own_sizes.prod(axis=1)
            level, component = found.level_index.cpu().numpy(), found.component.cpu().numpy()
            keep = area_frac >= self.rule.min_area
            parts.append(tuple(column[keep] for column in (map_index, level, component, xyxy, area_frac)))
        return heat, self._in_order(parts)

    def _in_order(self, parts: Sequence[tuple[NDArray[Any], ...]]) -> Boxes:
        empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))
        columns = [np.concatenate(column) for column in zip(empty, *parts, strict=True)]
        order = np.lexsort((columns[2], columns[1], columns[0]))
        map_index, level, component, xyxy, area_frac = (column[order] for column in columns)
        return Boxes(
            map_index,
            np.asarray(self.rule.thresholds, np.float32)[level],
            component.astype(np.int32),
            xyxy.astype(np.float32),
            area_frac.astype(np.float32),
        )
