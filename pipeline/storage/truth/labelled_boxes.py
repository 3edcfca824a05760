"""The box that a labelled image is learned with: the largest one of its class, from the table of labels or a truth.

A network with a box head learns one box an image. Where an image has several objects of its class, the largest one
counts, because a box around all of them would fit none.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays.metrics import Convention, half_open_pixels
from pipeline.storage.names import BOX_COLUMNS
from pipeline.storage.truth.box_units import refuse_fractions
from pipeline.storage.truth.truth import Truth
from schemas.errors import UsageError

BOX = pa.field("box", pa.list_(pa.float64()))
"""Column of a plan beside those of PLAN: xmin ymin xmax ymax, pixels of the upright original; null where unknown."""
Boxes = NDArray[np.float64]
"""(R, 4) float64: xmin, ymin, xmax, ymax in pixels, half-open; a row of NaN is no box."""


def box_rows(table: pa.Table, name: str, convention: Convention = "half-open") -> Boxes:
    """Return the boxes in the columns xmin, ymin, xmax, ymax of a table, a row for each of its rows.

    ``convention`` says how the table means xmax and ymax. Four empty cells are no box. Raises UsageError, which begins
    with ``name``, for some empty ones, for what is no number, and for a box without area.
    """
    cells = pd.DataFrame({column: pd.Series(table[column].to_pylist(), dtype=object) for column in BOX_COLUMNS})
    empty = (cells.isna() | (cells == "")).to_numpy()
    boxes = half_open(cells.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64), convention)
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    wrong &= ~empty.all(axis=1)
    if wrong.any():
        row, less = int(wrong.argmax()), "<=" if convention == "inclusive" else "<"
        raise UsageError(
            f"{name}: row {row + 1}: {', '.join(map(str, cells.iloc[row]))}; allowed: four numbers xmin, ymin, xmax,"
            f" ymax with xmin {less} xmax and ymin {less} ymax, or four empty cells"
        )
    known = np.where(empty, np.nan, boxes)
    if convention == "half-open":  # The others have one added already.
        refuse_fractions(known, name)
    return known


def half_open(boxes: Boxes, convention: Convention) -> Boxes:
    """Return boxes (R, 4) whose xmax and ymax are meant as ``convention`` says as half-open ones."""
    return half_open_pixels(boxes) if convention == "inclusive" else boxes


def true_boxes(
    truth: Truth, plan: pa.Table, labels: Sequence[str], convention: Convention = "half-open"
) -> tuple[list[str], Boxes]:
    """Return uris of ``plan`` and the boxes that a truth has of each image's class, as ``with_boxes`` takes both.

    A truth's class is the one of ``labels`` by its name, else the one by its ids; ``convention`` says how it means xmax
    and ymax. Raises UsageError as ``Truth.match``.
    """
    uris, classes = plan["uri"].to_pylist(), plan["classes"].to_pylist()
    ids_of = {label: [class_id] for class_id, label in enumerate(labels)}
    image = truth.match(uris)
    fits = np.array(
        [
            place >= 0 and not set(ids_of.get(label, ids)).isdisjoint(classes[place])
            for place, label, ids in zip(image, truth.labels, truth.class_ids, strict=True)
        ]
    )
    kept = fits[truth.owner]
    return [uris[place] for place in image[truth.owner[kept]]], half_open(truth.boxes_xyxy[kept], convention)


def with_boxes(plan: pa.Table, uris: Sequence[str], boxes: Boxes) -> pa.Table:
    """Return ``plan`` with the column BOX: of the ``boxes`` (R, 4) of the images ``uris`` (R,) each image's largest.

    Of equally large ones the first counts.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    largest: dict[str, int] = {}
    for row in np.flatnonzero(~np.isnan(areas)).tolist():
        if areas[row] > areas[largest.setdefault(uris[row], row)]:
            largest[uris[row]] = row
    rows = [largest.get(uri) for uri in plan["uri"].to_pylist()]
    return plan.append_column(BOX, pa.array([None if row is None else boxes[row] for row in rows], BOX.type))
