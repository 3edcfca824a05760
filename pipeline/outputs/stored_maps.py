"""Cuts new boxes from stored maps and returns them as rows of the tables."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import ArrayLike, NDArray

from pipeline.arrays.maps import dequantize
from pipeline.models.localize.box_rules import Boxes, BoxRule, CutMaps, boxes_in_pixels, cut_maps
from pipeline.models.localize.foreground import Foreground
from schemas.options.box_rules import HEURISTIC_CLASSES
from schemas.tables import TABLES, Table

_CUT_CELLS = 250_000
"""Most map cells × thresholds that are cut at once: these grids fit into a processor's cache, as in evaluate."""


class NewTables(NamedTuple):
    """The new rows of some inputs."""

    tables: dict[Table, pa.Table]
    """The tables images, boxes and quarantine; a table without rows may be missing."""
    maps_without_box: int
    """Maps with no positive value."""
    unboxed: "Unboxed"
    """What has no box because the source lacks something."""


class Unboxed(NamedTuple):
    """Numbers of classes that have no box because the source lacks their map or their probability."""

    without_prob: int = 0
    """Maps whose boxes are left out because no stored box has the probability of their class."""
    named_without_prob: int = 0
    """The same, for classes that ``--classes`` names; ``without_prob`` does not count them."""
    named_without_map: int = 0
    """Classes that ``--classes`` names for an annotated image that has no stored map of them."""
    example: tuple[str, int] | None = None
    """The uri and the class id of one of ``named_without_map``."""

    def plus(self, other: "Unboxed") -> "Unboxed":
        """Return the sums of both, with the first example."""
        return Unboxed(
            self.without_prob + other.without_prob,
            self.named_without_prob + other.named_without_prob,
            self.named_without_map + other.named_without_map,
            self.example or other.example,
        )


class Cutting(NamedTuple):
    """How the stored maps become boxes."""

    rule: BoxRule
    foreground: Foreground | None
    """The direction of the stored figure/ground maps, with which the class maps are fused; None: no fusion."""
    least_stored: float = 0.0
    """The source has boxes of classes with at least this probability, and of each image's most probable class."""


def new_tables(
    rows: Mapping[Table, pa.Table],
    planned: pa.Table,
    cutting: Cutting,
    run_id: str,
    method: str,
    scores: Callable[[Mapping[str, ArrayLike]], NDArray[np.float32]],
) -> NewTables:
    """Return rows for the run ``run_id``: images with their new boxes, and unchanged rejections.

    ``rows`` holds the rows of the same inputs in images, boxes, heatmaps, foreground and quarantine; ``planned`` holds
    the ``classes`` that are named for them, whose maps get boxes whatever ``min_prob`` is. ``scores`` returns the
    column ``box_score`` from the other columns of boxes. The probability of a class comes from its stored box; for the
    most probable class it is ``top1_prob`` of the image.
    """
    tables: dict[Table, pa.Table] = {}
    if rejected := len(rows["quarantine"]):
        tables["quarantine"] = _set(rows["quarantine"], "run_id", pa.repeat(run_id, rejected))
    images, maps = rows["images"], rows["heatmaps"]
    if not len(images):
        return NewTables(tables, 0, Unboxed())
    rule, foreground = cutting.rule, cutting.foreground
    scaled = foreground is not None or rule.name == "auto"
    without_box = 0 if scaled else int((maps["heat_max"].to_numpy() <= 0).sum())
    maps = _first_ranks(maps) if rule.name == "heuristic" else maps
    named = _Named.of(images, planned)
    lacking = named.without_map(images, maps)
    if rule.min_prob:
        maps = _probable(images, rows["boxes"], maps, cutting, named.are_named(images, maps))
    image = _places(maps, images)
    sizes_hw = np.stack([images[side].to_numpy() for side in ("height_px", "width_px")], axis=1).astype(np.int64)
    figures = rows["foreground"] if foreground else None
    boxes = boxes_in_pixels(rule, list(_cut(cutting, maps, figures, sizes_hw[image])))
    prob = _probabilities(images, rows["boxes"], image, maps["rank"].to_numpy())
    known = ~np.isnan(prob[boxes.map])
    unknown = named.are_named(images, maps)[np.unique(boxes.map[~known])]
    boxes = Boxes._make(column[known] for column in boxes)
    n_boxes = np.bincount(image[boxes.map], minlength=len(images)).astype(np.int32)
    images = _set(images, "run_id", pa.repeat(run_id, len(images)))
    tables["images"] = _set(images, "n_boxes", pa.array(n_boxes))
    columns = _columns(maps, boxes) | {"class_prob": prob[boxes.map], "run_id": pa.repeat(run_id, len(boxes.map))}
    columns |= {"uri": images["uri"].take(pa.array(image[boxes.map]))}
    columns |= {"method": pa.repeat(method, len(boxes.map))}
    columns |= {"box_score": scores(columns)}
    schema = TABLES["boxes"].schema()
    tables["boxes"] = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    return NewTables(tables, without_box, lacking.plus(Unboxed(int((~unknown).sum()), int(unknown.sum()))))


