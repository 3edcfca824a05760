"""Scores an output against a truth, from the stored rows and without a network."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays.class_figures import class_scores
from pipeline.arrays.figures import THRESHOLDS, Guesses, Pairs, PixelCounts, Scorer, Sweep, pixel_figure, sweep_maps
from pipeline.arrays.metrics import (
    CENTRAL_SHARE,
    IOU_DELTA,
    V2_DELTAS,
    Convention,
    Floats,
    Ints,
    accuracy_curves,
    precision_recall,
    scatter_max,
)
from pipeline.images.mask_decoding import Mask, central_counts, pixel_counts
from pipeline.outputs.evaluate_notes import UNRANKED, is_heuristic, is_regressed, notes, top5_is_known
from pipeline.outputs.reader import Lake
from pipeline.outputs.truth_join import TRUE_ROWS, Match, matched
from pipeline.storage.lake.whole_objects import REQUESTS_AT_ONCE
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.truth.masks import Masks
from pipeline.storage.truth.truth import Truth
from schemas.errors import UsageError
from schemas.runs import RunManifest
from schemas.scores import Curve, Scores

_SWEEP_CELLS = 250_000
"""Most map cells × thresholds that are cut at once: about 100 maps of 7×7, whose grids fit into a processor's cache."""
_ANSWERS = """(
SELECT image_id, 0 AS rank, top1_class_id AS class_id, top1_label AS label FROM images WHERE model = $model
UNION ALL SELECT image_id, rank, class_id, label FROM boxes WHERE model = $model
UNION ALL SELECT image_id, rank, class_id, label FROM heatmaps WHERE model = $model
)"""


def evaluate(
    lake: Lake,
    truth: Truth,
    *,
    model: str | None = None,
    convention: Convention = "half-open",
    masks: Masks | None = None,
) -> Scores:
    """Return the scores of one model's rows against ``truth``; by default the model of the newest run.

    ``convention`` tells whether xmax and ymax of the truth are half-open or inclusive; the output's half-open boxes are
    converted before they are compared. ``masks`` of the same truth add PxAP. A figure that needs a missing table, more
    ranks or boxes of the truth is left out, and a note names it. Raises UsageError for an unknown model, for a truth
    without any of the output's images, and for a truth whose labels are not those of the output.
    """
    with matched(lake, truth, model, convention) as match:
        run, pairs = match.run, match.pairs
        rank = _best_ranks(lake, run.model, len(match.known))
        labels = _known_labels(lake, run.model) if (rank == UNRANKED).any() else set()
        if (rank == UNRANKED).all():
            _check_labels(labels, truth)
        scorer = Scorer(pairs, rank)
        has_boxes, has_maps = len(pairs.boxes) > 0, "heatmaps" in run.settings["outputs"]
        guesses, five = _guesses(lake, run, pairs) if has_boxes else ({}, None)
        regressed = _regressed_iou(lake, run, pairs) if has_boxes and is_regressed(run) else None
        sweep = sweep_maps(pairs, _map_chunks(lake, run.model)) if has_boxes and has_maps else None
        pixels = _pixel_counts(lake, match, truth, masks) if has_maps and masks else None
    tops = (1, 5) if top5_is_known(run, rank) else (1,)
    figures = [figure for top in tops for figure in scorer.accuracy(top)]
    figures += [figure for cut, found in guesses.items() for figure in scorer.of_boxes(found, cut, tops, regressed)]
    figures += scorer.of_regressed(regressed) if regressed is not None else []
    figures += scorer.of_five(five) if five else []
    figures += scorer.of_sweep(sweep) if sweep else []
    figures += [pixel_figure(pairs, pixels)] if pixels else []
    first = scorer.box_iou(next(iter(guesses.values()))) if guesses and regressed is None else regressed
    return Scores(
        model=run.model,
        iou_convention=convention,
        images=pairs.n_images,
        pairs=len(match.known),
        missing_images=len(set(truth.keys)) - pairs.n_images,
        pairs_without_rows=int((rank == UNRANKED).sum()),
        figures=tuple(figures),
        curves=tuple(_curves(sweep, pixels)),
        classes=class_scores(match.names, pairs, rank, first, next(iter(guesses), None), sweep, pixels),
        notes=tuple(notes(match, rank, truth, labels, has_masks=masks is not None)),
    )


def _best_ranks(lake: Lake, model: str, n_pairs: int) -> Ints:
    """Return (P,): the rank of each pair's best-ranked class; UNRANKED where the output has no row of the pair."""
    query = f"SELECT pair, min(rank) AS rank FROM {TRUE_ROWS.format(rows=_ANSWERS)} GROUP BY pair"
    found = lake.sql(query, {"model": model}).to_arrow_table()
    rank = np.full(n_pairs, UNRANKED)
    rank[found["pair"].to_numpy()] = found["rank"].to_numpy()
    return rank


def _known_labels(lake: Lake, model: str) -> set[str]:
    """Return the labels in the output's rows."""
    return set(lake.sql(f"SELECT DISTINCT label FROM {_ANSWERS}", {"model": model}).to_arrow_table()[0].to_pylist())


def _check_labels(known: set[str], truth: Truth) -> None:
    """Raise UsageError where the truth has no class ids and none of its labels is among ``known``."""
    if not any(truth.class_ids) and known.isdisjoint(truth.labels):
        raise UsageError(
            f"none of the truth's labels, like {truth.labels[0]!r}, is one of the output's, like {min(known)!r};"
            " give class ids in the truth, or --labels, which tells the classes that its labels mean"
        )


