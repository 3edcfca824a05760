"""Deep and transparent pictures and wide gamuts become the colors that people mean."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import examine
from schemas.options.annotate import AnnotateConfig
from schemas.reasons import Reason
from tests import color_profiles as icc
from tests.pictures import LIMITS, PHOTO, RNG, encoded, jpeg, picture, reason


def deep(pixels, bits, extension):
    """16-bit RGB or gray whose values take ``bits`` bits."""
    values = pixels.astype(np.uint16) << (bits - 8) | pixels >> (16 - bits)
    stored = values if values.ndim == 2 else values[..., ::-1]
    return cv2.imencode(extension, np.ascontiguousarray(stored))[1].tobytes()


BRIGHT = PHOTO.copy()
BRIGHT[0, 0] = 255


@pytest.mark.parametrize("extension", [".png", ".tiff", ".pgm"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("gray", [True, False])
def test_sixteen_bits_by_the_range_that_is_used(extension, bits, gray):
    pixels = BRIGHT[..., 1] if gray else BRIGHT
    data = deep(pixels, bits, ".ppm" if extension == ".pgm" and not gray else extension)
    shown = picture(data)
    expected = np.dstack([pixels] * 3) if gray else pixels
    np.testing.assert_allclose(shown.pixels, expected, atol=1)
    name = {".png": "PNG", ".tiff": "TIFF", ".pgm": "PPM"}[extension]
    assert shown.format == (name if bits == 16 else f"{name}, {bits} of 16 bits")


@pytest.mark.parametrize("highest", [0, 2**14, 2**15, 2**16 - 1])
def test_other_sixteen_bit_pictures_keep_their_high_byte(highest):
    values = np.linspace(0, highest, 64, dtype=np.uint16).reshape(8, 8)
    shown = picture(cv2.imencode(".png", values)[1].tobytes())
    assert shown.format == "PNG"
    np.testing.assert_array_equal(shown.pixels[..., 0], values >> 8)


ALPHA = np.zeros(PHOTO.shape[:2], np.uint8)
ALPHA[:, 50:100], ALPHA[:, 100:] = 128, 255
RGBA = np.dstack([PHOTO, ALPHA])
GROUNDS = {"white": 255, "black": 0}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TGA", {}), ("WEBP", {"lossless": True, "exact": True}), ("QOI", {})],
)
@pytest.mark.parametrize("alpha", ["white", "black", "drop"])
def test_transparent_pictures(kind, options, alpha):
    shown = picture(encoded(Image.fromarray(RGBA), kind, **options), alpha=alpha).pixels
    weight = ALPHA[..., None] / 255
    expected = PHOTO if alpha == "drop" else PHOTO * weight + GROUNDS[alpha] * (1 - weight)
    np.testing.assert_allclose(shown, expected, atol=0.51)


def transparent_palette(kind):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    return encoded(image, kind, transparency=0)


TRANSPARENT = {
    "PNG palette": (transparent_palette("PNG"), [[255] * 3, [200, 100, 50]]),
    "GIF": (transparent_palette("GIF"), [[255] * 3, [200, 100, 50]]),
    "PNG gray and alpha": (
        encoded(Image.fromarray(np.array([[[9, 0], [9, 255]]], np.uint8))),
        [[255] * 3, [9] * 3],
    ),
    "a transparent colour": (
        encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), transparency=(1, 2, 3)),
        [[255] * 3, [4, 5, 6]],
    ),
    "a transparent gray": (
        encoded(Image.fromarray(np.array([[7, 8]], np.uint8)), transparency=7),
        [[255] * 3, [8] * 3],
    ),
    "an alpha that was never filled in": (encoded(Image.new("RGBA", (2, 1), (3, 4, 5, 0)), "TGA"), [[3, 4, 5]] * 2),
}


@pytest.mark.parametrize(("data", "expected"), TRANSPARENT.values(), ids=TRANSPARENT)
def test_every_way_to_be_transparent(data, expected):
    assert picture(data).pixels.tolist() == [expected]


def test_alpha_shapes_the_rows():
    config = AnnotateConfig(input="in", out="out")
    assert config.settings()["alpha"] == config.alpha == "white"


WIDE = {"Adobe RGB": icc.ADOBE_RGB, "Display P3": icc.DISPLAY_P3, "ProPhoto": icc.PROPHOTO, "Rec. 2020": icc.REC2020}
SWATCHES = np.repeat(np.repeat(RNG.integers(0, 256, (4, 5, 3), np.uint8), 16, 0), 16, 1)
LOSSLESS = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("space", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize(("kind", "options"), LOSSLESS.items())
def test_a_wide_gamut_becomes_srgb(space, kind, options):
    plain = encoded(Image.fromarray(SWATCHES), kind, **options)
    stored = picture(plain).pixels
    data = encoded(Image.fromarray(SWATCHES), kind, **options, icc_profile=icc.profile(space))
    shown = picture(data).pixels
    assert np.abs(shown.astype(int) - stored).max() > 20
    np.testing.assert_allclose(shown, icc.in_srgb(stored, space), atol=3)


@pytest.mark.parametrize(
    "profile",
    [icc.profile(icc.SRGB), b"no profile", icc.profile(icc.PROPHOTO)[:200], icc.profile(icc.PROPHOTO, b"GRAY")],
    ids=["sRGB", "nonsense", "cut off", "of another space"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_other_profiles_change_nothing(profile, kind):
    plain = encoded(Image.fromarray(SWATCHES), kind)
    data = encoded(Image.fromarray(SWATCHES), kind, icc_profile=profile)
    np.testing.assert_array_equal(picture(data).pixels, picture(plain).pixels)


def test_a_transparent_picture_of_a_wide_gamut():
    pixels = np.dstack([SWATCHES, np.full(SWATCHES.shape[:2], 255, np.uint8)])
    pixels[0, 0, 3] = 0
    shown = picture(encoded(Image.fromarray(pixels), icc_profile=icc.profile(icc.ADOBE_RGB))).pixels
    assert shown[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(shown[1:], icc.in_srgb(SWATCHES, icc.ADOBE_RGB)[1:], atol=3)


@pytest.mark.parametrize(("space", "usual"), [(icc.SRGB, True), (icc.ADOBE_RGB, False)])
def test_a_device_decodes_no_wide_gamut(space, usual):
    assert examine(jpeg(icc_profile=icc.profile(space)), LIMITS).usual == usual


@pytest.mark.parametrize(
    "start",
    [b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0\0\0", b"IIU\0\x08\0\0\0", b"FOVb\0\0\0\0", b"II\x1a\0\0\0HEAPCCDR"],
)
def test_camera_raws_that_are_no_tiff_are_unsupported(start):
    assert reason(start + bytes(500)) == Reason.UNSUPPORTED
