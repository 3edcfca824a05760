"""Which boxes an image's maps give: the paper's rule, its heuristic for five guesses, or every component.

- paper: of each map at each threshold the largest connected component's box.
- heuristic: five boxes an image, at two thresholds: a tight and a loose box of each of the two most probable classes
  and the loose one of the third. Of a map's two boxes the larger one is loose. All other classes, those that
  ``--classes`` names too, have their map and no box: what a box means follows from its rank alone.
- all-components: as paper, but a box for each component.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.arrays.boxes import Components, foreground_levels, level_boxes
from pipeline.images.resize import map_to_image_xyxy
from schemas.box_rules import BoxRuleName

_WITH_BOTH = 2
"""The heuristic takes both boxes of so many of the first ranks."""


@dataclass(frozen=True)
class BoxRule:
    """How boxes are cut from maps."""

    name: BoxRuleName
    thresholds: tuple[float, ...]
    """Shares of a map's maximum, in (0, 1); two for the heuristic, one 0 for boxes that are cut from no map."""
    min_area: float
    """Boxes under this share of the image's area are left out, last."""

    @property
    def components(self) -> Components:
        """Return what ``level_boxes`` is asked for."""
        return "all" if self.name == "all-components" else "largest"


class Boxes(NamedTuple):
    """R boxes, ordered by map, then threshold as the rule names them, then component."""

    map: NDArray[np.int64]
    """(R,) row of the map."""
    threshold: NDArray[np.float32]
    component: NDArray[np.int32]
    xyxy: NDArray[np.float32]
    """(R, 4) half-open, in pixels of the upright original."""
    area_frac: NDArray[np.float32]


class CutMaps(NamedTuple):
    """N maps of one size with the boxes that were cut from them, on the host."""

    map: NDArray[np.int64]
    """(N,) what ``Boxes.map`` calls each."""
    rank: NDArray[np.int64]
    """(N,)."""
    sizes_hw: NDArray[np.int64]
    """(N, 2) pixels of the upright originals."""
    map_hw: tuple[int, int]
    found: Sequence[NDArray[Any]]
    """The columns of LevelBoxes, by this rule's ``components``."""


def cut_maps(
    rule: BoxRule,
    maps: NDArray[np.float32],
    rows: NDArray[np.int64],
    ranks: NDArray[np.int64],
    sizes_hw: NDArray[np.int64],
) -> CutMaps:
    """Return the boxes of maps (N, h, w) that cover their whole images; ``rows`` (N,) is what they are called."""
    values = torch.from_numpy(maps)
    levels = foreground_levels(values, torch.tensor(rule.thresholds))
    found = level_boxes(values, levels, components=rule.components)
    height, width = maps.shape[1:]
    return CutMaps(rows, ranks, sizes_hw, (height, width), [column.numpy() for column in found])


def boxes_in_pixels(rule: BoxRule, parts: Sequence[CutMaps]) -> Boxes:
    """Return the boxes of all parts that ``rule`` keeps, in order; a map has its rows in one part."""
    index = np.empty(0, np.int64)
    none: tuple[NDArray[Any], ...] = (index, index, index, np.empty((0, 4)), np.empty(0))
    columns = [none, *(_kept(rule, part) for part in parts)]
    row, level, component, xyxy, area_frac = (np.concatenate(each) for each in zip(*columns, strict=True))
    order = np.lexsort((component, level, row))
    return Boxes(
        row[order],
        np.asarray(rule.thresholds, np.float32)[level[order]],
        component[order].astype(np.int32),
        xyxy[order].astype(np.float32),
        area_frac[order].astype(np.float32),
    )


def _kept(rule: BoxRule, part: CutMaps) -> tuple[NDArray[Any], ...]:
    index, level, component, cells_xyxy = part.found
    sizes_hw = part.sizes_hw[index]
    xyxy = map_to_image_xyxy(cells_xyxy, part.map_hw, sizes_hw)
    area_frac = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1) / sizes_hw.prod(axis=1)
    keep = area_frac >= rule.min_area
    if rule.name == "heuristic":
        keep &= _guesses(part.rank[index], area_frac, rule.thresholds)
    columns = part.map[index], level, component, xyxy, area_frac
    return tuple(column[keep] for column in columns)


def _guesses(rank: NDArray[np.int64], area: NDArray[np.float64], thresholds: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return which boxes (R,) the heuristic takes; those of a map follow each other, one at each of two thresholds.

    A map that reaches one threshold reaches both, so that its boxes are two or none. Of equally large ones the loose
    one is that of the lower threshold.
    """
    areas, ranks = area.reshape(-1, 2), rank[::2, None]
    loose = np.where(areas[:, 0] == areas[:, 1], np.argmin(thresholds), areas.argmax(axis=1))
    is_loose = np.arange(2) == loose[:, None]
    kept: NDArray[np.bool_] = ((ranks < _WITH_BOTH) | ((ranks == _WITH_BOTH) & is_loose)).reshape(-1)
    return kept
