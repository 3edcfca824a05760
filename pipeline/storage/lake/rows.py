"""The wide rows that travel from the network to the commit, and the tables they become.

A wide row is one input: the columns of PLAN that identify it, then either the reason why it was rejected or the results
of the network. Maps and boxes are nested, a list an image, so that Ray Data moves an image's results together and a
commit holds an image whole or not at all.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrays.maps import quantize
from schemas.columns import TIMESTAMP
from schemas.reasons import Reason
from schemas.tables import PLAN, TABLES, Table, TableSpec, optional_tables

IDENTITY = ("image_id", "uri", "etag", "size_bytes", "modified_at")
_PER_IMAGE = ("image_id", "run_id", "uri")
"""Columns of a nested table that come from the row of its image."""
_REJECTION = ("reason_code", "detail")


def row_schema(types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema of the wide rows: in a rejected row the results are null, in an annotated one the rejection is.

    ``types`` gives the types of the tables' open columns, as ``network_types`` does.
    """
    images, quarantine = TABLES["images"].columns, TABLES["quarantine"].columns
    given = {*IDENTITY, "run_id", "annotated_at"}
    fields = [pa.field("decided_at", TIMESTAMP), *(quarantine.field(name) for name in _REJECTION)]
    fields += [one for one in images if one.name not in given]
    for spec in optional_tables().values():
        if spec.row == "image":
            fields += [one for one in spec.schema(types) if one.name not in _PER_IMAGE]
        else:
            fields += [pa.field(spec.name, _nested(spec))]
    identity = [PLAN.field(name).remove_metadata() for name in IDENTITY]
    return pa.schema([*identity, *(one.with_nullable(True).remove_metadata() for one in fields)])


def _nested(spec: TableSpec) -> pa.ListType:
    return pa.list_(pa.struct([one.remove_metadata() for one in spec.columns if one.name not in _PER_IMAGE]))


def nest(table: Table, columns: Mapping[str, Any], counts: NDArray[np.integer[Any]]) -> pa.Array:
    """Return the nested column of a table of maps or boxes.

    ``columns`` has the table's columns without the image's columns. Each column has one value for each map or box,
    image by image; row i of the result takes the next ``counts[i]`` values.
    """
    kind = _nested(TABLES[table])
    fields = list(kind.value_type)
    arrays = [pa.array(columns[one.name], type=one.type) for one in fields]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=fields))


def map_columns(name: str, maps: NDArray[np.float32], valid_hw: NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns of the table heatmaps (``name`` heat) or foreground (fg): quantized maps without padding.

    ``valid_hw`` (N, 2) rows and columns of ``maps`` (N, h, w) show the picture. Values of padding become the lowest
    value of the map. NaN and infinity, which only rejected images have, become 0.
    """
    rows, columns = valid_hw[:, :1, None], valid_hw[:, 1:, None]
    height, width = maps.shape[1:]
    inside = (np.arange(height)[:, None] < rows) & (np.arange(width) < columns)
    finite = np.where(np.isfinite(maps), maps, 0)
    lowest = np.where(inside, finite, np.inf).min(axis=(1, 2), keepdims=True)
    quantized, low, high = quantize(np.where(inside, finite, lowest).astype(np.float32))
    offsets = np.concatenate([[0], np.cumsum(valid_hw.prod(axis=1))])
    return {
        f"{name}_h": pa.array(valid_hw[:, 0].astype(np.int32)),
        f"{name}_w": pa.array(valid_hw[:, 1].astype(np.int32)),
        f"{name}_min": pa.array(low),
        f"{name}_max": pa.array(high),
        name: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(quantized[inside])),
    }


def split_rows(rows: pa.Table, run_id: str, outputs: Collection[Table]) -> dict[Table, pa.Table]:
    """Return the tables that wide rows become, each ordered by image_id; ``outputs`` names the optional ones wanted."""
    rows = rows.append_column("run_id", pa.repeat(run_id, len(rows)))
    order = pc.sort_indices(rows["image_id"])
    rejected = pc.is_valid(rows["reason_code"]).take(order)
    images, quarantine = rows.take(order.filter(pc.invert(rejected))), rows.take(order.filter(rejected))
    tables = {
        "images": _select(images.append_column("annotated_at", images["decided_at"]), TABLES["images"]),
        "quarantine": _select(_with_reasons(quarantine), TABLES["quarantine"]),
    }
    for spec in optional_tables().values():
        if spec.name in outputs:
            tables[spec.name] = _select(images, spec) if spec.row == "image" else _unnest(images, spec)
    return tables


def plan_rows(rows: pa.Table) -> pa.Table:
    """Return ``rows`` with the columns of PLAN alone, null in those that they lack."""
    columns = {name: rows[name] if name in rows.schema.names else pa.nulls(len(rows)) for name in PLAN.names}
    return pa.table(columns).cast(PLAN)


def count_maps_without_box(rows: pa.Table) -> int:
    """Return how many maps of wide rows have no positive value, so that the paper's rule gives them no box."""
    highest = pc.struct_field(pc.list_flatten(rows["heatmaps"].combine_chunks()), "heat_max")
    count: int = pc.sum(pc.less_equal(highest, 0.0)).as_py() or 0
    return count


def _with_reasons(rows: pa.Table) -> pa.Table:
    """Return rejected rows with the other columns that ``quarantine`` has for their reason code."""
    codes = rows["reason_code"].combine_chunks().dictionary_encode()
    reasons = [Reason.of(code) for code in codes.dictionary.to_pylist()]
    stage = pa.array([reason.stage for reason in reasons], pa.string()).take(codes.indices)
    permanent = pa.array([reason.permanent for reason in reasons], pa.bool_()).take(codes.indices)
    columns = {"stage": stage, "permanent": permanent, "rejected_at": rows["decided_at"]}
    return pa.table({**{name: rows[name] for name in rows.schema.names}, **columns})


def _select(rows: pa.Table, spec: TableSpec) -> pa.Table:
    schema = spec.schema({name: rows.schema.field(name).type for name in spec.open_columns})
    return pa.table({name: rows[name] for name in schema.names}, schema=schema)


def _unnest(images: pa.Table, spec: TableSpec) -> pa.Table:
    nested = images[spec.name].combine_chunks()
    image_of_row, structs = pc.list_parent_indices(nested), pc.list_flatten(nested)
    schema = spec.schema()
    columns = {
        name: pc.take(images[name], image_of_row) if name in _PER_IMAGE else pc.struct_field(structs, name)
        for name in schema.names
    }
    return pa.table(columns, schema=schema)
