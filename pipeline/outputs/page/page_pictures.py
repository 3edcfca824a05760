"""The pictures of an output, fetched and decoded again from where they were annotated."""

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import duckdb
from PIL import Image

from pipeline.images.decode import USUAL_LIMITS, DecodedImage
from pipeline.images.decode_pool import DecodePool
from pipeline.outputs.drawing import Pixels, smaller
from pipeline.outputs.export.plans import PLAN_TABLE
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.lake.rows import plan_rows
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig
from schemas.reasons import Reason

T = TypeVar("T")

QUALITY, MEDIUM_QUALITY, LEAST_QUALITY = 66, 50, 34
"""Qualities of WebP. Photographs of 480 pixels have about 16, 13 and 11 kB."""
_MEDIUM_SHARE = 0.84
"""MEDIUM_QUALITY is tried for a picture that has not much more bytes than are allowed."""
_METHOD = 2
"""Effort of the encoder: 12 ms for 480 pixels; the default of 4 takes 25 ms for 6 % fewer bytes."""

_VERSION = ("etag", "size_bytes", "modified_at")
_PLANNED = f"""
SELECT images.image_id, images.uri, images.etag, images.size_bytes, images.modified_at, plans.path, plans."offset"
FROM (SELECT * FROM {{images}} WHERE model = $model AND image_id IN (SELECT unnest($ids::VARCHAR[]))) AS images
JOIN (SELECT * FROM {PLAN_TABLE} WHERE image_id IN (SELECT unnest($ids::VARCHAR[]))) AS plans
    ON plans.image_id = images.image_id
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
    images: str = "images",
) -> Iterator[tuple[str, T | RejectedImage]]:
    """Yield each image_id of ``ids`` once, with ``then`` of its picture or the reason why it can't be read.

    ``con`` has the views of an output and PLAN_TABLE; ``images`` names the table of the current images. ``side_px``: a
    picture whose longer side is at least as long is enough; None: the whole picture. The order is that of the files.
    """
    chosen = {"model": model, "ids": list(ids)}
    plan = plan_rows(con.sql(_PLANNED.format(images=images), params=chosen).to_arrow_table())
    found = set(plan["image_id"].to_pylist())
    for one in ids:
        if one not in found:
            yield one, RejectedImage(Reason.NOT_FOUND, "no plan of a run says where it lies")
    threads = max(1, min(os.cpu_count() or 1, len(plan)))
    pool = DecodePool(USUAL_LIMITS, threads, None if side_px is None else _least(side_px))
    fetcher = Fetcher(storage, USUAL_LIMITS.max_bytes)
    for part, fetched in fetcher.fetch_in_parts(plan):
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

    Where it has more than ``most_bytes``, first its quality falls, then its sides, to 64 pixels at the least.
    """
    quality = QUALITY
    while True:
        data = _encoded(smaller(pixels, side_px), quality)
        share = 1.0 if most_bytes is None else most_bytes / len(data)
        if share >= 1 or side_px <= 64:
            return data
        if quality > LEAST_QUALITY:
            quality = MEDIUM_QUALITY if quality == QUALITY and share > _MEDIUM_SHARE else LEAST_QUALITY
        else:
            side_px = max(64, int(side_px * 0.95 * math.sqrt(share)))


def _encoded(pixels: Pixels, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=_METHOD)
    return file.getvalue()
