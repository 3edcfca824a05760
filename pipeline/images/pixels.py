"""From whatever Pillow decoded to upright 8-bit RGB."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pipeline.images.truncation import DECODER_ERRORS

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_DEEP_GRAY = ("I", "F")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")


def rgb8(image: Image.Image) -> NDArray[np.uint8]:
    """Return a Pillow image's pixels as (H, W, 3) uint8 RGB, C-contiguous and writable; loads the image.

    - 8 bits a channel, any colours: Pillow's ``convert("RGB")``, as torchvision's image folder does. Alpha is dropped,
      not blended: a transparent pixel has the colour that is stored under it.
    - 16-bit gray: the high byte, as PNG decoders do for 16-bit colours; 12 bits in a TIFF count as the whole range.
    - 32-bit integers and floats have no agreed white. Values that all lie in [0, 1] are read as black to white;
      others are stretched so that their minimum is black and their maximum white. NaN and infinities are black; a
      constant image outside of [0, 1] is black too.

    Raises what Pillow raises, see ``DECODER_ERRORS``.
    """
    image.load()
    if not image.mode.startswith(_DEEP_GRAY):
        return np.array(image.convert("RGB"))
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS):
        gray = (values >> (_significant_bits(image) - 8)).clip(0, 255).astype(np.uint8)
    else:
        gray = _stretched(values.astype(np.float64))
    return np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), np.uint8)


def _significant_bits(image: Image.Image) -> int:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16
    return int(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (16,))[0])


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

    Does not load the image: where a format may store EXIF after the pixels (PNG), load it before.
    """
    try:
        # The base class's method: PNG's own would decode the pixels.
        value = Image.Image.getexif(image).get(_EXIF_ORIENTATION)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


class Turn(NamedTuple):
    """What makes a stored picture upright: rows and columns exchanged, then their order reversed."""

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
