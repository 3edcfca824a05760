"""From a Pillow image to upright 8-bit RGB."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pipeline.images.color import has_alpha, lay_on, to_srgb
from pipeline.images.truncation import DECODER_ERRORS
from schemas.options.annotate import Alpha

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_DEEP_GRAY = ("I", "F")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")
_USED_BITS = (8, 10, 12, 14)
"""Bits that cameras and scanners use of 16."""


class Rgb(NamedTuple):
    """The pixels of a decoded image."""

    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB, C-contiguous and writable."""
    used_bits: int | None = None
    """Bits that the values take, where they are fewer than the 16 of the file; else None."""


def rgb8(image: Image.Image, data: bytes, alpha: Alpha = "white") -> Rgb:
    """Return a Pillow image as 8-bit RGB; loads the image, whose encoded bytes are ``data``.

    - 8 bits a channel, any colours: Pillow's ``convert("RGB")``, as torchvision's image folder does. A wide-gamut ICC
      profile is converted to sRGB; transparency is laid on white or black, or dropped, as ``alpha`` says.
    - 16 bits: the high byte, as PNG decoders do. Where no value needs more than 8, 10, 12 or 14 bits, these bits are
      the whole range, so that the picture is not nearly black. 12 bits in a TIFF are the whole range too.
    - 32-bit integers and floats have no agreed white. Values that all lie in [0, 1] are read as black to white;
      others are stretched so that their minimum is black and their maximum white. NaN and infinities are black; a
      constant image outside of [0, 1] is black too.

    Raises what Pillow raises, see ``DECODER_ERRORS``.
    """
    deep = is_sixteen_bit(image)
    image.load()
    if image.mode.startswith(_DEEP_GRAY):
        return _gray(image)
    with_alpha = alpha != "drop" and has_alpha(image)
    pixels = np.array(image.convert("RGBA" if with_alpha else "RGB"))
    used_bits = None
    if deep and pixels[..., :3].max(initial=0) <= 2 ** (_USED_BITS[-1] - 8):
        pixels, used_bits = _by_used_bits(pixels, data)
    rgb = to_srgb(np.ascontiguousarray(pixels[..., :3]), image.info.get("icc_profile"))
    return Rgb(lay_on(np.dstack([rgb, pixels[..., 3]]), alpha) if with_alpha else rgb, used_bits)


def is_sixteen_bit(image: Image.Image) -> bool:
    """Return whether the channels of a Pillow image that is not loaded have 16 bits in the file."""
    tiles = getattr(image, "tile", ())  # an icon's picture has none
    return any(";16" in str(tile) or (tile[0] == "ppm" and tile[3][1:] == (2**16 - 1,)) for tile in tiles)


def _gray(image: Image.Image) -> Rgb:
    values, used_bits = np.asarray(image), None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS):
        bits = _declared_bits(image)
        used_bits = _used_bits(values) if bits == 16 else None
        gray = (values >> ((used_bits or bits) - 8)).clip(0, 255).astype(np.uint8)
    else:
        gray = _stretched(values.astype(np.float64))
    return Rgb(np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), np.uint8), used_bits)


def _declared_bits(image: Image.Image) -> int:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16
    return int(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (16,))[0])


def _used_bits(values: NDArray[np.integer]) -> int | None:
    """Return the fewest of 8, 10, 12 and 14 bits that hold all of the 16-bit values; None where none does, or for 0."""
    highest = int(values.max(initial=0))
    return next((bits for bits in _USED_BITS if 0 < highest < 2**bits), None)


def _by_used_bits(pixels: NDArray[np.uint8], data: bytes) -> tuple[NDArray[np.uint8], int | None]:
    """Return the pixels of 16-bit colours by the bits they use, and how many; ``pixels`` where OpenCV can't read them.

    Pillow keeps only the high bytes of 16-bit colours. ``pixels``: (H, W, 3 or 4), as Pillow has them.
    """
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.shape[:2] != pixels.shape[:2] or values.ndim != 3:
        return pixels, None
    colors = np.asarray(values[..., 2::-1], np.uint16)
    used_bits = _used_bits(colors)
    if used_bits is None:
        return pixels, None
    return np.dstack([(colors >> (used_bits - 8)).astype(np.uint8), pixels[..., 3:]]), used_bits


def _stretched(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    low = float(values.min(where=finite, initial=np.inf))
    high = float(values.max(where=finite, initial=-np.inf))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    unit = (np.where(finite, values, low) - low) / (high - low)
    return np.rint(unit * 255).astype(np.uint8)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of a Pillow image; 1 where there is none, or none that can be read.

    The image is not loaded. PNG may store EXIF behind the pixels: load such an image before.
    """
    try:
        # The base class's method: PNG's own would decode the pixels.
        value = Image.Image.getexif(image).get(_EXIF_ORIENTATION)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


class Turn(NamedTuple):
    """How a stored picture is made upright: rows and columns are exchanged, then their order is reversed."""

    transpose: bool
    flip_rows: bool
    flip_cols: bool


TURNS = {
    1: Turn(False, False, False),
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}
"""By EXIF orientation."""
_OPENCV_FLIPS = {(True, False): 0, (False, True): 1, (True, True): -1}


def upright_hw(size_hw: tuple[int, int], exif_orientation: int) -> tuple[int, int]:
    """Return the (height, width) that ``upright`` gives to a picture stored with ``size_hw``."""
    return size_hw[::-1] if TURNS[exif_orientation].transpose else size_hw


def upright(pixels: NDArray[np.uint8], exif_orientation: int) -> NDArray[np.uint8]:
    """Return (H, W, 3) pixels as they are meant to be seen, H and W exchanged by orientations 5 to 8 (of 1 to 8)."""
    transpose, *flips = TURNS[exif_orientation]
    if transpose:
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
    return np.asarray(cv2.flip(pixels, _OPENCV_FLIPS[flips[0], flips[1]]), np.uint8) if any(flips) else pixels
