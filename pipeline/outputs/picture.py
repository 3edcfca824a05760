"""Draws rows of an output on their image: ``camlake.draw(row)`` is a picture in a notebook."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.images.decode import USUAL_LIMITS, decode
from pipeline.outputs.reader import heatmap
from pipeline.storage.filesystems import read_url
from schemas.errors import InputError, RejectedImage
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

_COLORS = ("#ffb000", "#648fff", "#dc267f", "#22c55e", "#fe6100", "#785ef0")
"""Of the boxes, by rank; they also differ for most people who are colour-blind."""
_HEAT_SHARE = 0.5
"""Share of a map's colours in the picture."""


def draw(
    *rows: Mapping[str, Any],
    image: Image.Image | NDArray[np.uint8] | None = None,
    endpoint_url: str | None = None,
    profile: str | None = None,
    anonymous: bool = False,
) -> Image.Image:
    """Return the upright image of ``rows`` with their boxes and maps: a Pillow picture, which notebooks show.

    A row of ``boxes`` gives a box with its label and score, a row of ``heatmaps`` its map as colours, a row of
    ``images`` the image alone; a dict, a pandas Series or another object with the columns as keys will do. The image
    is read from the ``uri`` of the first row that has one. ``image``, a Pillow picture or (H, W, 3) uint8 RGB, stands
    in its place, as it must for an image inside a shard or a Parquet file. The other arguments are those of
    ``camlake.open``. Raises ValueError for no row and for rows of different images, InputError where the image can't be
    read.

    >>> with camlake.open("labels/") as lake:
    ...     box = lake.pandas("boxes", where="rank = 0").iloc[0]
    ...     heat = lake.pandas("heatmaps", where=f"rank = 0 AND image_id = '{box['image_id']}'").iloc[0]
    >>> camlake.draw(box, heat).size
    (64, 48)
    """
    ids = {row["image_id"] for row in rows}
    if len(ids) != 1:
        raise ValueError(f"rows of {len(ids)} images; allowed: one or more rows of one image")
    if image is None:
        storage = StorageConfig(endpoint_url=endpoint_url, profile=profile, anonymous=anonymous)
        pixels = _read(next((str(row["uri"]) for row in rows if "uri" in row), None), storage)
    else:
        upright = ImageOps.exif_transpose(image).convert("RGB") if isinstance(image, Image.Image) else image
        pixels = np.asarray(upright, np.uint8)
    for row in rows:
        if "heat" in row:
            pixels = _with_map(pixels, heatmap(row, (pixels.shape[0], pixels.shape[1])))
    picture = Image.fromarray(pixels)
    for row in rows:
        if "xmin" in row:
            _draw_box(picture, row)
    return picture


def _read(uri: str | None, storage: StorageConfig) -> NDArray[np.uint8]:
    if uri is None:
        raise ValueError("no row has a uri; allowed: also a row of images or boxes, or image=...")
    try:
        return decode(read_url(uri, storage), USUAL_LIMITS).pixels
    except RejectedImage as error:
        raise InputError(f"{safe_url(uri)} can't be drawn: {error.detail}") from error
    except InputError as error:
        inside = "; for an image inside a container pass image=..." if "#" in uri else ""
        raise InputError(f"{error}{inside}") from error


def _with_map(pixels: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (H, W, 3) pixels mixed with the colours of a map (H, W), blue at its minimum and red at its maximum."""
    low, high = float(values.min()), float(values.max())
    levels = np.rint((values - low) / (high - low or 1) * 255).astype(np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[..., ::-1]
    mixed: NDArray[np.uint8] = np.rint(pixels * (1 - _HEAT_SHARE) + colors * _HEAT_SHARE).astype(np.uint8)
    return mixed


def _draw_box(picture: Image.Image, row: Mapping[str, Any]) -> None:
    draw, color = ImageDraw.Draw(picture), _COLORS[int(row["rank"]) % len(_COLORS)]
    line_px = max(1, round(min(picture.size) / 150))
    left, top = round(float(row["xmin"])), round(float(row["ymin"]))
    # The edges are half-open: the last pixel inside is one before xmax and ymax.
    right, bottom = round(float(row["xmax"])) - 1, round(float(row["ymax"])) - 1
    draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=line_px)
    score = row.get("box_score")
    said = str(row["label"]) + (f" {float(score):.2f}" if score is not None and np.isfinite(score) else "")
    font = ImageFont.load_default(max(10, min(picture.size) / 25))
    text = draw.textbbox((left + line_px, top + line_px), said, font=font)
    draw.rectangle(text, fill=color)
    draw.text((left + line_px, top + line_px), said, fill="black", font=font)
