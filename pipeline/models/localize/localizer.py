"""From pixels to classes, maps, boxes and features: a forward pass for each view, maps and boxes on the same device.

The method (``methods.py``) makes the maps; for the default method, cam, the network's head makes them: ``class_maps``
in ``networks/heads.py``.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.arrays.boxes import LevelBoxes
from pipeline.models.localize.box_rules import Boxes, BoxRule, CutMaps, boxes_in_pixels
from pipeline.models.localize.class_selection import named_classes, select_classes
from pipeline.models.localize.engine import Engine, to_host
from pipeline.models.localize.feature_maps import FeatureMapCodes, encoded, feature_map_codes
from pipeline.models.localize.foreground import Foreground
from pipeline.models.localize.fusion import FigureMaps, Fusion, figure_valid_hw
from pipeline.models.localize.methods import METHODS
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.views import Canvas, View, make_views, mean_of_views, plan_views
from pipeline.models.networks.network import CamNetwork
from schemas.options.annotate import Method


@dataclass(frozen=True)
class CamRule:
    """Which classes get maps, and how boxes are cut from the maps."""

    topk: int
    """Each image gets maps of its most probable classes, this many."""
    boxes: BoxRule


class Maps(NamedTuple):
    """The M maps of a batch, one for each localized (image, class) pair, ordered by image, then rank."""

    image: NDArray[np.int64]
    """(M,) index of the image in the batch."""
    rank: NDArray[np.int32]
    """(M,) rank of the class by probability among all classes, 0 = top-1; ties are ordered by class id."""
    class_id: NDArray[np.int32]
    class_prob: NDArray[np.float32]
    heat: NDArray[np.float32]
    """(M, h, w) the maps with their padding."""
    valid_hw: NDArray[np.int64]
    """(M, 2) rows and columns of the map that show the picture, from the top left; the other cells show padding."""


class Localized(NamedTuple):
    """The network's results for B images; where an image has several views, they come from the mean of the logits."""

    finite: NDArray[np.bool_]
    """(B,) false where the network gave a NaN or an infinity; such an image has no maps and no boxes."""
    top1_class_id: NDArray[np.int32]
    """(B,)."""
    top1_prob: NDArray[np.float32]
    """(B,) in [0, 1]."""
    pooled: NDArray[np.float32]
    """(B, K) the vectors that the last linear layer took, averaged over the views."""
    maps: Maps
    boxes: Boxes
    figure: FigureMaps | None
    """None where the localizer has no figure/ground direction; maps of images that are not finite are undefined."""
    codes: FeatureMapCodes | None
    """None where the localizer stores no feature maps."""


