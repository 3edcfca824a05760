"""The output tables: plain Arrow types that every engine reads, each column with its meaning in its field metadata.

``TABLES`` lists the tables. A new table is one entry in ``TABLES`` and the code that fills its columns.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its name, type or meaning; new columns alone don't raise it."""

Table = str
"""The name of a table, a key of TABLES."""

TIMESTAMP = pa.timestamp("us", tz="UTC")


def _field(name: str, kind: pa.DataType, about: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"about": about})


IMAGE_ID = _field("image_id", pa.string(), "stable 128-bit hash of the uri, 32 hex digits")
RUN_ID = _field("run_id", pa.string(), "the run that wrote this row; see _runs/<run_id>/manifest.json")
URI = _field("uri", pa.string(), "where the image was read")
SOURCE = (
    _field("etag", pa.string(), "the store's version tag of the object, as listed", nullable=True),
    _field("size_bytes", pa.int64(), "bytes, as listed", nullable=True),
    _field("modified_at", TIMESTAMP, "UTC, as listed", nullable=True),
)
RANK = _field("rank", pa.int32(), "place of the class among all classes by probability, 0 = top-1")
CLASS_ID = _field("class_id", pa.int32(), "index of the network's output")
LABEL = _field("label", pa.string(), "name of the class")

_IMAGES = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        URI,
        *SOURCE,
        _field("width_px", pa.int32(), "pixels, upright (after EXIF orientation)"),
        _field("height_px", pa.int32(), "pixels, upright (after EXIF orientation)"),
        _field("format", pa.string(), "the file's format by its content: JPEG, PNG, …"),
        _field("top1_class_id", pa.int32(), "index of the most probable class"),
        _field("top1_label", pa.string(), "name of the most probable class"),
        _field("top1_prob", pa.float32(), "probability in [0, 1]: softmax; of several labels an image sigmoid"),
        _field("n_boxes", pa.int32(), "rows of this image in boxes; 0 where no map has a positive value"),
        _field("annotated_at", TIMESTAMP, "UTC"),
    ]
)

_BOXES = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        URI,
        RANK,
        CLASS_ID,
        LABEL,
        _field("class_prob", pa.float32(), "probability of the class in [0, 1], as top1_prob"),
        _field("component", pa.int32(), "place of the connected component by area, 0 = largest"),
        _field("threshold", pa.float32(), "where the map was cut, as --threshold says, in (0, 1); 0: cut from no map"),
        _field("xmin", pa.float32(), "pixels of the upright original, left edge, inclusive"),
        _field("ymin", pa.float32(), "pixels of the upright original, top edge, inclusive"),
        _field("xmax", pa.float32(), "pixels of the upright original, right edge, exclusive"),
        _field("ymax", pa.float32(), "pixels of the upright original, bottom edge, exclusive"),
        _field("area_frac", pa.float32(), "the box's share of the image's area, in (0, 1]"),
        _field("box_score", pa.float32(), "P(class is right and IoU >= 0.5), in [0, 1]", nullable=True),
        _field("method", pa.string(), "localization method: cam, gradcam, layercam, backprop or regress; *foreground"),
    ]
)

_HEATMAPS = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        RANK,
        CLASS_ID,
        LABEL,
        _field("heat_h", pa.int32(), "rows of the map; the map covers the whole upright image"),
        _field("heat_w", pa.int32(), "columns of the map"),
        _field("heat_min", pa.float32(), "M_c of the value 0"),
        _field("heat_max", pa.float32(), "M_c of the value 255"),
        _field("heat", pa.list_(pa.uint8()), "row-major; M_c = heat_min + heat / 255 * (heat_max - heat_min)"),
    ]
)

_QUARANTINE = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        URI,
        *SOURCE,
        _field("stage", pa.string(), "list, fetch, decode, limits or model"),
        _field("reason_code", pa.string(), "see README, reason codes"),
        _field("detail", pa.string(), "what exactly was wrong"),
        _field("permanent", pa.bool_(), "false: the next run tries this image again"),
        _field("rejected_at", TIMESTAMP, "UTC"),
    ]
)

_FOREGROUND = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        _field("fg_h", pa.int32(), "rows of the figure/ground map; the map covers the whole upright image"),
        _field("fg_w", pa.int32(), "columns of the map"),
        _field("fg_min", pa.float32(), "value of 0: v·(cell − μ), low on background"),
        _field("fg_max", pa.float32(), "value of 255"),
        _field("fg", pa.list_(pa.uint8()), "row-major; value = fg_min + fg / 255 * (fg_max - fg_min)"),
    ]
)

_FEATURES = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        _field(
            "feature",
            pa.list_(pa.float32()),
            "the pooled vector that the linear layer saw; to 11 significant bits where the network ran in bf16 or fp16",
        ),
    ]
)

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
    """Columns by which the rows of a file are sorted."""
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
            _IMAGES,
            optional=False,
            sound="width_px > 0 AND height_px > 0 AND top1_prob BETWEEN 0 AND 1 AND n_boxes >= 0",
            repeated=frozenset({"run_id", "uri", "format", "top1_label"}),
        ),
        TableSpec(
            "boxes",
            "box",
            _BOXES,
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
            _HEATMAPS,
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
            _FEATURES,
            open_columns=MappingProxyType({"feature": (pa.float32(), pa.float16())}),
            complete="n = 1",
            complete_as="one feature vector",
            sound="isfinite(list_sum(feature))",
            repeated=frozenset({"run_id"}),
        ),
        TableSpec(
            "foreground",
            "image",
            _FOREGROUND,
            complete="n = 1",
            complete_as="one figure/ground map",
            sound="fg_h > 0 AND fg_w > 0 AND len(fg) = fg_h * fg_w AND fg_min <= fg_max"
            " AND isfinite(fg_min) AND isfinite(fg_max)",
            repeated=frozenset({"run_id", "fg_h", "fg_w"}),
        ),
        TableSpec(
            "quarantine",
            "image",
            _QUARANTINE,
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
        _field("path", pa.string(), "path of the file that holds the image, without protocol"),
        _field("offset", pa.int64(), "first byte inside a tar shard, or row of a Parquet file", nullable=True),
        _field("reason_code", pa.string(), "set where listing already rejected this input", nullable=True),
        _field("detail", pa.string(), "what exactly was wrong with it", nullable=True),
        _field("classes", pa.list_(pa.int32()), "classes that --classes names for this image", nullable=True),
    ]
)
"""A planned input, as the planner passes it to the readers. ``offset`` is null for a file that is one image."""
