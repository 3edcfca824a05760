"""Ranks the images of an output by the classes of a head, or by one feature, and finds the box of each in its map.

A feature is a head too: one with the weight 1 for this feature, 0 for the others, and no bias.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.images.decode import USUAL_LIMITS, decode
from pipeline.models.localize.box_rules import BoxRule, boxes_in_pixels, cut_maps
from pipeline.models.weights.head_file import Head, probabilities
from pipeline.outputs.drawing import Pixels, smaller
from pipeline.outputs.feature_rows import maps_of_rows, resize_of, vectors_of
from pipeline.outputs.heads.features import FeatureSource, feature_batches
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.query import committed_views, quote_list
from pipeline.storage.lake.whole_objects import list_dir, read_whole
from schemas.errors import RejectedImage, StoreError, UsageError
from schemas.options.box_rules import AUTO_THRESHOLD
from schemas.options.config import StorageConfig
from schemas.tables import PLAN

MOST_RANKED = 20_000
"""Most images of all orders together: the codes of so many take 600 MB with MobileNetV2."""
SIDE_PX = 360
"""Longer side of a picture on the page."""
_RULE = BoxRule("auto", (AUTO_THRESHOLD,), 0.0)


@dataclass(frozen=True)
class Ranking:
    """What the images are ranked by, one order for each of C names."""

    names: tuple[str, ...]
    weight: NDArray[np.float32]
    """(C, K)."""
    bias: NDArray[np.float32]
    """(C,)."""
    are_probs: bool
    """Whether a value is the probability of the sum w · feature + b, or this sum itself."""

    def values(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values (N, C) of ``vectors`` (N, K)."""
        sums: NDArray[np.float32] = (vectors @ self.weight.T + self.bias).astype(np.float32, copy=False)
        return probabilities(sums) if self.are_probs else sums


@dataclass(frozen=True)
class Ranked:
    """One of the first images of an order."""

    image_id: str
    uri: str
    value: float
    run_id: str = ""
    heat: NDArray[np.float32] | None = None
    """(h, w): the map of the name; None where the output has no feature maps."""
    box_xyxy: tuple[float, float, float, float] | None = None
    """Half-open, in pixels of the upright original; None without a map."""
    size_hw: tuple[int, int] | None = None
    """Of the upright original; None where the picture that is drawn has the original's size."""


def by_head(head: Head) -> Ranking:
    """Return the ranking by the probabilities of a head's classes."""
    return Ranking(head.card.classes, head.weight, head.bias, are_probs=True)


def by_channel(channel: int, source: FeatureSource) -> Ranking:
    """Return the ranking by one feature; raises UsageError for a number that ``source`` does not have."""
    first = next(feature_batches(source), None)
    if first is None:
        raise StoreError(f"{source.where}: no features; `camlake verify` says what is missing")
    features = vectors_of(first).shape[1]
    if not 0 <= channel < features:
        raise UsageError(f"--channel {channel}: allowed: 0 to {features - 1}, the features of {source.run.model}")
    weight = np.zeros((1, features), np.float32)
    weight[0, channel] = 1
    return Ranking((f"channel {channel}",), weight, np.zeros(1, np.float32), are_probs=False)


def top_images(source: FeatureSource, ranking: Ranking, count: int) -> list[list[Ranked]]:
    """Return for each name the ``count`` images of the greatest value, greatest first; ties are ordered by image_id.

    The features are read in batches, so that only the first images are in memory. Raises UsageError for more than
    MOST_RANKED of them, all names together.
    """
    if len(ranking.names) * count > MOST_RANKED:
        allowed = MOST_RANKED // len(ranking.names)
        raise UsageError(f"--images {count}: allowed: up to {allowed} of each of {len(ranking.names)} classes")
    best: list[list[Ranked]] = [[] for _ in ranking.names]
    for rows in feature_batches(source):
        values = ranking.values(vectors_of(rows))
        for name, kept in enumerate(best):
            least = kept[-1].value if len(kept) == count else -np.inf
            places = np.flatnonzero(values[:, name] >= least)
            places = places[np.argsort(-values[places, name], kind="stable")]
            if len(places) > count:  # All ties of the last one are kept, so that their order is that of their ids.
                places = places[values[places, name] >= values[places[count - 1], name]]
            found = rows.select(["image_id", "uri"]).take(pa.array(places)).to_pylist()
            new = [Ranked(**row, value=float(values[at, name])) for row, at in zip(found, places, strict=True)]
            best[name] = sorted([*kept, *new], key=lambda one: (-one.value, one.image_id))[:count]
    return best