class Localizer:
    """A network on a device, with a method for its maps and a rule for its boxes.

    In fp32 on CPU the results of an image do not depend on the other images of its batch, except for the rounding of
    sums. The maps and the boxes are computed in float32, whatever the number type of the trunk; so is the head, but for
    the convolution of a ConvHead over all classes. Several threads may use one object at the same time.
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
        foreground: Foreground | None = None,
        feature_map_bits: int | None = None,
    ) -> None:
        """Prepare the network; its head is moved to the runtime's device, which must exist.

        ``multi_label``: the probability of a class is the sigmoid of its logit instead of the softmax over all classes.
        ``views``: the parts of each picture that the network runs on; by default one view, the whole picture.
        ``foreground``: the network's figure/ground direction. Its maps are fused with the class maps before boxes are
        cut; the class maps in the result stay unchanged. Not for the method regress, which has no maps.
        ``feature_map_bits``: bits of each value of the stored feature maps, for one view; None: none are stored.
        """
        self._multi_label, self._bits = multi_label, feature_map_bits or 0
        tensor = foreground.card.tensor if foreground else None
        self._engine = Engine(network.eval(), runtime, tensor)
        box_head = network.box_head.to(runtime.device) if network.box_head else None
        head = network.head.to(runtime.device).behind_trunk_in(self._engine.dtype)
        self._method = METHODS[method](self._engine, head, box_head)
        map_hw = functools.partial(METHODS[method].map_hw, network)
        self._views = plan_views(views or make_views(network.preprocessing.image_size), map_hw)
        self._canvas = Canvas(self._views, map_hw, runtime.device)
        self._fusion = Fusion(foreground, network, self._views.views, runtime.device) if foreground else None
        self.rule = rule

    def warm_up(self) -> None:
        """Compile the network where the runtime asks for it; raises ModelError where it can't be compiled here."""
        self._engine.warm_up(self._views.sides_px)

    @torch.no_grad()
    def __call__(
        self,
        pixels: Tensor | Sequence[Tensor],
        sizes_hw: ArrayLike,
        valid_hw: ArrayLike,
        classes: Sequence[Sequence[int]] | None = None,
    ) -> Localized:
        """Localize B images.

        - ``pixels``: (B, S, S, 3) uint8 RGB, on CPU or on the device, or several parts of them; not changed. S is
          ``ViewPlan.side_px``.
        - ``sizes_hw``: (B, 2) height and width of the upright originals in pixels.
        - ``valid_hw``: (B, 2) rows and columns of the map (of the views' canvas) that show each picture.
        - ``classes``: for each image the ids of further classes that get maps beside the top-k.
        """
        sizes, valid = np.asarray(sizes_hw).reshape(-1, 2), np.asarray(valid_hw).reshape(-1, 2)
        with self._engine.on_stream():
            result = self._predict(self._engine.to_device(pixels), classes)
            groups = _groups(valid)
            cut = [self._boxes(result, group) for group in groups]
            finite, ids, ranks, probs, pooled, has_map, _, heat = to_host(result[:8])
            figure = None if result.figure is None else to_host([result.figure])[0]
            codes = None
            if result.codes is not None and result.negative is not None:
                codes = feature_map_codes(result.codes, result.negative, pooled, heat.shape[2:], self._bits)
            columns = [to_host(boxes) for boxes, _ in cut]
        image, slot = np.nonzero(has_map)
        maps = Maps(
            image,
            ranks[image, slot].astype(np.int32),
            ids[image, slot].astype(np.int32),
            probs[image, slot],
            heat[image, slot],
            valid[image],
        )
        boxes = self._in_pixels(groups, [map_hw for _, map_hw in cut], columns, has_map, ranks, sizes)
        figures = (
            None if figure is None else FigureMaps(figure, figure_valid_hw(valid, heat.shape[2:], figure.shape[1:]))
        )
        return Localized(finite, ids[:, 0].astype(np.int32), probs[:, 0], pooled, maps, boxes, figures, codes)

    def _predict(self, pixels: Tensor, classes: Sequence[Sequence[int]] | None) -> "_Prediction":
        """Run the network, on as many pictures at a time as the method can take."""
        at_once = self._method.images_at_once(self._views.image_pixels) or max(1, len(pixels))
        named = classes if classes and any(classes) else None
        max_named = max(map(len, named)) if named else 0
        parts = [
            self._predict_at_once(part, named and named[at_once * number :][:at_once], max_named)
            for number, part in enumerate(torch.split(pixels, at_once))
        ]
        if len(parts) == 1:
            return parts[0]
        columns = zip(*parts, strict=True)
        joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
        return _Prediction(*joined)

    def _predict_at_once(
        self, pixels: Tensor, classes: Sequence[Sequence[int]] | None, max_named: int
    ) -> "_Prediction":
        passes = [self._method.forward(view) for view in self._views.inputs(pixels)]
        logits, pooled = mean_of_views([one.logits for one in passes]), mean_of_views([one.pooled for one in passes])
        finite = torch.isfinite(logits).all(dim=1)
        scores = logits.nan_to_num()
        all_probs = scores.sigmoid() if self._multi_label else scores.softmax(dim=1)
        class_ids, ranks = select_classes(all_probs, self.rule.topk, classes, max_named)
        has_map = finite[:, None] & (ranks < logits.shape[1])
        maps = self._canvas.lay([self._method.maps(one, class_ids) for one in passes])
        figure = self._fusion.maps([one.stride16 for one in passes]) if self._fusion else None
        # A gradient can overflow the number type although no logit does.
        finite = finite & (torch.isfinite(maps).flatten(2).all(dim=2) | ~has_map).all(dim=1)
        if figure is not None:
            finite = finite & torch.isfinite(figure).flatten(1).all(dim=1)
        probs, regressed = all_probs.gather(1, class_ids), self._method.regressed(passes[0])
        has_map = has_map & finite[:, None]
        has_box = has_map & ((probs >= self.rule.boxes.min_prob) | (ranks == 0) | named_classes(class_ids, classes))
        codes, negative = encoded(passes[0].features, self._bits) if self._bits else (None, None)
        return _Prediction(
            finite, class_ids, ranks, probs, pooled, has_map, has_box, maps, figure, regressed, codes, negative
        )

    def _boxes(self, result: "_Prediction", group: "_Group") -> tuple[LevelBoxes, tuple[int, int]]:
        """Return the boxes of a group's G images in cells, and how many rows and columns of cells a picture has.

        ``map_index`` counts the G·n maps, image by image.
        """
        maps, has_box, figure, regressed = result.maps, result.has_box, result.figure, result.regressed
        if group.images is not None:
            images = torch.from_numpy(group.images).to(maps.device)
            maps, has_box = maps[images], has_box[images]
            figure = None if figure is None else figure[images]
            regressed = None if regressed is None else regressed[images]
        if regressed is not None:
            return _regressed_boxes(regressed, has_box, maps.shape[2:], group), (group.rows, group.columns)
        valid = maps[:, :, : group.rows, : group.columns]
        if self._fusion and figure is not None:
            valid = self._fusion.fused(maps, figure, (group.rows, group.columns))
        return self.rule.boxes.cut(valid.flatten(0, 1), has_box.flatten()), (valid.shape[2], valid.shape[3])

    def _in_pixels(
        self,
        groups: Sequence["_Group"],
        map_hw: Sequence[tuple[int, int]],
        cut: Sequence[Sequence[NDArray[Any]]],
        has_map: NDArray[np.bool_],
        ranks: NDArray[np.int64],
        sizes_hw: NDArray[np.int64],
    ) -> Boxes:
        """Return the boxes of all groups in pixels; ``cut``: the columns of LevelBoxes of each group.

        ``map_hw``: rows and columns of the cells in which the boxes of each group are. ``has_map`` and ``ranks`` are
        (B, n), ``sizes_hw`` is (B, 2).
        """
        n_images, n_slots = has_map.shape
        row_of_slot = (has_map.cumsum() - 1).reshape(has_map.shape)
        parts = []
        for group, cells_hw, columns in zip(groups, map_hw, cut, strict=True):
            images = np.arange(n_images) if group.images is None else group.images
            rows, group_ranks = row_of_slot[images].reshape(-1), ranks[images].reshape(-1)
            sizes = sizes_hw[images].repeat(n_slots, axis=0)
            parts.append(CutMaps(rows, group_ranks, sizes, cells_hw, columns))
        return boxes_in_pixels(self.rule.boxes, parts)


