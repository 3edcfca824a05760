"""Scores an output against a truth: reads the stored rows, no network runs again."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays.figures import THRESHOLDS, Guesses, Pairs, Scorer, Sweep, sweep_maps
from pipeline.arrays.metrics import IOU_DELTA, Bools, Convention, Floats, Ints, accuracy_curves
from pipeline.camlake import Lake
from pipeline.storage.truth import Truth
from schemas.errors import UsageError
from schemas.runs import RunManifest
from schemas.scores import ClassScore, Scores

_SWEEP_CELLS = 250_000
"""Map cells × thresholds cut at once: the sweep then adds about 120 MB (measured with 7×7 maps)."""
_UNRANKED = np.iinfo(np.int64).max
_ANSWERS = """(
SELECT image_id, 0 AS rank, top1_class_id AS class_id, top1_label AS label FROM images WHERE model = $model
UNION ALL SELECT image_id, rank, class_id, label FROM boxes WHERE model = $model
UNION ALL SELECT image_id, rank, class_id, label FROM heatmaps WHERE model = $model
)"""
_TRUE_ROWS = """
{rows} AS answer JOIN camlake_truth AS truth
ON answer.image_id = truth.image_id AND (answer.class_id = truth.class_id OR answer.label = truth.label)
"""
"""Rows whose class is true for their image, once for each pair: a pair has either class ids or a label."""


def evaluate(lake: Lake, truth: Truth, *, model: str | None = None, convention: Convention = "half-open") -> Scores:
    """Return the scores of one model's rows (the newest run's, where ``model`` is None) against ``truth``.

    ``convention`` says how the truth's xmax and ymax are meant; the output's half-open boxes are compared accordingly.
    What can't be scored, because a table or enough ranks are missing, is left out and named in the notes. Raises
    UsageError for an unknown model, and where the truth knows none of the images, or only by labels that
    the output does not have.
    """
    run = _run_of_model(lake, model)
    images = lake.arrow("images", columns=["image_id", "uri", "width_px", "height_px"], model=run.model)
    place = _places(truth, images)
    known = np.flatnonzero(place >= 0)
    pairs = _pairs(truth, images.take(place[known]), known, convention)
    names = [truth.labels[pair] or ";".join(map(str, truth.class_ids[pair])) for pair in known]
    with _truth_in_sql(lake, truth, known, images.take(place[known])["image_id"].to_pylist()):
        rank = _best_ranks(lake, run.model, len(known))
        if (rank == _UNRANKED).all():
            _check_labels(lake, run.model, truth)
        scorer = Scorer(pairs, rank)
        guesses = _guesses(lake, run, pairs)
        sweep = sweep_maps(pairs, _map_chunks(lake, run.model)) if "heatmaps" in run.settings["outputs"] else None
    tops = (1, 5) if _top5_is_known(run, rank) else (1,)
    figures = [scorer.accuracy(top) for top in tops]
    figures += [figure for cut, found in guesses.items() for figure in scorer.of_boxes(found, cut, tops)]
    figures += scorer.of_sweep(sweep) if sweep else []
    return Scores(
        model=run.model,
        iou_convention=convention,
        images=pairs.n_images,
        pairs=len(known),
        missing_images=len(set(truth.keys)) - pairs.n_images,
        pairs_without_rows=int((rank == _UNRANKED).sum()),
        figures=tuple(figures),
        curve=_curve(sweep),
        classes=_by_class(names, rank, scorer.box_iou(next(iter(guesses.values()))) if guesses else None, sweep),
        notes=tuple(_notes(run, rank, truth, pairs.n_images)),
    )


def _run_of_model(lake: Lake, model: str | None) -> RunManifest:
    """Return the model's last run with rows, or the last one of all: the runs of one model share their settings."""
    runs = [run for run in lake.runs if run.files and model in {None, run.model}]
    if not runs:
        known = ", ".join(lake.models)
        raise UsageError(f"--model {model!r}: this output has {known}" if known else "this output has no rows yet")
    return runs[-1]


def _places(truth: Truth, images: pa.Table) -> Ints:
    """Return (P,): the row of each pair's image, -1 for none; raises UsageError where no pair has one."""
    place = truth.match(images["uri"].to_pylist())
    if (place < 0).all():
        example = f", like {images['uri'][0].as_py()!r}" if len(images) else ""
        raise UsageError(
            f"none of the truth's {len(set(truth.keys))} images, like {truth.keys[0]!r}, is among the output's"
            f" {len(images)}{example}"
        )
    return place


def _pairs(truth: Truth, images: pa.Table, known: Ints, convention: Convention) -> Pairs:
    """Return the pairs ``known`` of the truth; ``images`` has one row for each."""
    number = np.full(len(truth.keys), -1)
    number[known] = np.arange(len(known))
    kept = number[truth.owner] >= 0
    _, image = np.unique(images["image_id"].to_numpy(), return_inverse=True)
    return Pairs(
        n_images=int(image.max()) + 1,
        image=image,
        sizes_wh=np.stack([images[side].to_numpy() for side in ("width_px", "height_px")], axis=1).astype(np.float64),
        boxes=truth.boxes_xyxy[kept],
        owner=number[truth.owner[kept]],
        convention=convention,
    )


@contextmanager
def _truth_in_sql(lake: Lake, truth: Truth, known: Ints, image_ids: list[str]) -> Iterator[None]:
    """Let the lake's queries join ``camlake_truth``: image_id, class_id or label, pair."""
    rows = [
        (image_id, class_id, None if truth.class_ids[old] else truth.labels[old], pair)
        for pair, (image_id, old) in enumerate(zip(image_ids, known, strict=True))
        for class_id in truth.class_ids[old] or (None,)
    ]
    kinds = {"image_id": pa.string(), "class_id": pa.int64(), "label": pa.string(), "pair": pa.int64()}
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), kinds.values(), strict=True)]
    lake.connection().register("camlake_truth", pa.table(columns, names=list(kinds)))
    try:
        yield
    finally:
        lake.connection().unregister("camlake_truth")


