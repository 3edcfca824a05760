"""Scores the stored maps twice, as they are and fused with the stored figure/ground maps, at the same threshold."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.arrays.figure_ground import min_max
from pipeline.arrays.figures import THRESHOLDS, sweep_maps
from pipeline.arrays.foreground_scores import of_means
from pipeline.arrays.maps import quantize
from pipeline.arrays.metrics import IOU_DELTA, Convention, Floats, Ints
from pipeline.models.localize.foreground import Foreground
from pipeline.outputs.reader import Lake
from pipeline.outputs.stored_maps import map_shapes, map_values
from pipeline.outputs.truth_join import TRUE_ROWS, Match, matched
from pipeline.storage.truth.truth import Truth

_MAPS_AT_ONCE = 64


def foreground_notes(
    lake: Lake, truth: Truth, foreground: Foreground, *, model: str | None, convention: Convention = "half-open"
) -> tuple[str, ...]:
    """Return what the figure/ground maps of an output bring against ``truth``, in a sentence or two.

    ``foreground`` is the direction that the output keeps. Nothing comes back where the output has no such maps, or the
    truth no boxes. Raises as ``evaluate`` does.
    """
    with matched(lake, truth, model, convention) as match:
        if not {"heatmaps", "foreground"} <= set(match.run.settings["outputs"]) or not len(match.pairs.boxes):
            return ()
        rows = _rows(lake, match)
        if not len(rows):
            return ()
        plain, fused = (
            sweep_maps(match.pairs, _chunks(rows, each)).largest_iou >= IOU_DELTA for each in (None, foreground)
        )
    place = int(np.abs(THRESHOLDS - foreground.card.threshold).argmin())
    return _sentences(plain.astype(np.float64), fused.astype(np.float64), place, match.pairs.image)


def _rows(lake: Lake, match: Match) -> pa.Table:
    """Return the map of each pair's best-ranked class with its image's figure/ground map."""
    query = f"""SELECT answer.pair, heat_h, heat_w, heat_min, heat_max, heat, fg_h, fg_w, fg_min, fg_max, fg
        FROM (SELECT * FROM {TRUE_ROWS.format(rows="heatmaps")} WHERE model = $model
            QUALIFY row_number() OVER (PARTITION BY pair ORDER BY rank) = 1) AS answer
        JOIN (SELECT * FROM foreground WHERE model = $model) AS ground USING (image_id)
        ORDER BY heat_h, heat_w, fg_h, fg_w, pair"""
    return lake.sql(query, {"model": match.run.model}).to_arrow_table()


def _chunks(rows: pa.Table, foreground: Foreground | None) -> Iterator[tuple[NDArray[np.uint8], Ints]]:
    """Yield the maps (n, h, w) in 256 steps with their pairs (n,), maps of one size together."""
    shapes = np.concatenate([map_shapes(rows, "heat"), map_shapes(rows, "fg")], axis=1)
    for shape in np.unique(shapes, axis=0):
        same = np.flatnonzero((shapes == shape).all(axis=1))
        for start in range(0, len(same), _MAPS_AT_ONCE):
            part = rows.take(pa.array(same[start : start + _MAPS_AT_ONCE]))
            maps = torch.from_numpy(map_values(part, "heat"))[:, None]
            if foreground:
                maps = foreground.fused(maps, torch.from_numpy(map_values(part, "fg")))
            yield quantize(min_max(maps)[:, 0].numpy())[0], part["pair"].to_numpy()


def _sentences(plain: Floats, fused: Floats, place: int, image: Ints) -> tuple[str, ...]:
    """Say in words how right boxes are (P, T) at the threshold ``place``, and where they would be best."""
    found = of_means("GT-known", fused[:, place], plain[:, place], image)
    low, high = found.interval
    best = [(curve.max(), THRESHOLDS[curve.argmax()]) for curve in (plain.mean(0), fused.mean(0))]
    against = of_means("GT-known", fused[:, place], plain[:, int(plain.mean(0).argmax())], image).interval
    return (
        f"figure/ground: GT-known at {THRESHOLDS[place]:.2f} of the scaled map is {found.fused:.3f} fused and"
        f" {found.plain:.3f} plain, {found.fused - found.plain:+.3f} (95 %: {low:+.3f} to {high:+.3f}).",
        f"best thresholds here: {best[1][1]:.2f} fused ({best[1][0]:.3f}), {best[0][1]:.2f} plain ({best[0][0]:.3f});"
        f" fused at {THRESHOLDS[place]:.2f} against plain at its best: {found.fused - best[0][0]:+.3f}"
        f" (95 %: {against[0]:+.3f} to {against[1]:+.3f}).",
    )