class _Named(NamedTuple):
    """The Q pairs of an annotated image and a class that ``--classes`` names for it."""

    image: NDArray[np.int64]
    """(Q,) rows of ``images``."""
    class_id: NDArray[np.int64]
    """(Q,)."""

    @classmethod
    def of(cls, images: pa.Table, planned: pa.Table) -> "_Named":
        """Return the pairs of those planned inputs that ``images`` has."""
        of_input = _places(planned, images)
        classes = planned["classes"].combine_chunks()
        number = pc.list_parent_indices(classes).to_numpy().astype(np.int64)
        image, class_id = of_input[number], pc.list_flatten(classes).to_numpy().astype(np.int64)
        return cls(image[image >= 0], class_id[image >= 0])

    def are_named(self, images: pa.Table, maps: pa.Table) -> NDArray[np.bool_]:
        """Return (N,): whether the class of each of N maps is named for its image."""
        if not len(self.image):
            return np.zeros(len(maps), np.bool_)
        return np.isin(_keys(_places(maps, images), maps["class_id"].to_numpy()), _keys(self.image, self.class_id))

    def without_map(self, images: pa.Table, maps: pa.Table) -> Unboxed:
        """Return how many of the pairs have no map, with an example."""
        stored = _keys(_places(maps, images), maps["class_id"].to_numpy())
        lacking = np.flatnonzero(~np.isin(_keys(self.image, self.class_id), stored))
        if not len(lacking):
            return Unboxed()
        first = lacking[0]
        example = images["uri"][int(self.image[first])].as_py(), int(self.class_id[first])
        return Unboxed(named_without_map=len(lacking), example=example)


def _places(rows: pa.Table, images: pa.Table) -> NDArray[np.int64]:
    """Return (N,): for each of N rows the row of its image in ``images``; -1 where it is not there."""
    found = pc.index_in(rows["image_id"], images["image_id"].combine_chunks())
    places: NDArray[np.int64] = found.fill_null(-1).to_numpy().astype(np.int64)
    return places


