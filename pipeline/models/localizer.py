"""From pixels to classes, maps, boxes and features in one forward pass, batched on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.arrays.boxes import Components, LevelBoxes, foreground_levels, level_boxes
from pipeline.images.resize import map_to_image_xyxy
from pipeline.models.engine import Engine, to_host
from pipeline.models.network import CamNetwork
from pipeline.models.runtime import Runtime


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
    heat: NDArray[np.float32]
    """(M, h, w) whole maps."""
    covered: NDArray[np.int64]
    """(M, 2) rows and columns of the cells that the picture covers, from the top left; the others show padding."""


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

    In fp32 on CPU an image's results don't depend on its batch, but for the rounding of sums. The head, the maps and
    the boxes are computed in float32, whatever the number type of the trunk. Threads may call it side by side.
    """

    def __init__(self, network: CamNetwork, rule: CamRule, runtime: Runtime, *, multi_label: bool = False) -> None:
        """The runtime's device must be there; the network's head is moved to it.

        ``multi_label``: a class's probability is the sigmoid of its logit, not its share of the softmax over all.
        """
        self._multi_label = multi_label
        self._engine = Engine(network.eval(), runtime)
        self._head = network.head.to(runtime.device)
        self._thresholds = torch.tensor(rule.thresholds, device=runtime.device)
        self.rule = rule

    def warm_up(self) -> None:
        """Compile the network, where it is to be; raises ModelError where it can't be compiled on this machine."""
        self._engine.warm_up()

    @torch.no_grad()
    def __call__(
        self,
        pixels: Tensor,
        sizes_hw: ArrayLike,
        covered: ArrayLike,
        classes: Sequence[Sequence[int]] | None = None,
    ) -> Localized:
        """Localize B images.

        ``pixels``: (B, S, S, 3) uint8 RGB, on CPU or the device; only read. ``sizes_hw``: (B, 2) of the upright
        originals, in pixels. ``covered``: (B, 2) rows and columns of the map that each picture covers. ``classes``: for
        each image the classes that get maps beside the top-k.
        """
        sizes, shapes = np.asarray(sizes_hw).reshape(-1, 2), np.asarray(covered).reshape(-1, 2)
        with self._engine.at_work():
            features = self._engine(self._engine.put(pixels))
            logits, pooled = self._head(features)
            finite = torch.isfinite(logits).all(dim=1)
            scores = logits.nan_to_num()
            probabilities = scores.sigmoid() if self._multi_label else scores.softmax(dim=1)
            class_ids, ranks = self._chosen(probabilities, classes)
            shown = finite[:, None] & (ranks < logits.shape[1])
            maps = self._head.class_maps(features, class_ids)
            groups = _groups(shapes)
            found = [self._boxes(maps, shown, group) for group in groups]
            host = to_host([finite, class_ids, ranks, probabilities.gather(1, class_ids), pooled, shown, maps])
            columns = [to_host(boxes) for boxes in found]
        is_finite, ids, places, shares, vectors, is_shown, heat = host
        image, slot = np.nonzero(is_shown)
        return Localized(
            is_finite,
            ids[:, 0].astype(np.int32),
            shares[:, 0],
            vectors,
            Maps(
                image,
                places[image, slot].astype(np.int32),
                ids[image, slot].astype(np.int32),
                shares[image, slot],
                heat[image, slot],
                shapes[image],
            ),
            self._in_pixels(groups, columns, is_shown, sizes),
        )

    def _chosen(self, probabilities: Tensor, classes: Sequence[Sequence[int]] | None) -> tuple[Tensor, Tensor]:
        """Return the ids (B, n) of the classes that get maps, and their ranks (B, n), ascending; C where none is left.

        They are the top-k and those named for each image; n is the largest number that an image may have.
        """
        n_classes = probabilities.shape[1]
        longest = max(map(len, classes), default=0) if classes else 0
        if not classes or not longest:
            ids = _most_probable(probabilities, self.rule.topk)
            return ids, torch.arange(self.rule.topk, device=ids.device).expand_as(ids)
        by_rank = _most_probable(probabilities, n_classes)
        chosen = torch.zeros_like(by_rank, dtype=torch.bool)
        chosen[[row for row, ids in enumerate(classes) for _ in ids], [one for ids in classes for one in ids]] = True
        chosen = chosen.gather(1, by_rank)
        chosen[:, : self.rule.topk] = True
        places = torch.arange(n_classes, device=chosen.device)
        n_slots = min(n_classes, self.rule.topk + longest)
        ranks = torch.where(chosen, places, n_classes).topk(n_slots, dim=1, largest=False).values
        return by_rank.gather(1, ranks.clamp(max=n_classes - 1)), ranks

    def _boxes(self, maps: Tensor, shown: Tensor, group: "_Group") -> LevelBoxes:
        """Return the boxes in the maps (B, n, h, w) of a group; ``map_index`` counts its images' n maps."""
        if group.images is not None:
            images = torch.from_numpy(group.images).to(maps.device)
            maps, shown = maps[images], shown[images]
        cut = maps[:, :, : group.rows, : group.columns].flatten(0, 1)
        levels = torch.where(shown.flatten()[:, None], foreground_levels(cut, self._thresholds), torch.inf)
        return level_boxes(cut, levels, components=self.rule.components)

    def _in_pixels(
        self,
        groups: Sequence["_Group"],
        found: Sequence[Sequence[NDArray[Any]]],
        shown: NDArray[np.bool_],
        sizes_hw: NDArray[np.int64],
    ) -> Boxes:
        """Return the boxes of all groups (each the columns of LevelBoxes) in pixels, in order."""
        n_images, n_slots = shown.shape
        row_of_slot = (shown.cumsum() - 1).reshape(shown.shape)
        parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))]
        for group, (map_index, level, component, cells_xyxy) in zip(groups, found, strict=True):
            images = np.arange(n_images) if group.images is None else group.images
            image, slot = images[map_index // n_slots], map_index % n_slots
            xyxy = map_to_image_xyxy(cells_xyxy, (group.rows, group.columns), sizes_hw[image])
            area_frac = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1) / sizes_hw[image].prod(axis=1)
            keep = area_frac >= self.rule.min_area
            part = row_of_slot[image, slot], level, component, xyxy, area_frac
            parts.append(tuple(column[keep] for column in part))
        row, level, component, xyxy, area_frac = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.lexsort((component, level, row))
        return Boxes(
            row[order],
            np.asarray(self.rule.thresholds, np.float32)[level[order]],
            component[order].astype(np.int32),
            xyxy[order].astype(np.float32),
            area_frac[order].astype(np.float32),
        )


def _most_probable(probabilities: Tensor, n: int) -> Tensor:
    """Return the ids (B, n) of the most probable of C classes, equal ones in the order of their ids.

    ``topk`` promises no order of equal values, so none are: the bits of a float32 that is not negative grow with it,
    and a 64-bit key has room for the id behind them.
    """
    ids = torch.arange(probabilities.shape[1], device=probabilities.device)
    keys = (probabilities.view(torch.int32).long() << 32) - ids
    return keys.topk(n, dim=1).indices


class _Group(NamedTuple):
    """Images whose pictures cover the same cells of their maps."""

    images: NDArray[np.int64] | None
    """Rows of the batch; None where they are all of it."""
    rows: int
    columns: int


def _groups(covered: NDArray[np.int64]) -> list[_Group]:
    shapes = np.unique(covered, axis=0)
    if len(shapes) == 1:
        return [_Group(None, *shapes[0].tolist())]
    return [_Group(np.flatnonzero((covered == shape).all(axis=1)), *shape.tolist()) for shape in shapes]
