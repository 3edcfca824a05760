"""Compare the rows of two outputs, without regard to the run that wrote them and to the time."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.outputs import reader as camlake
from schemas.errors import CamlakeError

VARYING = {"run_id", "annotated_at", "rejected_at", "date"}
"""Columns that name the run or the time of writing; they differ between equal outputs."""

ROUNDING = 1e-3
"""Allowed difference of float32 values, both absolute and relative to the value.

Box edges in pixels change with the last digits of the maps.
"""


def same_rows(
    one: str | Path, other: str | Path, table: str, leave_out: Collection[str] = (), endpoint_url: str | None = None
) -> int:
    """Return the number of rows of a table; raises CamlakeError where its rows in two outputs differ beyond ROUNDING.

    The current rows are sorted and then compared. A resumed run may put an image into another batch or another place
    of a batch, and there float32 sums can have other last digits. ``leave_out`` names columns that are not compared,
    such as ``modified_at`` of images that were copied. ``endpoint_url``: of outputs on S3.
    """
    rows, others = (_sorted_rows(out, table, VARYING | set(leave_out), endpoint_url) for out in (one, other))
    if len(rows) != len(others):
        raise CamlakeError(f"{table}: {len(rows)} rows in {one}, {len(others)} in {other}")
    if rows.column_names != others.column_names:
        odd = sorted(set(rows.column_names) ^ set(others.column_names))
        raise CamlakeError(f"{table}: only one of {one} and {other} has {odd}")
    for name in rows.column_names:
        if not _alike(rows[name], others[name]):
            raise CamlakeError(f"{table}: {name} is not the same in {one} and {other}")
    return len(rows)


def _sorted_rows(out: str | Path, table: str, leave_out: Collection[str], endpoint_url: str | None) -> pa.Table:
    with camlake.open(str(out), endpoint_url=endpoint_url) as lake:
        rows = lake.arrow(table)
    rows = rows.select([name for name in rows.column_names if name not in leave_out])
    keys = [name for name in ("image_id", "rank", "class_id", "threshold", "component") if name in rows.column_names]
    return rows.sort_by([(name, "ascending") for name in keys]).combine_chunks()


def _alike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if not pa.types.is_floating(kind := getattr(one.type, "value_type", one.type)) and kind != pa.uint8():
        return one.equals(other)
    if kind != one.type:
        one, other = one.combine_chunks(), other.combine_chunks()
        if not one.value_lengths().equals(other.value_lengths()):
            return False
        one, other = one.flatten(), other.flatten()
    if kind == pa.uint8():  # levels of a heatmap
        one, other = one.cast(pa.int16()), other.cast(pa.int16())
    off = 1 if kind == pa.uint8() else ROUNDING
    return np.allclose(one.to_numpy(), other.to_numpy(), rtol=ROUNDING, atol=off, equal_nan=True)
