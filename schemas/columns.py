"""The columns of the output tables, each with its meaning in its field metadata."""

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")


def described(name: str, kind: pa.DataType, about: str, nullable: bool = False) -> pa.Field:
    """Return a column with its meaning in its metadata."""
    return pa.field(name, kind, nullable=nullable, metadata={"about": about})


IMAGE_ID = described("image_id", pa.string(), "stable 128-bit hash of the uri, 32 hex digits")
RUN_ID = described("run_id", pa.string(), "the run that wrote this row; see _runs/<run_id>/manifest.json")
URI = described("uri", pa.string(), "where the image was read")
SOURCE = (
    described("etag", pa.string(), "the store's version tag of the object, as listed", nullable=True),
    described("size_bytes", pa.int64(), "bytes, as listed", nullable=True),
    described("modified_at", TIMESTAMP, "UTC, as listed", nullable=True),
)
RANK = described("rank", pa.int32(), "place of the class among all classes by probability, 0 = top-1")
CLASS_ID = described("class_id", pa.int32(), "index of the network's output")
LABEL = described("label", pa.string(), "name of the class")

IMAGES = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        URI,
        *SOURCE,
        described("width_px", pa.int32(), "pixels, upright (after EXIF orientation)"),
        described("height_px", pa.int32(), "pixels, upright (after EXIF orientation)"),
        described("format", pa.string(), "the file's format by its content: JPEG, PNG, …"),
        described("top1_class_id", pa.int32(), "index of the most probable class"),
        described("top1_label", pa.string(), "name of the most probable class"),
        described("top1_prob", pa.float32(), "probability in [0, 1]: softmax; of several labels an image sigmoid"),
        described("n_boxes", pa.int32(), "rows of this image in boxes; 0 where no map has a positive value"),
        described("annotated_at", TIMESTAMP, "UTC"),
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
        described("class_prob", pa.float32(), "probability of the class in [0, 1], as top1_prob"),
        described("component", pa.int32(), "place of the connected component by area, 0 = largest"),
        described(
            "threshold", pa.float32(), "where the map was cut, as --threshold says, in (0, 1); 0: cut from no map"
        ),
        described("xmin", pa.float32(), "pixels of the upright original, left edge, inclusive"),
        described("ymin", pa.float32(), "pixels of the upright original, top edge, inclusive"),
        described("xmax", pa.float32(), "pixels of the upright original, right edge, exclusive"),
        described("ymax", pa.float32(), "pixels of the upright original, bottom edge, exclusive"),
        described("area_frac", pa.float32(), "the box's share of the image's area, in (0, 1]"),
        described("box_score", pa.float32(), "P(class is right and IoU >= 0.5), in [0, 1]", nullable=True),
        described(
            "method", pa.string(), "localization method: cam, gradcam, layercam, backprop or regress; *foreground"
        ),
    ]
)

HEATMAPS = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        RANK,
        CLASS_ID,
        LABEL,
        described("heat_h", pa.int32(), "rows of the map; the map covers the whole upright image"),
        described("heat_w", pa.int32(), "columns of the map"),
        described("heat_min", pa.float32(), "M_c of the value 0"),
        described("heat_max", pa.float32(), "M_c of the value 255"),
        described("heat", pa.list_(pa.uint8()), "row-major; M_c = heat_min + heat / 255 * (heat_max - heat_min)"),
    ]
)

QUARANTINE = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        URI,
        *SOURCE,
        described("stage", pa.string(), "list, fetch, decode, limits or model"),
        described("reason_code", pa.string(), "see README, reason codes"),
        described("detail", pa.string(), "what exactly was wrong"),
        described("permanent", pa.bool_(), "false: the next run tries this image again"),
        described("rejected_at", TIMESTAMP, "UTC"),
    ]
)

FOREGROUND = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        described("fg_h", pa.int32(), "rows of the figure/ground map; the map covers the whole upright image"),
        described("fg_w", pa.int32(), "columns of the map"),
        described("fg_min", pa.float32(), "value of 0: v·(cell − μ), low on background"),
        described("fg_max", pa.float32(), "value of 255"),
        described("fg", pa.list_(pa.uint8()), "row-major; value = fg_min + fg / 255 * (fg_max - fg_min)"),
    ]
)

FEATURES = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        described(
            "feature",
            pa.list_(pa.float32()),
            "the pooled vector that the linear layer saw; to 11 significant bits where the network ran in bf16 or fp16",
        ),
    ]
)

FEATURE_MAPS = pa.schema(
    [
        IMAGE_ID,
        RUN_ID,
        described("map_h", pa.int32(), "rows of the feature maps, padding of --resize fit included"),
        described("map_w", pa.int32(), "columns of the feature maps"),
        described("channels", pa.int32(), "K, the number of feature maps"),
        described("bits", pa.int32(), "2, 3 or 4: how fine the codes are; they are 0 to 3 with 2 bits, else 0 to 15"),
        described(
            "codes",
            pa.large_binary(),
            "channel-major codes q, four in a byte with 2 bits, else two, the first in the low bits;"
            " f_k = feature_k * q / mean(q). A last byte of 1 says that the channels lie from the largest feature down,"
            " by powers of two; without it they lie in the network's order",
        ),
    ]
)