def with_boxes(source: FeatureSource, ranking: Ranking, ranked: Sequence[Sequence[Ranked]]) -> list[list[Ranked]]:
    """Return the images with their runs and, where the output has feature maps, with their maps and boxes."""
    ids = sorted({one.image_id for some in ranked for one in some})
    has_maps = "feature_maps" in source.run.settings["outputs"]
    with committed_views(source.fs, source.root, source.files) as con:
        chosen = f"WHERE image_id IN {quote_list(ids)}" if ids else "WHERE false"
        found = con.sql(f"SELECT image_id, run_id, height_px, width_px FROM images {chosen}").fetchall()
        sizes = {image_id: (height, width) for image_id, _, height, width in found}
        run_of = {image_id: run_id for image_id, run_id, *_ in found}
        rows = None
        if has_maps:
            rows = con.sql(
                "SELECT image_id, map_h, map_w, channels, bits, codes, feature FROM feature_maps JOIN features"
                f" USING (image_id) {chosen} ORDER BY image_id"
            ).to_arrow_table()
    known = [
        [replace(one, run_id=run_of[one.image_id], size_hw=sizes[one.image_id]) for one in some] for some in ranked
    ]
    if rows is None or not len(rows):
        return known
    codes = rows.set_column(rows.schema.get_field_index("codes"), "codes", rows["codes"].cast(pa.large_binary()))
    place = {image_id: row for row, image_id in enumerate(rows["image_id"].to_pylist())}
    if lost := [one for one in ids if one not in place]:
        raise StoreError(f"{source.where}: image {lost[0]} has no feature maps; `camlake verify` says which")
    return [
        [_boxed(one, codes.slice(place[one.image_id], 1), source, ranking, name, sizes[one.image_id]) for one in some]
        for name, some in enumerate(known)
    ]


def _boxed(
    one: Ranked, row: pa.Table, source: FeatureSource, ranking: Ranking, name: int, size_hw: tuple[int, int]
) -> Ranked:
    heat = maps_of_rows(row, vectors_of(row), ranking.weight, np.array([[name]]))[0]
    height, width = resize_of(source.run).valid_hw(size_hw).tolist()
    heat = np.ascontiguousarray(heat[:height, :width])
    cut = cut_maps(_RULE, heat[None], np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([size_hw]))
    boxes = boxes_in_pixels(_RULE, [cut]).xyxy
    box = tuple(map(float, boxes[0])) if len(boxes) else None
    return replace(one, heat=heat, box_xyxy=box)  # type: ignore[arg-type] # a row has four values


def pictures_of(source: FeatureSource, storage: StorageConfig, ranked: Sequence[Ranked]) -> dict[str, Pixels]:
    """Return the pixels (H, W, 3) uint8 RGB of the images by image_id, upright; what can't be read is missing.

    The longer side has at most SIDE_PX pixels, because all pictures of the page are in memory.
    """
    paths, plans = LakePaths(source.root), []
    ids = {one.image_id for one in ranked}
    for run_id in sorted({one.run_id for one in ranked}):
        for path in list_dir(source.fs, paths.full(paths.plan_dir(run_id))):
            content = read_whole(source.fs, path)
            if content is not None:
                rows = pq.read_table(pa.BufferReader(content), schema=PLAN)
                plans.append(rows.filter(pc.is_in(rows["image_id"], pa.array(sorted(ids)))))
    plan = pa.concat_tables([PLAN.empty_table(), *plans])
    found: dict[str, Pixels] = {}
    for part, fetched in Fetcher(storage, USUAL_LIMITS.max_bytes).fetch_in_parts(plan):
        for image_id, data in zip(part["image_id"].to_pylist(), fetched, strict=True):
            if not isinstance(data, RejectedImage):
                with suppress(RejectedImage):
                    found[image_id] = smaller(decode(data, USUAL_LIMITS).pixels, SIDE_PX)
    return found
