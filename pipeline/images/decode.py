"""Decodes one encoded image to upright RGB pixels, or rejects it with a reason, within limits of bytes and pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.color import to_srgb, wide_gamut_transform
from pipeline.images.formats import Header, open_header, refusal
from pipeline.images.jpeg import (
    JPEG_START,
    JpegFrame,
    check_blocks,
    decode_blocks,
    read_frame,
    scale_for,
    scaled,
    with_its_end,
)
from pipeline.images.pixels import is_sixteen_bit, orientation, rgb8, upright, upright_hw
from pipeline.images.tiff_pages import main_page_first
from pipeline.images.truncation import DECODER_ERRORS, ends_early
from schemas.errors import RejectedImage
from schemas.options.annotate import Alpha
from schemas.reasons import Reason

LeastSize: TypeAlias = Callable[[int, int], tuple[int, int]]
"""From the height and width of an upright image to the least that its pixels need; see ResizePlan.least_hw."""

_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# "Grayscale" is only the lack of the bit IMREAD_COLOR_BGR, which IMREAD_COLOR_RGB excludes and takes the place of.
_OPENCV_SCALES = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# Pillow reads next what OpenCV can't read; OpenCV's lines on stderr would only hide what matters.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class DecodeLimits:
    """What one image may cost."""

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
    """Name of the format by content: "JPEG", "PNG", "WEBP", "TIFF", "HEIF"…

    Of a 16-bit image that uses fewer bits also how many are taken as the whole range: "TIFF, 12 of 16 bits".
    """


class Jpeg(NamedTuple):
    """What is known of a JPEG before its pixels are decoded."""

    data: bytes
    """The encoded image, with its end marker."""
    frame: JpegFrame
    exif_orientation: int = 1
    """1 to 8."""
    profile: bytes | None = None
    """Its ICC profile."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels, upright."""
        return upright_hw(self.frame.size_wh[::-1], self.exif_orientation)

    @property
    def usual(self) -> bool:
        """Whether a device may decode it: the frame is usual, and its colours need no conversion."""
        return self.frame.usual and not (self.profile and wide_gamut_transform(self.profile))


def decode(
    data: bytes, limits: DecodeLimits, least_hw: LeastSize | None = None, alpha: Alpha = "white"
) -> DecodedImage:
    """Return the picture that people mean by an encoded image, as upright 8-bit RGB.

    The EXIF orientation is applied for every format; broken EXIF is ignored. Animations give their first frame, files
    of several pages or pictures their main one: not the thumbnail that a TIFF begins with, and the largest of an icon.
    How other images than 8-bit RGB are converted, and what ``alpha`` says, stands at ``rgb8``. libjpeg-turbo decodes
    JPEG, OpenCV plain PNG, Pillow everything else and what the others refuse.

    With ``least_hw`` a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1/1 that keeps both sides at least so long:
    each pixel is then the mean of a block of the original's, made from fewer cosine terms, which takes less time. Where
    a side is no multiple of the scale, its last pixels lie partly beyond the original's edge; taken as the whole of it,
    the picture is off by less than one of its own pixels there, and proportionately less elsewhere.

    Raises RejectedImage with: EMPTY; TOO_MANY_BYTES and TOO_MANY_PIXELS, both before a pixel is decoded;
    NOT_AN_IMAGE; UNSUPPORTED; TRUNCATED; CORRUPT. MemoryError passes: it says nothing about the image.
    """
    jpeg = examine(data, limits)
    return _decode_jpeg(jpeg, least_hw) if jpeg else _decode_other(main_page_first(data), limits, alpha)


def examine(data: bytes, limits: DecodeLimits) -> Jpeg | None:
    """Return what a JPEG's markers say, all of them followed to its end; None for any other format.

    Raises RejectedImage as ``decode`` does, for all that the markers tell.
    """
    if not data:
        raise RejectedImage(Reason.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise RejectedImage(Reason.TOO_MANY_BYTES, f"{len(data)} bytes; max_bytes is {limits.max_bytes}")
    if not data.startswith(JPEG_START):
        return None
    frame = read_frame(data)
    _check_pixels(frame.size_wh, limits)
    whole = with_its_end(data, frame)
    if not frame.metadata:
        return Jpeg(whole, frame)
    try:
        image = open_header(whole).image
    except RejectedImage:  # metadata that Pillow can't read, in a JPEG that another decoder may read
        return Jpeg(whole, frame)
    return Jpeg(whole, frame, orientation(image), image.info.get("icc_profile"))


def _decode_jpeg(jpeg: Jpeg, least_hw: LeastSize | None) -> DecodedImage:
    scale = scale_for(jpeg.size_hw, least_hw(*jpeg.size_hw)) if least_hw else 1
    pixels = None
    if jpeg.frame.plain:
        pixels = decode_blocks(jpeg.data, jpeg.frame, scale)
        pixels = _by_opencv(jpeg.data, jpeg.frame.size_wh, scale) if pixels is None else pixels
    else:
        check_blocks(jpeg.data, jpeg.frame)
    if pixels is None:
        return _by_pillow(jpeg.data, open_header(jpeg.data), "drop")
    return DecodedImage(upright(to_srgb(pixels, jpeg.profile), jpeg.exif_orientation), jpeg.size_hw, "JPEG")


def _decode_other(data: bytes, limits: DecodeLimits, alpha: Alpha) -> DecodedImage:
    header = open_header(data)
    _check_pixels(header.image.size, limits)
    pixels = _by_opencv(data, header.image.size) if _opencv_reads_right(data, header) else None
    if pixels is None:
        return _by_pillow(data, header, alpha)
    return _upright(pixels, header, header.format)


def _check_pixels(size_wh: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size_wh
    if width < 1 or height < 1:
        raise RejectedImage(Reason.CORRUPT, f"size {width}x{height}")
    if width * height > limits.max_pixels:
        raise RejectedImage(Reason.TOO_MANY_PIXELS, f"{width}x{height} pixels; max_pixels is {limits.max_pixels}")


def _opencv_reads_right(data: bytes, header: Header) -> bool:
    """Tell whether OpenCV gives the pixels that Pillow gives, and sooner, for a format other than JPEG.

    That is plain PNG, which OpenCV decodes 1.2 times as fast (median over photographs of 500×375). Left to Pillow: PNG
    of 16 bits or other colours than gray and RGB, animated or cut off, with a colour profile (libpng would write to
    stderr about many of them), or with EXIF after the pixels, which only a load finds; WebP (OpenCV shows half of a
    damaged file without a word); BMP (OpenCV misreads 32-bit masks); AVIF (OpenCV takes longer).
    """
    image = header.image
    if header.format != "PNG" or image.mode not in ("L", "RGB") or is_sixteen_bit(image):
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


def _by_pillow(data: bytes, header: Header, alpha: Alpha) -> DecodedImage:
    try:
        pixels, used_bits = rgb8(header.image, data, alpha)
    except DECODER_ERRORS as error:
        raise refusal(error, header.format, data) from error
    return _upright(pixels, header, f"{header.format}, {used_bits} of 16 bits" if used_bits else header.format)


def _upright(pixels: NDArray[np.uint8], header: Header, name: str) -> DecodedImage:
    turned = upright(pixels, orientation(header.image))
    return DecodedImage(turned, turned.shape[:2], name)
