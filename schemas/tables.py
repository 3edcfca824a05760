"""The output tables: plain Arrow types that every engine reads, each column with its meaning in its field metadata."""

from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its name, type or meaning; new columns alone don't raise it."""

Table = Literal["images", "boxes", "heatmaps", "features", "quarantine"]
TABLES: tuple[Table, ...] = ("images", "boxes", "heatmaps", "features", "quarantine")
OPTIONAL_TABLES: tuple[Table, ...] = ("boxes", "heatmaps", "features")
"""What ``--outputs`` chooses from; ``images`` and ``quarantine`` are always written."""

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

IMAGES = pa.schema(
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

BOXES = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        URI,
        RANK,
        CLASS_ID,
        LABEL,
        _field("class_prob", pa.float32(), "probability of the class in [0, 1], as top1_prob"),
        _field("component", pa.int32(), "place of the connected component by area, 0 = largest"),
        _field(
            "threshold", pa.float32(), "share of the map's maximum that cuts the box, in (0, 1); 0: cut from no map"
        ),
        _field("xmin", pa.float32(), "pixels of the upright original, left edge, inclusive"),
        _field("ymin", pa.float32(), "pixels of the upright original, top edge, inclusive"),
        _field("xmax", pa.float32(), "pixels of the upright original, right edge, exclusive"),
        _field("ymax", pa.float32(), "pixels of the upright original, bottom edge, exclusive"),
        _field("area_frac", pa.float32(), "the box's share of the image's area, in (0, 1]"),
        _field("box_score", pa.float32(), "calibrated P(IoU >= 0.5); null until a calibration exists", nullable=True),
        _field("method", pa.string(), "localization method: cam, gradcam, layercam, backprop or regress"),
    ]
)

HEATMAPS = pa.schema(
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

QUARANTINE = pa.schema(
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

FeatureType = Literal["float32", "float16"]


def features_schema(channels: int, dtype: FeatureType) -> pa.Schema:
    """Return the schema of ``features`` for a network whose linear layer sees ``channels`` values."""
    value = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    vector = pa.list_(value, channels)
    about = "the pooled vector that the linear layer saw; to 11 significant bits where the network ran in bf16 or fp16"
    return pa.schema([IMAGE_ID, RUN_ID, _field("feature", vector, about)])


def table_schema(table: Table, channels: int, dtype: FeatureType) -> pa.Schema:
    """Return the schema of one table, with its version in the metadata; ``channels`` and ``dtype`` shape features."""
    fixed = {"images": IMAGES, "boxes": BOXES, "heatmaps": HEATMAPS, "quarantine": QUARANTINE}
    schema = features_schema(channels, dtype) if table == "features" else fixed[table]
    return schema.with_metadata({"camlake.table": table, "camlake.schema_version": str(SCHEMA_VERSION)})


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
"""One input of a run: what the planner hands to the readers. ``offset`` is null for a file that is the image itself."""