def _regressed_iou(lake: Lake, run: RunManifest, pairs: Pairs) -> Floats:
    """Return (P,): the IoU of the regressed box of each pair's image; 0 where the image has no box."""
    query = """SELECT pair, xmin, ymin, xmax, ymax FROM boxes AS answer JOIN camlake_truth AS truth USING (image_id)
        WHERE model = $model AND rank = 0"""
    rows = lake.sql(query, {"model": run.model}).to_arrow_table()
    pair, boxes = rows["pair"].to_numpy(), _boxes_xyxy(rows)
    return scatter_max(pairs.iou(boxes, pair), pair, len(pairs.image))


def _boxes_xyxy(rows: pa.Table) -> Floats:
    """Return the columns xmin, ymin, xmax, ymax of R rows as (R, 4) float64."""
    return np.stack([rows[name].to_numpy() for name in ("xmin", "ymin", "xmax", "ymax")], axis=1).astype(np.float64)


def _guesses(lake: Lake, run: RunManifest, pairs: Pairs) -> tuple[dict[float | None, Guesses], Guesses | None]:
    """Return the largest component's boxes of true classes by threshold, and the guesses of the heuristic.

    An output has the one or the other: the first is empty, or the second is None. For regressed boxes the threshold is
    None.
    """
    if "boxes" not in run.settings["outputs"]:
        return {}, None
    query = f"""SELECT pair, rank, threshold, xmin, ymin, xmax, ymax FROM {TRUE_ROWS.format(rows="boxes")}
        WHERE model = $model AND component = 0"""
    rows = lake.sql(query, {"model": run.model}).to_arrow_table()
    pair, rank, threshold = (rows[name].to_numpy() for name in ("pair", "rank", "threshold"))
    every = Guesses(pair, rank.astype(np.int64), pairs.iou(_boxes_xyxy(rows), pair))
    if is_heuristic(run):
        return {}, every
    if is_regressed(run):
        return {None: every}, None
    cuts = {float(cut): np.isclose(threshold, cut, rtol=1e-6) for cut in run.settings["threshold"]}
    return {cut: Guesses(*(column[rows] for column in every)) for cut, rows in cuts.items()}, None


def _map_chunks(lake: Lake, model: str) -> Iterator[tuple[NDArray[np.uint8], Ints]]:
    """Yield chunks of maps (n, h, w) of one size and their pairs (n,): the map of each pair's best-ranked class."""
    query = f"""SELECT pair, heat_h, heat_w, heat FROM {TRUE_ROWS.format(rows="heatmaps")} WHERE model = $model
        QUALIFY row_number() OVER (PARTITION BY pair ORDER BY rank) = 1 ORDER BY heat_h, heat_w, pair"""
    rows = lake.sql(query, {"model": model}).to_arrow_table()
    sizes = np.stack([rows[name].to_numpy() for name in ("heat_h", "heat_w")], axis=1)
    for height, width in np.unique(sizes, axis=0):
        same = np.flatnonzero((sizes == (height, width)).all(axis=1))
        at_once = max(1, _SWEEP_CELLS // int(height * width * len(THRESHOLDS)))
        for start in range(0, len(same), at_once):
            part = rows.take(same[start : start + at_once])
            heat = part["heat"].combine_chunks().flatten().to_numpy()
            yield heat.reshape(-1, height, width), part["pair"].to_numpy()


def _pixel_counts(lake: Lake, match: Match, truth: Truth, masks: Masks) -> PixelCounts | None:
    """Return the counts of every pair with a mask; None without any. A pair without a map has score 0 everywhere."""
    heat = {
        int(pair): one
        for maps, pairs in _map_chunks(lake, match.run.model)
        for one, pair in zip(maps, pairs, strict=True)
    }
    nothing = np.zeros((1, 1), np.uint8)

    def of_pair(pair: int) -> tuple[Mask, Mask] | None:
        width, height = match.pairs.sizes_wh[pair].astype(int).tolist()
        old = match.known[pair]
        return masks.of(truth.keys[old], truth.labels[old], (height, width))

    pairs, counts, central = [], [], []
    for pair, found in enumerate(map_ahead(of_pair, range(len(match.known)), REQUESTS_AT_ONCE)):
        if found is not None:
            pairs.append(pair)
            counts.append(pixel_counts(heat.get(pair, nothing), *found))
            central.append(central_counts(*found, CENTRAL_SHARE))
    if not pairs:
        return None
    return PixelCounts(np.array(pairs), np.stack(counts).astype(np.float64), np.stack(central).astype(np.float64))


def _curves(sweep: Sweep | None, pixels: PixelCounts | None) -> Iterator[Curve]:
    """Yield curves of accuracy over thresholds (MaxBoxAcc, the parts of V2) and of precision over recall (PxAP)."""
    if sweep is not None:
        rules = [("max_box_acc", sweep.largest_iou, IOU_DELTA)]
        rules += [(f"max_box_acc_v2_at_{delta}", sweep.any_iou, delta) for delta in V2_DELTAS]
        for metric, iou, delta in rules:
            accuracy = accuracy_curves(iou, [delta])[0]
            yield Curve(metric, tuple(zip(THRESHOLDS.tolist(), accuracy.tolist(), strict=True)))
    if pixels is not None:
        yield Curve("pxap", tuple((x, y) for x, y in precision_recall(pixels.counts.sum(axis=0)).tolist()))
