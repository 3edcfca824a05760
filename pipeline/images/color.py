"""Colours as they are meant to be seen: transparency laid on a ground, wide-gamut profiles converted to sRGB."""

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.images.truncation import DECODER_ERRORS
from schemas.options.annotate import Alpha

Pixels = NDArray[np.uint8]

_WHITE_LEVELS = {"white": 255, "black": 0}
_SRGB = ImageCms.createProfile("sRGB")
_SRGB_TRIANGLE = 0.1091
"""Area of the triangle of sRGB's primaries in the plane of x and y, adapted to D50 as in every ICC profile."""
WIDE_GAMUT = 1.1
"""A profile with this many times sRGB's area or more is wide-gamut: Display P3, Adobe RGB, ProPhoto.

Below it are sRGB itself in its many versions and the profiles of common monitors, whose conversion changes little.
"""
_MOST_PROFILE_BYTES = 2**22


def has_alpha(image: Image.Image) -> bool:
    """Return whether a Pillow image has an alpha channel, or a colour that counts as transparent."""
    marked = image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    return marked or image.mode in ("RGBA", "LA", "PA", "RGBa")


def lay_on(rgba: Pixels, alpha: Alpha) -> Pixels:
    """Return (H, W, 3) RGB of ``rgba`` (H, W, 4), not premultiplied, laid on white or black, or without its alpha.

    A picture whose alpha is 0 everywhere keeps its colours: the writer left the channel empty.
    """
    rgb, opacity = rgba[..., :3], rgba[..., 3:]
    if alpha == "drop" or not opacity.any() or opacity.min() == 255:
        return np.ascontiguousarray(rgb)
    weight, ground = opacity.astype(np.uint16), _WHITE_LEVELS[alpha]
    return ((rgb * weight + ground * (255 - weight) + 127) // 255).astype(np.uint8)


def to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    """Return (H, W, 3) RGB pixels in sRGB, where ``profile`` is a wide-gamut ICC profile; else ``pixels`` itself."""
    transform = wide_gamut_transform(profile) if profile else None
    if transform is None:
        return pixels
    return np.array(ImageCms.applyTransform(Image.fromarray(pixels), transform))


def wide_gamut_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from an RGB profile to sRGB; None where it is not wide-gamut or can't be read.

    Almost all files carry one of a few profiles: a known one costs a look-up.
    """
    return _transform(profile) if len(profile) <= _MOST_PROFILE_BYTES else None


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        core = opened.profile
        primaries = core.red_primary, core.green_primary, core.blue_primary
        if core.xcolor_space.strip() != "RGB" or not all(primaries):
            return None
        (x0, y0), (x1, y1), (x2, y2) = (primary[1][:2] for primary in primaries if primary)
        area = abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / 2
        if area < WIDE_GAMUT * _SRGB_TRIANGLE:
            return None
        # Threads share a transform, which its cache would not allow.
        return ImageCms.buildTransform(opened, _SRGB, "RGB", "RGB", flags=ImageCms.Flags.NOCACHE)
    except (*DECODER_ERRORS, ImageCms.PyCMSError):
        return None