def _set(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    index = rows.schema.get_field_index(name)
    return rows.set_column(index, rows.schema.field(name), values.cast(rows.schema.field(name).type))


def _first_ranks(maps: pa.Table) -> pa.Table:
    """Return the maps of the first ranks, which the heuristic uses."""
    return maps.filter(pc.less(maps["rank"], HEURISTIC_CLASSES))


def _probable(
    images: pa.Table, boxes: pa.Table, maps: pa.Table, cutting: Cutting, named: NDArray[np.bool_]
) -> pa.Table:
    """Return the maps of classes that are probable enough for a box, of ``named`` and of the most probable classes.

    ``named`` (N,) tells which of the N maps are of named classes. A class without a stored box is less probable than
    ``least_stored``. Its map is kept where ``min_prob`` of the rule is lower than that, because its probability is
    unknown.
    """
    image = _places(maps, images)
    rank = maps["rank"].to_numpy()
    prob = _probabilities(images, boxes, image, rank)
    unknown = np.isnan(prob) & (not 0 < cutting.least_stored <= cutting.rule.min_prob)
    return maps.filter(pa.array((rank == 0) | (prob >= cutting.rule.min_prob) | unknown | named))


def _cut(cutting: Cutting, maps: pa.Table, figures: pa.Table | None, sizes_hw: NDArray[np.int64]) -> Iterator[CutMaps]:
    """Yield the boxes of the maps, at most _CUT_CELLS of one shape at a time.

    ``figures`` holds the rows of foreground for the maps' images; None where the maps are not fused.
    """
    rule, foreground = cutting.rule, cutting.foreground
    shapes = map_shapes(maps, "heat")
    if figures is not None:
        figure = pc.index_in(maps["image_id"], figures["image_id"].combine_chunks()).to_numpy().astype(np.int64)
        shapes = np.concatenate([shapes, map_shapes(figures, "fg")[figure]], axis=1)
    ranks = maps["rank"].to_numpy().astype(np.int64)
    for shape in np.unique(shapes, axis=0):
        same = np.flatnonzero((shapes == shape).all(axis=1))
        at_once = max(1, _CUT_CELLS // (int(shape.reshape(-1, 2).prod(axis=1).max()) * len(rule.thresholds)))
        for start in range(0, len(same), at_once):
            own = same[start : start + at_once]
            cells = map_values(maps.take(pa.array(own)), "heat")
            if figures is not None and foreground:
                ground = map_values(figures.take(pa.array(figure[own])), "fg")
                cells = foreground.fused(torch.from_numpy(cells)[:, None], torch.from_numpy(ground))[:, 0].numpy()
            yield cut_maps(rule, cells, own, ranks[own], sizes_hw[own])


def map_shapes(rows: pa.Table, name: str) -> NDArray[np.int64]:
    """Return (N, 2): the numbers of rows and columns of stored maps; ``name`` is heat or fg."""
    return np.stack([rows[f"{name}_{side}"].to_numpy() for side in ("h", "w")], axis=1).astype(np.int64)


def map_values(rows: pa.Table, name: str) -> NDArray[np.float32]:
    """Return stored maps (N, h, w) float32, which all have one size; ``name`` is heat or fg."""
    height, width = map_shapes(rows, name)[0].tolist()
    stored = pc.list_flatten(rows[name]).to_numpy().reshape(-1, height, width)
    return dequantize(stored, rows[f"{name}_min"].to_numpy(), rows[f"{name}_max"].to_numpy())


def _probabilities(
    images: pa.Table, boxes: pa.Table, image: NDArray[np.int64], rank: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Return class_prob (N,) of N maps, NaN where it is unknown; ``image`` (N,) has the maps' rows in ``images``."""
    of_box = _places(boxes, images)
    keys = _keys(of_box, boxes["rank"].to_numpy())
    keys = np.concatenate([_keys(np.arange(len(images)), np.zeros(len(images), np.int32)), keys])
    values = np.concatenate([images["top1_prob"].to_numpy(), boxes["class_prob"].to_numpy()])
    keys, first = np.unique(keys, return_index=True)
    wanted = _keys(image, rank)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[first[place]], np.float32(np.nan))


def _keys(image: NDArray[np.int64], number: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return one whole number for each pair of an image and a rank, or of an image and a class."""
    return (image << 32) + number


def _columns(maps: pa.Table, boxes: Boxes) -> dict[str, Any]:
    own = pa.array(boxes.map)
    columns: dict[str, Any] = {name: maps[name].take(own) for name in ("image_id", "rank", "class_id", "label")}
    columns |= {"component": boxes.component, "threshold": boxes.threshold, "area_frac": boxes.area_frac}
    return columns | {side: boxes.xyxy[:, index] for index, side in enumerate(("xmin", "ymin", "xmax", "ymax"))}
