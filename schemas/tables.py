"""The output tables: plain Arrow types that every engine reads, each column with its meaning in its field metadata.

``TABLES`` lists the tables. A new table is one entry in ``TABLES`` and the code that fills its columns.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import pyarrow as pa

from schemas.columns import (
    BOXES,
    FEATURE_MAPS,
    FEATURES,
    FOREGROUND,
    HEATMAPS,
    IMAGE_ID,
    IMAGES,
    QUARANTINE,
    SOURCE,
    URI,
    described,
)

SCHEMA_VERSION = 1
"""Raised when a column changes its name, type or meaning; new columns alone don't raise it."""

Table = str
"""The name of a table, a key of TABLES."""

FeatureType = Literal["float32", "float16"]


@dataclass(frozen=True)
class TableSpec:
    """The columns and rules of one output table."""

    name: Table
    row: Literal["image", "map", "box"]
    """The thing that a row describes. In the wide rows (pipeline.storage.lake.rows), a table with a row for each image
    has its columns; tables of maps and boxes are nested: one column with a list for each image."""
    columns: pa.Schema
    """The columns. A column of ``open_columns`` has the type of a list of any length here."""
    optional: bool = True
    """Whether ``--outputs`` chooses the table. Images and quarantine together have one row for each input."""
    open_columns: Mapping[str, tuple[pa.DataType, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Columns whose type each run chooses: a list of a fixed size that holds one of these types."""
    complete: str = ""
    """SQL condition on ``n``, the number of an annotated image's rows in the table; it may name columns of images."""
    complete_as: str = ""
    """The same condition in words, such as the number of rows of each image."""
    sound: str = ""
    """SQL condition for each row. In an optional table it may name width_px and height_px of the image."""
    order: tuple[str, ...] = ("image_id",)
    """Columns by which the rows of a commit are sorted; `to_parquet` orders boxes anew."""
    repeated: frozenset[str] = frozenset()
    """Columns whose values repeat, so that Parquet stores them through a dictionary."""

    def schema(self, types: Mapping[str, pa.DataType] = MappingProxyType({})) -> pa.Schema:
        """Return the schema, with the table's name and version in its metadata.

        ``types`` gives the type of each open column by its name; raises KeyError where one is missing.
        """
        columns = [one.with_type(types[one.name]) if one.name in self.open_columns else one for one in self.columns]
        return pa.schema(columns, {"camlake.table": self.name, "camlake.schema_version": str(SCHEMA_VERSION)})

    def odd_columns(self, schema: pa.Schema) -> list[str]:
        """Return the names of the columns that ``schema`` lacks or has with another type; new columns are allowed."""
        return [
            one.name
            for one in self.columns
            if (index := schema.get_field_index(one.name)) < 0 or not self._fits(one, schema.field(index).type)
        ]

    def _fits(self, column: pa.Field, kind: pa.DataType) -> bool:
        if column.name not in self.open_columns:
            return bool(column.type == kind)
        return pa.types.is_fixed_size_list(kind) and kind.value_type in self.open_columns[column.name]


TABLES: dict[Table, TableSpec] = {
    spec.name: spec
    for spec in (
        TableSpec(
            "images",
            "image",
            IMAGES,
            optional=False,
            sound="width_px > 0 AND height_px > 0 AND top1_prob BETWEEN 0 AND 1 AND n_boxes >= 0",
            repeated=frozenset({"run_id", "uri", "format", "top1_label"}),
        ),
        TableSpec(
            "boxes",
            "box",
            BOXES,
            complete="n = n_boxes",
            complete_as="n_boxes boxes",
            sound="xmin >= 0 AND xmin < xmax AND xmax <= width_px AND ymin >= 0 AND ymin < ymax"
            " AND ymax <= height_px AND area_frac > 0 AND area_frac <= 1 AND class_prob BETWEEN 0 AND 1"
            " AND threshold BETWEEN 0 AND 1 AND coalesce(box_score, 0) BETWEEN 0 AND 1",
            order=("image_id", "rank", "threshold", "component"),
            repeated=frozenset({"run_id", "uri", "rank", "class_id", "label", "threshold", "method"}),
        ),
        TableSpec(
            "heatmaps",
            "map",
            HEATMAPS,
            complete="n >= 1",
            complete_as="a heatmap",
            sound="heat_h > 0 AND heat_w > 0 AND len(heat) = heat_h * heat_w AND heat_min <= heat_max"
            " AND isfinite(heat_min) AND isfinite(heat_max)",
            order=("image_id", "rank"),
            repeated=frozenset({"run_id", "rank", "class_id", "label", "heat_h", "heat_w"}),
        ),
        TableSpec(
            "features",
            "image",
            FEATURES,
            open_columns=MappingProxyType({"feature": (pa.float32(), pa.float16())}),
            complete="n = 1",
            complete_as="one feature vector",
            sound="isfinite(list_sum(feature))",
            repeated=frozenset({"run_id"}),
        ),
        TableSpec(
            "feature_maps",
            "image",
            FEATURE_MAPS,
            complete="n = 1",
            complete_as="one row of feature maps",
            sound="map_h > 0 AND map_w > 0 AND channels > 0 AND bits IN (2, 3, 4) AND octet_length(codes)"
            " - (map_h * map_w * channels + if(bits = 2, 3, 1)) // if(bits = 2, 4, 2) IN (0, 1)",
            repeated=frozenset({"run_id", "map_h", "map_w", "channels", "bits"}),
        ),
        TableSpec(
            "foreground",
            "image",
            FOREGROUND,
            complete="n = 1",
            complete_as="one figure/ground map",
            sound="fg_h > 0 AND fg_w > 0 AND len(fg) = fg_h * fg_w AND fg_min <= fg_max"
            " AND isfinite(fg_min) AND isfinite(fg_max)",
            repeated=frozenset({"run_id", "fg_h", "fg_w"}),
        ),
        TableSpec(
            "quarantine",
            "image",
            QUARANTINE,
            optional=False,
            repeated=frozenset({"run_id", "uri", "stage", "reason_code"}),
        ),
    )
}
"""Every table by its name, in the order in which a commit writes them."""


def optional_tables() -> dict[Table, TableSpec]:
    """Return the tables that ``--outputs`` chooses from, by name; images and quarantine are always written."""
    return {name: spec for name, spec in TABLES.items() if spec.optional}


def network_types(channels: int, dtype: FeatureType) -> dict[str, pa.DataType]:
    """Return the types of the open columns for a network whose linear layer sees ``channels`` values."""
    return {"feature": pa.list_({"float32": pa.float32(), "float16": pa.float16()}[dtype], channels)}


def say_score(schemas: Mapping[Table, pa.Schema], right_share: float | None) -> dict[Table, pa.Schema]:
    """Return ``schemas`` with a sentence in the metadata of ``box_score`` on how the score was made.

    ``right_share`` is the factor of class_prob in the score; None: a calibration made the score.
    """
    kind = "by the calibration of this output" if right_share is None else f"class_prob × {right_share:g}, uncalibrated"
    found = dict(schemas)
    if "boxes" in found:
        index = found["boxes"].get_field_index("box_score")
        column = found["boxes"].field(index)
        about = f"{column.metadata[b'about'].decode()}; {kind}"
        found["boxes"] = found["boxes"].set(index, column.with_metadata({"about": about}))
    return found


def written_schemas(
    outputs: Collection[Table], types: Mapping[str, pa.DataType] = MappingProxyType({})
) -> dict[Table, pa.Schema]:
    """Return the schemas of the tables that a run with ``--outputs`` ``outputs`` writes, in the order of TABLES.

    ``types`` has the types of the tables' open columns, as ``network_types`` returns them.
    """
    return {spec.name: spec.schema(types) for spec in TABLES.values() if not spec.optional or spec.name in outputs}


PLAN = pa.schema(
    [
        IMAGE_ID,
        URI,
        *SOURCE,
        described("path", pa.string(), "path of the file that holds the image, without protocol"),
        described("offset", pa.int64(), "first byte inside a tar shard, or row of a Parquet file", nullable=True),
        described("reason_code", pa.string(), "set where listing already rejected this input", nullable=True),
        described("detail", pa.string(), "what exactly was wrong with it", nullable=True),
        described("classes", pa.list_(pa.int32()), "classes that --classes names for this image", nullable=True),
    ]
)
"""A planned input, as the planner passes it to the readers. ``offset`` is null for a file that is one image."""

DROPPED = pa.schema(
    [
        ("run_id", pa.string()),
        IMAGE_ID.remove_metadata(),
        URI.remove_metadata(),
        ("annotated", pa.bool_()),
        ("reason_code", pa.string()),
        ("boxes", pa.int64()),
    ]
)
"""An ending whose rows a compaction dropped: that of an annotated image, with the number of its boxes, or of a
rejected one, with the reason."""
