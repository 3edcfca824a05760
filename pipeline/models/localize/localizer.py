"""From pixels to classes, maps, boxes and features in one forward pass a view, batched on the device."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.arrays.boxes import LevelBoxes, foreground_levels, level_boxes
from pipeline.models.localize.box_rules import Boxes, BoxRule, CutMaps, boxes_in_pixels
from pipeline.models.localize.class_selection import chosen_classes
from pipeline.models.localize.engine import Engine, to_host
from pipeline.models.localize.methods import METHODS
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.views import Canvas, View, make_views, mean_of, plan_views
from pipeline.models.networks.network import CamNetwork
from schemas.annotate import Method


@dataclass(frozen=True)
class CamRule:
    """Which classes get maps, and how boxes are cut from them."""

    topk: int
    boxes: BoxRule


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


class Localized(NamedTuple):
    """What the network says of B images; where it looks at several views of each, the mean of their logits."""

    finite: NDArray[np.bool_]
    """(B,) false where the network gave a NaN or an infinity; such an image has no maps."""
    top1_class_id: NDArray[np.int32]
    top1_prob: NDArray[np.float32]
    pooled: NDArray[np.float32]
    """(B, K) the vectors that the linear layer saw, their mean over the views."""
    maps: Maps
    boxes: Boxes


class Localizer:
    """A network on a device with a rule for its maps and boxes.

    In fp32 on CPU an image's results don't depend on its batch, but for the rounding of sums. The head, the maps and
    the boxes are computed in float32, whatever the number type of the trunk. Threads may call it side by side.
    """

    def __init__(
        self,
        network: CamNetwork,
        rule: CamRule,
        runtime: Runtime,
        *,
        multi_label: bool = False,
        method: Method = "cam",
        views: tuple[View, ...] | None = None,
    ) -> None:
        """The runtime's device must be there; the network's head is moved to it.

        ``multi_label``: a class's probability is the sigmoid of its logit, not its share of the softmax over all.
        ``views``: what the network sees of each picture; by default the whole, once.
        """
        self._multi_label = multi_label
        self._engine = Engine(network.eval(), runtime)
        box_head = network.box_head.to(runtime.device) if network.box_head else None
        self._method = METHODS[method](self._engine, network.head.to(runtime.device), box_head)
        map_hw = functools.partial(METHODS[method].map_hw, network)
        self._views = plan_views(views or make_views(network.preprocessing.image_size), map_hw)
        self._canvas = Canvas(self._views, map_hw, runtime.device)
        self._thresholds = torch.tensor(rule.boxes.thresholds, device=runtime.device)
        self.rule = rule

    def warm_up(self) -> None:
        """Compile the network, where it is to be; raises ModelError where it can't be compiled on this machine."""
        self._engine.warm_up(self._views.sides_px)

    @torch.no_grad()
    def __call__(
        self,
        pixels: Tensor,
        sizes_hw: ArrayLike,
        covered: ArrayLike,
        classes: Sequence[Sequence[int]] | None = None,
    ) -> Localized:
        """Localize B images.

        ``pixels``: (B, S, S, 3) uint8 RGB, on CPU or the device; only read; S is the side of the views' whole square.
        ``sizes_hw``: (B, 2) of the upright originals, in pixels. ``covered``: (B, 2) rows and columns of the map, or of
        the views' canvas, that each picture covers. ``classes``: for each image the classes that get maps beside the
        top-k.
        """
        sizes, shapes = np.asarray(sizes_hw).reshape(-1, 2), np.asarray(covered).reshape(-1, 2)
        with self._engine.at_work():
            seen = self._seen(self._engine.put(pixels), classes)
            groups = _groups(shapes)
            found = [
                self._boxes(seen.maps, seen.shown, group)
                if seen.told is None
                else self._told(seen.told, seen.shown, seen.maps.shape[2:], group)
                for group in groups
            ]
            finite, ids, places, shares, vectors, is_shown, heat = to_host(seen[:-1])
            columns = [to_host(boxes) for boxes in found]
        image, slot = np.nonzero(is_shown)
        return Localized(
            finite,
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
            self._in_pixels(groups, columns, is_shown, places, sizes),
        )

    def _seen(self, pixels: Tensor, classes: Sequence[Sequence[int]] | None) -> "_Seen":
        """Return what the network makes of the pictures, of as many at a time as the method can take."""
        at_once = self._method.images_at_once(self._views.image_pixels) or max(1, len(pixels))
        named = classes if classes and any(classes) else None
        longest = max(map(len, named)) if named else 0
        parts = [
            self._seen_at_once(some, named and named[at_once * place :][:at_once], longest)
            for place, some in enumerate(torch.split(pixels, at_once))
        ]
        if len(parts) == 1:
            return parts[0]
        columns = zip(*parts, strict=True)
        joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
        return _Seen(*joined)

    def _seen_at_once(self, pixels: Tensor, classes: Sequence[Sequence[int]] | None, longest: int) -> "_Seen":
        looks = [self._method.look(part) for part in self._views.inputs(pixels)]
        logits, pooled = mean_of([look.logits for look in looks]), mean_of([look.pooled for look in looks])
        finite = torch.isfinite(logits).all(dim=1)
        scores = logits.nan_to_num()
        probabilities = scores.sigmoid() if self._multi_label else scores.softmax(dim=1)
        class_ids, ranks = chosen_classes(probabilities, self.rule.topk, classes, longest)
        shown = finite[:, None] & (ranks < logits.shape[1])
        maps = self._canvas.laid([self._method.maps(look, class_ids) for look in looks])
        # A gradient can leave the number type's range where no logit does.
        finite = finite & (torch.isfinite(maps).flatten(2).all(dim=2) | ~shown).all(dim=1)
        shares, told = probabilities.gather(1, class_ids), self._method.told(looks[0])
        return _Seen(finite, class_ids, ranks, shares, pooled, shown & finite[:, None], maps, told)

    def _boxes(self, maps: Tensor, shown: Tensor, group: "_Group") -> LevelBoxes:
        """Return the boxes in the maps (B, n, h, w) of a group; ``map_index`` counts its images' n maps."""
        if group.images is not None:
            images = torch.from_numpy(group.images).to(maps.device)
            maps, shown = maps[images], shown[images]
        cut = maps[:, :, : group.rows, : group.columns].flatten(0, 1)
        levels = torch.where(shown.flatten()[:, None], foreground_levels(cut, self._thresholds), torch.inf)
        return level_boxes(cut, levels, components=self.rule.boxes.components)

    def _told(self, shares: Tensor, shown: Tensor, map_hw: Sequence[int], group: "_Group") -> LevelBoxes:
        """Return as ``_boxes`` does the box that was told of each image, ``shares`` (B, 4), for each of its classes."""
        if group.images is not None:
            images = torch.from_numpy(group.images).to(shares.device)
            shares, shown = shares[images], shown[images]
        height, width = map_hw
        cells = shares * shares.new_tensor([width, height, width, height])
        inside = cells.clamp(min=0).minimum(cells.new_tensor([group.columns, group.rows] * 2))
        some = (inside[:, 2:] > inside[:, :2]).all(dim=1)
        index = (shown & some[:, None]).flatten().nonzero().flatten()
        zeros = torch.zeros_like(index)
        return LevelBoxes(index, zeros, zeros, inside[index // shown.shape[1]])

    def _in_pixels(
        self,
        groups: Sequence["_Group"],
        found: Sequence[Sequence[NDArray[Any]]],
        shown: NDArray[np.bool_],
        ranks: NDArray[np.int64],
        sizes_hw: NDArray[np.int64],
    ) -> Boxes:
        """Return the boxes of all groups (each the columns of LevelBoxes) in pixels; ``shown``, ``ranks``: (B, n)."""
        n_images, n_slots = shown.shape
        row_of_slot = (shown.cumsum() - 1).reshape(shown.shape)
        parts = []
        for group, columns in zip(groups, found, strict=True):
            images = np.arange(n_images) if group.images is None else group.images
            rows, places = row_of_slot[images].reshape(-1), ranks[images].reshape(-1)
            sizes = sizes_hw[images].repeat(n_slots, axis=0)
            parts.append(CutMaps(rows, places, sizes, (group.rows, group.columns), columns))
        return boxes_in_pixels(self.rule.boxes, parts)


class _Seen(NamedTuple):
    """What the network makes of B images and n classes of each, on the device."""

    finite: Tensor
    """(B,)."""
    class_ids: Tensor
    """(B, n)."""
    ranks: Tensor
    """(B, n)."""
    shares: Tensor
    """(B, n) probabilities."""
    pooled: Tensor
    """(B, K)."""
    shown: Tensor
    """(B, n) whether the image has a map of the class."""
    maps: Tensor
    """(B, n, h, w) on the views' canvas."""
    told: Tensor | None
    """(B, 4) as of ``Localization.told``."""


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