class _Prediction(NamedTuple):
    """The network's results for B images and n chosen classes an image, as tensors on the device."""

    finite: Tensor
    """(B,)."""
    class_ids: Tensor
    """(B, n)."""
    ranks: Tensor
    """(B, n); C, the number of classes, in an unused slot."""
    probs: Tensor
    """(B, n)."""
    pooled: Tensor
    """(B, K)."""
    has_map: Tensor
    """(B, n) false in unused slots and for images that are not finite."""
    has_box: Tensor
    """(B, n) false where no box is cut from the map, because of the rule's ``min_prob``."""
    maps: Tensor
    """(B, n, h, w) on the views' canvas."""
    figure: Tensor | None
    """(B, H, W) figure/ground maps on a canvas of their own; None without a direction."""
    regressed: Tensor | None
    """(B, 4) boxes that a box head predicted; see ``Localization.regressed``."""
    codes: Tensor | None
    """(B, h·w, K) codes of the feature maps; None where none are stored."""
    negative: Tensor | None
    """(B,) whether the feature maps are below zero somewhere."""


class _Group(NamedTuple):
    """Images whose pictures take the same rows and columns of their maps."""

    images: NDArray[np.int64] | None
    """Indices in the batch; None stands for the whole batch."""
    rows: int
    columns: int


def _groups(valid_hw: NDArray[np.int64]) -> list[_Group]:
    shapes = np.unique(valid_hw, axis=0)
    if len(shapes) == 1:
        return [_Group(None, *shapes[0].tolist())]
    return [_Group(np.flatnonzero((valid_hw == shape).all(axis=1)), *shape.tolist()) for shape in shapes]


def _regressed_boxes(regressed: Tensor, has_map: Tensor, map_hw: Sequence[int], group: _Group) -> LevelBoxes:
    """Return each image's predicted box (of ``regressed`` (G, 4)) once for each of its classes, cut to the picture.

    ``has_map``: (G, n). A box that lies outside of the picture gives no row.
    """
    height, width = map_hw
    cells = regressed * regressed.new_tensor([width, height, width, height])
    inside = cells.clamp(min=0).minimum(cells.new_tensor([group.columns, group.rows] * 2))
    not_empty = (inside[:, 2:] > inside[:, :2]).all(dim=1)
    index = (has_map & not_empty[:, None]).flatten().nonzero().flatten()
    zeros = torch.zeros_like(index)
    return LevelBoxes(index, zeros, zeros, inside[index // has_map.shape[1]])
