"""The pictures of an output, fetched and decoded again from where they were annotated."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import cv2
import duckdb
import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.images.decode import DecodedImage, DecodeLimits
from pipeline.images.decode_pool import DecodePool
from pipeline.outputs.drawing import Pixels
from pipeline.outputs.export.plans import PLAN_TABLE
from pipeline.storage.inputs.fetch import Fetcher
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig
from schemas.reasons import Reason
from schemas.tables import PLAN

T = TypeVar("T")

LIMITS = DecodeLimits(max_pixels=100_000_000, max_bytes=100_000_000, timeout_s=30)
PART_BYTES = 64 * 2**20
"""Most encoded bytes that are in memory at a time."""
QUALITIES = (76, 62, 48, 34)
"""Qualities of WebP that are tried until a picture is small enough; then its sides are halved."""

_VERSION = ("etag", "size_bytes", "modified_at")
_PLANNED = f"""
SELECT images.image_id, images.uri, images.etag, images.size_bytes, images.modified_at, plans.path, plans."offset"
FROM (SELECT * FROM images WHERE model = $model AND image_id IN (SELECT unnest($ids::VARCHAR[]))) AS images
JOIN {PLAN_TABLE} AS plans ON plans.image_id = images.image_id
    AND {" AND ".join(f"plans.{one} IS NOT DISTINCT FROM images.{one}" for one in _VERSION)}
ORDER BY plans.path, plans."offset"
"""


def read_pictures(
    con: duckdb.DuckDBPyConnection,
    model: str,
    ids: Sequence[str],
    storage: StorageConfig,
    side_px: int | None,
    then: Callable[[DecodedImage], T],
) -> Iterator[tuple[str, T | RejectedImage]]:
    """Yield each image_id of ``ids`` once, with ``then`` of its picture or the reason why it can't be read.

    ``con`` has the views of an output and PLAN_TABLE. ``side_px``: a picture whose longer side is at least as long is
    enough; None: the whole picture. The order is that of the files.
    """
    plan = con.execute(_PLANNED, {"model": model, "ids": list(ids)}).to_arrow_table()
    plan = pa.table([plan[one] if one in plan.column_names else pa.nulls(len(plan)) for one in PLAN.names], PLAN.names)
    found = set(plan["image_id"].to_pylist())
    for one in ids:
        if one not in found:
            yield one, RejectedImage(Reason.NOT_FOUND, "no plan of a run says where it lies")
    pool = DecodePool(LIMITS, os.cpu_count() or 1, None if side_px is None else _least(side_px))
    for part, fetched in Fetcher(storage, LIMITS.max_bytes).fetch_in_parts(plan.cast(PLAN), PART_BYTES, 2**22, 512):
        blobs = [None if isinstance(one, RejectedImage) else one for one in fetched]
        decoded = pool.map(blobs, lambda _, picture: then(picture))
        for image_id, came, made in zip(part["image_id"].to_pylist(), fetched, decoded, strict=True):
            yield image_id, came if isinstance(came, RejectedImage) else made


def _least(side_px: int) -> Callable[[int, int], tuple[int, int]]:
    def least_hw(height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, side_px / max(height, width))
        return round(height * scale), round(width * scale)

    return least_hw


def webp(pixels: Pixels, side_px: int, most_bytes: int | None = None) -> bytes:
    """Return ``pixels`` (H, W, 3) as WebP with a longer side of at most ``side_px``.

    Where it has more than ``most_bytes``, its quality falls by the steps of QUALITIES, then its sides are halved.
    """
    while True:
        small = _smaller(pixels, side_px)
        for quality in QUALITIES:
            data = _encoded(small, quality)
            if most_bytes is None or len(data) <= most_bytes:
                return data
        if side_px <= 64:
            return data
        side_px //= 2


def _smaller(pixels: Pixels, side_px: int) -> Pixels:
    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _encoded(pixels: Pixels, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()
