"""Joins an output with a truth: the pairs of image and class that are in both, as arrays and as a table for SQL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.arrays.figures import Pairs
from pipeline.arrays.metrics import Convention, Ints
from pipeline.outputs.reader import Lake
from pipeline.storage.truth.truth import Truth
from schemas.errors import UsageError
from schemas.runs import RunManifest

TRUE_ROWS = """
{rows} AS answer JOIN camlake_truth AS truth
ON answer.image_id = truth.image_id AND (answer.class_id = truth.class_id OR answer.label = truth.label)
"""
"""Rows whose class is true for their image, once for each pair: a pair has either class ids or a label."""


class Match(NamedTuple):
    """One model's output against a truth."""

    run: RunManifest
    """The model's last run with rows."""
    pairs: Pairs
    known: Ints
    """(P,) int64: for each of ``pairs`` its index among the truth's pairs."""
    names: tuple[str, ...]
    """(P,) the class of each pair, for people."""


@contextmanager
def matched(lake: Lake, truth: Truth, model: str | None, convention: Convention) -> Iterator[Match]:
    """Match the truth with one model's images (the newest run's, where ``model`` is None).

    Inside the block the lake's queries can join ``camlake_truth``: image_id, class_id or label, pair. Raises UsageError
    for an unknown model, for class ids that the model has not, and where the truth knows none of the images.
    """
    run = lake.run_of(model)
    images = lake.arrow("images", columns=["image_id", "uri", "width_px", "height_px"], model=run.model)
    place = _places(truth, images)
    known = np.flatnonzero(place >= 0)
    _refuse_other_classes([truth.class_ids[pair] for pair in known], run)
    images = images.take(place[known])
    names = tuple(truth.labels[pair] or ";".join(map(str, truth.class_ids[pair])) for pair in known)
    rows = _sql_rows(truth, known, images["image_id"].to_pylist())
    lake.connection().register("camlake_truth", rows)
    try:
        yield Match(run, _pairs(truth, images, known, convention), known, names)
    finally:
        lake.connection().unregister("camlake_truth")


def _refuse_other_classes(class_ids: Sequence[Sequence[int]], run: RunManifest) -> None:
    classes = run.lineage.classes
    beyond = next((one for ids in class_ids for one in ids if not 0 <= one < classes), None)
    if beyond is not None:
        raise UsageError(
            f"the truth has class_id {beyond}; allowed: 0 to {classes - 1}, the classes of {run.model}, or labels in a"
            " column label instead of class_id"
        )


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


def _sql_rows(truth: Truth, known: Ints, image_ids: list[str]) -> pa.Table:
    """Return one row for each class that fits a pair."""
    rows = [
        (image_id, class_id, None if truth.class_ids[old] else truth.labels[old], pair)
        for pair, (image_id, old) in enumerate(zip(image_ids, known, strict=True))
        for class_id in truth.class_ids[old] or (None,)
    ]
    kinds = {"image_id": pa.string(), "class_id": pa.int64(), "label": pa.string(), "pair": pa.int64()}
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), kinds.values(), strict=True)]
    return pa.table(columns, names=list(kinds))
