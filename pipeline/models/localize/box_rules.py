"""The rules by which boxes are cut from maps (``--box-rule``), and boxes in the original's pixels.

- auto: the largest connected component's box of each map, cut at each threshold between its minimum and its maximum.
- paper: for each map and each threshold the box of the largest connected component.
- heuristic: the paper's five boxes an image, cut at two thresholds: a tight and a loose box of each of the two most
  probable classes, and the loose box of the third class. The larger of a map's two boxes is the loose one. All other
  classes, also those that ``--classes`` names, have a map and no box, so that a box's meaning follows from its rank.
- all-components: as paper, but one box for each component.

Where a network has a figure/ground direction (``foreground.py``), the maps are fused before, and lie in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.arrays.boxes import Components, LevelBoxes, foreground_levels, level_boxes
from pipeline.arrays.figure_ground import min_max
from pipeline.images.resize import map_to_image_xyxy
from schemas.options.box_rules import BoxRuleName

_RANKS_WITH_BOTH = 2
"""The heuristic takes the tight and the loose box of this many of the first ranks."""


@dataclass(frozen=True)
class BoxRule:
    """How boxes are cut from maps."""

    name: BoxRuleName
    thresholds: tuple[float, ...]
    """Shares of a map's maximum, in (0, 1): two for the heuristic; the single value 0 where no map is cut. For auto
    they are shares of the range from the map's minimum to its maximum."""
    min_area: float
    """Boxes under this share of the image's area, in [0, 1), are left out after all other choices."""
    min_prob: float = 0.0
    """Only classes of at least this probability have boxes, and the most probable class of each image."""

    @property
    def components(self) -> Components:
        """Which components of a map ``level_boxes`` shall return."""
        return "all" if self.name == "all-components" else "largest"

    def cut(self, maps: torch.Tensor, wanted: torch.Tensor | None = None) -> LevelBoxes:
        """Return the boxes of ``maps`` (N, h, w), which cover their whole images, in cells.

        ``wanted`` (N,) bool: only these maps are cut; None: all of them. Under auto a constant map gives the whole
        image; under the other rules a map without a positive value gives no box.
        """
        index = None if wanted is None or wanted.all() else wanted.nonzero().flatten()
        chosen = maps if index is None else maps[index]
        scaled = min_max(chosen) if self.name == "auto" else chosen
        levels = foreground_levels(scaled, torch.tensor(self.thresholds, device=maps.device))
        boxes = level_boxes(scaled, levels, components=self.components)
        return boxes if index is None else boxes._replace(map_index=index[boxes.map_index])


class Boxes(NamedTuple):
    """R boxes, ordered by map, then by threshold in the rule's order, then by component; R may be 0."""

    map: NDArray[np.int64]
    """(R,) row of the map that the box was cut from."""
    threshold: NDArray[np.float32]
    """(R,)."""
    component: NDArray[np.int32]
    """(R,) 0 = the map's largest component."""
    xyxy: NDArray[np.float32]
    """(R, 4) xmin ymin xmax ymax, half-open, in pixels of the upright original."""
    area_frac: NDArray[np.float32]
    """(R,) the box's share of the image's area, in (0, 1]."""


class CutMaps(NamedTuple):
    """N maps of one size, with the boxes that were cut from them, as arrays in main memory."""

    map: NDArray[np.int64]
    """(N,) the number that ``Boxes.map`` gives to each map."""
    rank: NDArray[np.int64]
    """(N,) rank of the map's class in its image."""
    sizes_hw: NDArray[np.int64]
    """(N, 2) height and width of each map's upright original, in pixels."""
    map_hw: tuple[int, int]
    """Rows and columns of the maps; they cover the whole image."""
    boxes: Sequence[NDArray[Any]]
    """The columns of ``LevelBoxes``, with the rule's ``components``."""


def cut_maps(
    rule: BoxRule,
    maps: NDArray[np.float32],
    rows: NDArray[np.int64],
    ranks: NDArray[np.int64],
    sizes_hw: NDArray[np.int64],
) -> CutMaps:
    """Return the boxes of ``maps`` (N, h, w), which cover their whole images, by ``rule``.

    ``rows``, ``ranks`` (N,) and ``sizes_hw`` (N, 2) become the first fields of the result.
    """
    boxes = rule.cut(torch.from_numpy(maps))
    height, width = maps.shape[1:]
    return CutMaps(rows, ranks, sizes_hw, (height, width), [column.numpy() for column in boxes])


def boxes_in_pixels(rule: BoxRule, parts: Sequence[CutMaps]) -> Boxes:
    """Return the boxes of all ``parts`` that ``rule`` keeps, in the order of ``Boxes``; a map is in one part only."""
    index = np.empty(0, np.int64)
    no_boxes: tuple[NDArray[Any], ...] = (index, index, index, np.empty((0, 4)), np.empty(0))
    columns = [no_boxes, *(_kept(rule, part) for part in parts)]
    row, level, component, xyxy, area_frac = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((component, level, row))
    return Boxes(
        row[order],
        np.asarray(rule.thresholds, np.float32)[level[order]],
        component[order].astype(np.int32),
        xyxy[order].astype(np.float32),
        area_frac[order].astype(np.float32),
    )


def _kept(rule: BoxRule, part: CutMaps) -> tuple[NDArray[Any], ...]:
    index, level, component, cells_xyxy = part.boxes
    sizes_hw = part.sizes_hw[index]
    xyxy = map_to_image_xyxy(cells_xyxy, part.map_hw, sizes_hw)
    area_frac = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1) / sizes_hw.prod(axis=1)
    keep = area_frac >= rule.min_area
    if rule.name == "heuristic":
        keep &= _taken_by_heuristic(part.rank[index], area_frac, rule.thresholds)
    columns = part.map[index], level, component, xyxy, area_frac
    return tuple(column[keep] for column in columns)


def _taken_by_heuristic(
    rank: NDArray[np.int64], area_frac: NDArray[np.float64], thresholds: tuple[float, ...]
) -> NDArray[np.bool_]:
    """Return (R,) which boxes the heuristic takes; the two boxes of a map, one a threshold, follow each other.

    A map that reaches one threshold reaches both, so it has two boxes or none. Where both are equally large, the box
    of the lower threshold is the loose one.
    """
    areas, ranks = area_frac.reshape(-1, 2), rank[::2, None]
    loose = np.where(areas[:, 0] == areas[:, 1], np.argmin(thresholds), areas.argmax(axis=1))
    is_loose = np.arange(2) == loose[:, None]
    taken: NDArray[np.bool_] = ((ranks < _RANKS_WITH_BOTH) | ((ranks == _RANKS_WITH_BOTH) & is_loose)).reshape(-1)
    return taken
