"""Finds the box to learn for each labelled image: the largest box of its class in the table of labels or in a truth.

A network with a box head learns one box for each image. Where an image has several objects of its class, the largest
object counts, because a box around all objects would fit none of them.
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
"""A column that is added to PLAN: xmin ymin xmax ymax in pixels of the upright original; null where unknown."""
Boxes = NDArray[np.float64]
"""(R, 4) float64: xmin, ymin, xmax, ymax in pixels, half-open; a row of NaN stands for no box."""


def box_rows(table: pa.Table, name: str, convention: Convention = "half-open") -> Boxes:
    """Return the boxes in the columns xmin, ymin, xmax, ymax of a table, one for each row of the table.

    ``convention`` tells whether xmax and ymax of the table are half-open or inclusive. Four empty cells stand for no
    box. Raises UsageError, whose text begins with ``name``, for one to three empty cells, for a cell that is not a
    finite number, and for a box without area.
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
    if convention == "half-open":  # 1 has been added to inclusive boxes already.
        refuse_fractions(known, name)
    return known


def half_open(boxes: Boxes, convention: Convention) -> Boxes:
    """Return boxes (R, 4) as half-open boxes; ``convention`` is the convention of the given boxes."""
    return half_open_pixels(boxes) if convention == "inclusive" else boxes


def true_boxes(
    truth: Truth, plan: pa.Table, labels: Sequence[str], convention: Convention = "half-open"
) -> tuple[list[str], Boxes]:
    """Return the R boxes that a truth has of the classes of the images in ``plan``, with the uri of each box's image.

    Where the label of a true box is among ``labels``, the label is its class; else its class ids count. ``convention``
    tells whether xmax and ymax of the truth are half-open or inclusive. Raises UsageError as ``Truth.match`` does.
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
    """Return ``plan`` with the column BOX, the largest of the ``boxes`` (R, 4) that belong to an image.

    ``uris`` (R,) names the image of each box. The first of equally large boxes counts. The column is null for an image
    without a box.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    largest: dict[str, int] = {}
    for row in np.flatnonzero(~np.isnan(areas)).tolist():
        if areas[row] > areas[largest.setdefault(uris[row], row)]:
            largest[uris[row]] = row
    rows = [largest.get(uri) for uri in plan["uri"].to_pylist()]
    return plan.append_column(BOX, pa.array([None if row is None else boxes[row] for row in rows], BOX.type))
