"""Decodes one encoded image to upright RGB pixels, within limits of bytes and pixels, or rejects it with a reason."""

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
"""Maps the height and width of an upright image to the least height and width to decode; see ResizePlan.least_hw."""

_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# "Grayscale" in these names means only that the bit IMREAD_COLOR_BGR is not set; IMREAD_COLOR_RGB replaces this bit.
_OPENCV_SCALES = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# Pillow reads the images that OpenCV can't read, so OpenCV's messages on stderr would only hide other messages.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class DecodeLimits:
    """The limits on decoding one image."""

    max_pixels: int
    """Greatest width times height in the header."""
    max_bytes: int
    """Greatest size of the encoded image."""
    timeout_s: float
    """Most seconds for decoding and for the function that ``DecodePool.map`` calls after it; ``decode`` ignores it."""


USUAL_LIMITS = DecodeLimits(max_pixels=100_000_000, max_bytes=100_000_000, timeout_s=30.0)
"""The defaults of ``annotate``, for images whose limits no option sets."""


class DecodedImage(NamedTuple):
    """A decoded image, upright and in RGB."""

    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB, upright, C-contiguous, writable."""
    size_hw: tuple[int, int]
    """(H, W) of the upright original in pixels; h and w are H and W divided by the scale 1, 2, 4 or 8, rounded up."""
    format: str
    """Name of the format of the content: "JPEG", "PNG", "WEBP", "TIFF", "HEIF"…

    For a 16-bit image that uses fewer bits it also names the number of bits that are the full range: "TIFF, 12 of 16
    bits".
    """


class Jpeg(NamedTuple):
    """The facts about a JPEG that are known before its pixels are decoded."""

    data: bytes
    """The encoded image, with its end marker."""
    frame: JpegFrame
    exif_orientation: int = 1
    """The EXIF orientation, 1 to 8."""
    profile: bytes | None = None
    """The ICC colour profile; None without one."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels, upright."""
        return upright_hw(self.frame.size_wh[::-1], self.exif_orientation)

    @property
    def usual(self) -> bool:
        """Whether a GPU may decode the image: the frame is usual, and the colours need no conversion."""
        return self.frame.usual and not (self.profile and wide_gamut_transform(self.profile))


def decode(
    data: bytes, limits: DecodeLimits, least_hw: LeastSize | None = None, alpha: Alpha = "white"
) -> DecodedImage:
    """Return the main picture of an encoded image as upright 8-bit RGB.

    The EXIF orientation is applied for every format; broken EXIF is ignored. An animation gives its first frame, a file
    of several pages its main page (not the thumbnail at the start of a TIFF), an icon file its largest picture. See
    ``rgb8`` for the conversion of other pixels than 8-bit RGB and for ``alpha``. libjpeg-turbo decodes JPEG, OpenCV
    decodes plain PNG, and Pillow decodes all other images and the images that the other two refuse.

    With ``least_hw`` a JPEG is decoded at the smallest of the scales 1/8, 1/4, 1/2 and 1/1 at which both sides are at
    least as long as ``least_hw`` says. A pixel is then the mean of a block of pixels; this takes less time. Where a
    side of the original is not a multiple of the scale, the last pixels lie partly beyond the edge of the original.
    Treating the picture as the whole original moves a point by less than one pixel of the picture.

    Raises RejectedImage, which rejects the row: EMPTY; TOO_MANY_BYTES and TOO_MANY_PIXELS, both before a pixel is
    decoded; NOT_AN_IMAGE; UNSUPPORTED; TRUNCATED; CORRUPT. A MemoryError is raised as it is, because the image may be
    good.
    """
    jpeg = examine(data, limits)
    return _decode_jpeg(jpeg, least_hw) if jpeg else _decode_other(main_page_first(data), limits, alpha)


def examine(data: bytes, limits: DecodeLimits) -> Jpeg | None:
    """Return the facts about a JPEG after reading all markers up to its end; None for any other format.

    Raises RejectedImage as ``decode`` does, for every reason that the size in bytes or the markers show.
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
    except RejectedImage:  # Pillow can't read the metadata, but another decoder may read the pixels.
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
    """Return whether OpenCV gives the same pixels as Pillow, and faster, for a format other than JPEG.

    It does so for plain PNG, 1.2 times as fast (median over photographs of 500×375). Pillow decodes PNG of 16 bits or
    of other colours than gray and RGB, animated or truncated PNG, PNG with a colour profile (libpng would write to
    stderr about many profiles) and PNG with EXIF after the pixels, which is found only while the pixels are loaded.
    Pillow also decodes WebP (OpenCV returns half of a damaged file without an error), BMP (OpenCV misreads 32-bit
    masks) and AVIF (OpenCV takes longer).
    """
    image = header.image
    if header.format != "PNG" or image.mode not in ("L", "RGB") or is_sixteen_bit(image):
        return False
    if getattr(image, "is_animated", False) or ends_early(header.format, data):
        return False
    late_exif = "exif" not in image.info and b"eXIf" in data
    return not ("icc_profile" in image.info or "transparency" in image.info or late_exif)


def _by_opencv(data: bytes, size_wh: tuple[int, int], scale: int = 1) -> NDArray[np.uint8] | None:
    """Return the picture as stored; None where OpenCV refuses it or its size differs from the size in the header."""
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
