"""Encoded images in, upright RGB pixels or a true reason out, bounded in bytes, pixels and time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.formats import Header, open_header, refusal
from pipeline.images.jpeg import JPEG_START, JpegFrame, check_scans, read_frame, scale_for, scaled
from pipeline.images.pixels import orientation, rgb8, upright, upright_hw
from pipeline.images.truncation import DECODER_ERRORS, ends_early
from schemas.errors import RejectedImage
from schemas.reasons import Reason

LeastSize: TypeAlias = Callable[[int, int], tuple[int, int]]
"""From an upright image's height and width to those that its pixels need at least; see ResizePlan.least_hw."""

_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# "Grayscale" is only the lack of the bit IMREAD_COLOR_BGR, which IMREAD_COLOR_RGB excludes and takes the place of.
_OPENCV_SCALES = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# What OpenCV can't read, Pillow gets next; a line on stderr for each such image would only hide what matters.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class DecodeLimits:
    """How much one image may cost."""

    max_pixels: int
    """Width times height, as the header declares them."""
    max_bytes: int
    """Size of the encoded image."""
    timeout_s: float
    """Seconds that decoding, and what ``DecodePool.map`` does right after, may take; ``decode`` alone ignores it."""


class DecodedImage(NamedTuple):
    """An image as it is meant to be seen."""

    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB, upright, C-contiguous, writable."""
    size_hw: tuple[int, int]
    """(H, W) of the original, upright, in pixels: h and w, or 2, 4 or 8 times as much, less what was rounded up."""
    format: str
    """Name of the format by content: "JPEG", "PNG", "WEBP", "TIFF", "HEIF"…"""


class Jpeg(NamedTuple):
    """What is known of a JPEG before its pixels are decoded."""

    frame: JpegFrame
    exif_orientation: int
    """1 to 8."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return height and width in pixels, upright."""
        return upright_hw(self.frame.size_wh[::-1], self.exif_orientation)


def decode(data: bytes, limits: DecodeLimits, least_hw: LeastSize | None = None) -> DecodedImage:
    """Return the first picture of an encoded image as upright 8-bit RGB.

    The EXIF orientation is applied for every format; broken EXIF is ignored. Animations, multi-page and multi-picture
    files give their first frame. How other than 8-bit RGB is converted stands at ``rgb8``. OpenCV decodes JPEG
    and plain PNG, Pillow everything else and what OpenCV refuses.

    With ``least_hw`` a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1/1 that keeps both sides at least so long:
    each pixel is then the mean of a block of the original's, made from fewer cosine terms, which takes less time. Where
    a side is no multiple of the scale, its last pixels lie partly beyond the original's edge; taken as the whole of it,
    the picture is off by less than one of its own pixels there, and proportionately less elsewhere.

    Raises RejectedImage with: EMPTY; TOO_MANY_BYTES and TOO_MANY_PIXELS, both before a pixel is decoded;
    NOT_AN_IMAGE; UNSUPPORTED; TRUNCATED; CORRUPT. MemoryError passes: it says nothing about the image.
    """
    jpeg = examine(data, limits)
    return _decode_jpeg(data, jpeg, least_hw) if jpeg else _decode_other(data, limits)


def examine(data: bytes, limits: DecodeLimits) -> Jpeg | None:
    """Return what a JPEG's markers say, all of them followed to its end; None for any other format.

    Raises RejectedImage as ``decode`` does, for what can be known without decoding a pixel.
    """
    if not data:
        raise RejectedImage(Reason.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise RejectedImage(Reason.TOO_MANY_BYTES, f"{len(data)} bytes; max_bytes is {limits.max_bytes}")
    if not data.startswith(JPEG_START):
        return None
    frame = read_frame(data)
    _check_pixels(frame.size_wh, limits)
    check_scans(data, frame.scan_start)
    return Jpeg(frame, _jpeg_orientation(data) if frame.metadata else 1)


def _decode_jpeg(data: bytes, jpeg: Jpeg, least_hw: LeastSize | None) -> DecodedImage:
    scale = scale_for(jpeg.size_hw, least_hw(*jpeg.size_hw)) if least_hw else 1
    pixels = _by_opencv(data, jpeg.frame.size_wh, scale) if jpeg.frame.plain else None
    if pixels is None:
        return _by_pillow(data, open_header(data))
    return DecodedImage(upright(pixels, jpeg.exif_orientation), jpeg.size_hw, "JPEG")


def _jpeg_orientation(data: bytes) -> int:
    try:
        return orientation(open_header(data).image)
    except RejectedImage:  # metadata that Pillow stumbles over, in a JPEG that OpenCV may decode
        return 1


def _decode_other(data: bytes, limits: DecodeLimits) -> DecodedImage:
    header = open_header(data)
    _check_pixels(header.image.size, limits)
    pixels = _by_opencv(data, header.image.size) if _opencv_reads_right(data, header) else None
    if pixels is None:
        return _by_pillow(data, header)
    return _upright(pixels, header)


def _check_pixels(size_wh: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size_wh
    if width < 1 or height < 1:
        raise RejectedImage(Reason.CORRUPT, f"size {width}x{height}")
    if width * height > limits.max_pixels:
        raise RejectedImage(Reason.TOO_MANY_PIXELS, f"{width}x{height} pixels; max_pixels is {limits.max_pixels}")


def _opencv_reads_right(data: bytes, header: Header) -> bool:
    """Tell whether OpenCV gives the pixels that Pillow gives, and sooner, for a format other than JPEG.

    That is plain PNG, sooner by 1.2 times (JPEG: 1.6; medians over photographs of 500×375). Left to Pillow: PNG of
    other colours than gray and RGB, animated or cut off, with a colour profile (libpng would write to stderr about
    many of them), or with EXIF after the pixels, which only a load finds; WebP (OpenCV shows half of a damaged file
    without a word); BMP (OpenCV misreads 32-bit masks); AVIF (OpenCV takes longer).
    """
    image = header.image
    if header.format != "PNG" or image.mode not in ("L", "RGB"):
        return False
    if getattr(image, "is_animated", False) or ends_early(header.format, data):
        return False
    late_exif = "exif" not in image.info and b"eXIf" in data
    return not ("icc_profile" in image.info or "transparency" in image.info or late_exif)


def _by_opencv(data: bytes, size_wh: tuple[int, int], scale: int = 1) -> NDArray[np.uint8] | None:
    """Return the picture as stored, or None where OpenCV refuses it or reads another size than the header's."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _OPENCV_FLAGS | _OPENCV_SCALES[scale])
    except cv2.error:
        return None
    if pixels is None or pixels.shape[1::-1] != scaled(size_wh, scale):
        return None
    return np.asarray(pixels, np.uint8)


def _by_pillow(data: bytes, header: Header) -> DecodedImage:
    try:
        pixels = rgb8(header.image)
    except DECODER_ERRORS as error:
        raise refusal(error, header.format, data) from error
    return _upright(pixels, header)


def _upright(pixels: NDArray[np.uint8], header: Header) -> DecodedImage:
    turned = upright(pixels, orientation(header.image))
    return DecodedImage(turned, turned.shape[:2], header.format)
