"""The one wide row that travels from the network to the commit, and the tables it becomes.

A row is an input: the columns of PLAN that identify it, then either why it was rejected or all that the network said
of it, with its boxes and heatmaps nested. Nesting lets Ray Data move an image's results together, so that a commit
holds an image whole or not at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.tables import (
    BOXES,
    HEATMAPS,
    IMAGES,
    OPTIONAL_TABLES,
    PLAN,
    QUARANTINE,
    TIMESTAMP,
    FeatureType,
    Table,
    features_schema,
    table_schema,
)

IDENTITY = ("image_id", "uri", "etag", "size_bytes", "modified_at")
_PER_IMAGE = ("image_id", "run_id", "uri")
_ANSWERS = tuple(name for name in IMAGES.names if name not in {*IDENTITY, "run_id", "annotated_at"})
_REJECTION = ("stage", "reason_code", "detail", "permanent")


def _nested(table: pa.Schema) -> pa.ListType:
    return pa.list_(pa.struct([field.remove_metadata() for field in table if field.name not in _PER_IMAGE]))


def row_schema(channels: int, dtype: FeatureType) -> pa.Schema:
    """Return the schema of the wide rows; the answers are null in a rejected row, the rejection in the others."""
    fields = [PLAN.field(name) for name in IDENTITY]
    fields += [pa.field("decided_at", TIMESTAMP)]
    fields += [QUARANTINE.field(name).with_nullable(True) for name in _REJECTION]
    fields += [IMAGES.field(name).with_nullable(True) for name in _ANSWERS]
    fields += [pa.field("boxes", _nested(BOXES)), pa.field("heatmaps", _nested(HEATMAPS))]
    fields += [features_schema(channels, dtype).field("feature").with_nullable(True)]
    return pa.schema([field.remove_metadata() for field in fields])


def nest(table: Table, columns: Mapping[str, Any], counts: NDArray[np.integer[Any]]) -> pa.Array:
    """Return the nested column of boxes or heatmaps: ``columns`` are flat, row i of the result takes ``counts[i]``."""
    kind = _nested({"boxes": BOXES, "heatmaps": HEATMAPS}[table])
    fields = list(kind.value_type)
    arrays = [pa.array(columns[field.name], type=field.type) for field in fields]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=fields))


def split_rows(rows: pa.Table, run_id: str, outputs: Sequence[str]) -> dict[Table, pa.Table]:
    """Return the output tables of wide rows, ordered by image_id; ``outputs`` says which of the optional ones."""
    rows = rows.append_column("run_id", pa.array([run_id], pa.string()).take(pa.array([0] * len(rows), pa.int32())))
    order = pc.sort_indices(rows["image_id"])
    rejected = pc.is_valid(rows["reason_code"]).take(order)
    images, quarantine = rows.take(order.filter(pc.invert(rejected))), rows.take(order.filter(rejected))
    tables: dict[Table, pa.Table] = {
        "images": _select(images, IMAGES, {"annotated_at": "decided_at"}),
        "quarantine": _select(quarantine, QUARANTINE, {"rejected_at": "decided_at"}),
    }
    for name in OPTIONAL_TABLES:
        if name not in outputs:
            continue
        if name == "features":
            tables[name] = images.select(["image_id", "run_id", "feature"])
        else:
            tables[name] = _unnest(images, name)
    return tables


def count_maps_without_box(rows: pa.Table) -> int:
    """Return how many maps of wide rows have no positive value, so that the paper's rule gives them no box."""
    highest = pc.struct_field(pc.list_flatten(rows["heatmaps"].combine_chunks()), "heat_max")
    count: int = pc.sum(pc.less_equal(highest, 0.0)).as_py() or 0
    return count


def _select(rows: pa.Table, schema: pa.Schema, renamed: Mapping[str, str]) -> pa.Table:
    return pa.table({name: rows[renamed.get(name, name)] for name in schema.names}, schema=schema)


def _unnest(images: pa.Table, table: Table) -> pa.Table:
    nested = images[table].combine_chunks()
    parents = pc.list_parent_indices(nested)
    structs = pc.list_flatten(nested)
    schema = table_schema(table, 1, "float32")
    columns = {
        name: pc.take(images[name], parents) if name in _PER_IMAGE else pc.struct_field(structs, name)
        for name in schema.names
    }
    return pa.table(columns, schema=schema)