def _best_ranks(lake: Lake, model: str, n_pairs: int) -> Ints:
    """Return (P,): the rank of each pair's best-ranked class, _UNRANKED where the output has no row of any."""
    query = f"SELECT pair, min(rank) AS rank FROM {_TRUE_ROWS.format(rows=_ANSWERS)} GROUP BY pair"
    found = lake.sql(query, {"model": model}).to_arrow_table()
    rank = np.full(n_pairs, _UNRANKED)
    rank[found["pair"].to_numpy()] = found["rank"].to_numpy()
    return rank


def _check_labels(lake: Lake, model: str, truth: Truth) -> None:
    """Raise UsageError where the truth names classes by labels of another vocabulary than the output's."""
    known = set(lake.sql(f"SELECT DISTINCT label FROM {_ANSWERS}", {"model": model}).to_arrow_table()[0].to_pylist())
    if not any(truth.class_ids) and known.isdisjoint(truth.labels):
        raise UsageError(
            f"none of the truth's labels, like {truth.labels[0]!r}, is one of the output's, like {min(known)!r};"
            " give class ids in the truth, or annotate with --labels"
        )


def _guesses(lake: Lake, run: RunManifest, pairs: Pairs) -> dict[float, Guesses]:
    """Return the largest component's boxes of true classes by threshold; nothing where the output has no boxes."""
    if "boxes" not in run.settings["outputs"]:
        return {}
    query = f"""SELECT pair, rank, threshold, xmin, ymin, xmax, ymax FROM {_TRUE_ROWS.format(rows="boxes")}
        WHERE model = $model AND component = 0"""
    rows = lake.sql(query, {"model": run.model}).to_arrow_table()
    pair, rank, threshold = (rows[name].to_numpy() for name in ("pair", "rank", "threshold"))
    boxes = np.stack([rows[name].to_numpy() for name in ("xmin", "ymin", "xmax", "ymax")], axis=1).astype(np.float64)
    iou = pairs.iou(boxes, pair)
    cuts = {float(cut): np.isclose(threshold, cut, rtol=1e-6) for cut in run.settings["threshold"]}
    return {cut: Guesses(pair[rows], rank[rows].astype(np.int64), iou[rows]) for cut, rows in cuts.items()}


def _map_chunks(lake: Lake, model: str) -> Iterator[tuple[NDArray[np.uint8], Ints]]:
    """Yield the map of each pair's best-ranked class, maps of one size together, in bounded chunks."""
    query = f"""SELECT pair, heat_h, heat_w, heat FROM {_TRUE_ROWS.format(rows="heatmaps")} WHERE model = $model
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


def _top5_is_known(run: RunManifest, rank: Ints) -> bool:
    """Tell whether a class without a row is certainly not among the first five."""
    deep = run.settings["topk"] >= min(5, run.lineage.classes) and "heatmaps" in run.settings["outputs"]
    return deep or bool((rank != _UNRANKED).all())


def _curve(sweep: Sweep | None) -> tuple[tuple[float, float], ...]:
    if sweep is None:
        return ()
    accuracy = accuracy_curves(sweep.largest_iou, [IOU_DELTA])[0]
    return tuple(zip(THRESHOLDS.tolist(), accuracy.tolist(), strict=True))


def _by_class(names: list[str], rank: Ints, box_iou: Floats | None, sweep: Sweep | None) -> tuple[ClassScore, ...]:
    """Return the scores of each class, by name; the boxes are those of the first stored threshold."""
    columns: dict[str, Ints | Floats | Bools] = {
        "pairs": np.ones(len(rank), dtype=np.int64),
        "top1_accuracy": rank == 0,
    }
    if box_iou is not None:
        columns |= {"gt_known": box_iou >= IOU_DELTA, "mean_iou": box_iou}
    if sweep is not None:
        best = int(accuracy_curves(sweep.largest_iou, [IOU_DELTA])[0].argmax())
        columns |= {"max_box_acc": sweep.largest_iou[:, best] >= IOU_DELTA}
    groups = pd.DataFrame(columns).groupby(np.array(names, dtype=object))
    table = groups.mean().assign(pairs=groups.size())
    return tuple(
        ClassScore(str(name), **{str(key): value for key, value in scores.items()})
        for name, scores in table.to_dict("index").items()
    )


def _notes(run: RunManifest, rank: Ints, truth: Truth, n_images: int) -> Iterator[str]:
    missing, unranked = len(set(truth.keys)) - n_images, int((rank == _UNRANKED).sum())
    if missing:
        yield f"{missing} images of the truth are not among the annotated ones and don't count."
    if truth.without_class:
        yield f"{truth.without_class} objects of the truth have no class id and don't count."
    if unranked:
        yield (
            f"{unranked} of {len(rank)} pairs of image and class have no stored map or box of their class and count as"
            " wrong; annotate with --classes to have them beside the top-k."
        )
    if not _top5_is_known(run, rank):
        yield "Top-5 figures are left out: they need heatmaps with --topk 5 or more, or --classes."
    if "boxes" not in run.settings["outputs"]:
        yield "GT-known, localization and mean IoU are left out: the output has no boxes."
    if "heatmaps" not in run.settings["outputs"]:
        yield "MaxBoxAcc, MaxBoxAccV2 and the pointing game are left out: the output has no heatmaps."
