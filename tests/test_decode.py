"""Decoding: exact pixels for every kind of image, upright; the decoder's threads and their timeout."""

import io
import struct
import threading
import time
import zlib

import numpy as np
import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.images.decode import DecodedImage, DecodeLimits, decode
from pipeline.images.decode_pool import DecodePool
from schemas.errors import RejectedImage
from schemas.reasons import Reason
from tests.pictures import ORIENTATION, RGB, SMOOTH, encoded, png_chunk, tiff

LIMITS = DecodeLimits(max_pixels=1_000_000, max_bytes=1_000_000, timeout_s=30.0)


def pixels_of(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels


def gray_row(data: bytes) -> list[int]:
    """The first row of a picture that must be gray."""
    pixels = pixels_of(data)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
        ("TGA", {"compression": "tga_rle"}),
        ("JPEG2000", {"irreversible": False}),
        ("QOI", {}),
        ("SGI", {}),
        ("PCX", {}),
        ("DDS", {}),
        ("ICO", {"sizes": [(7, 5)]}),
    ],
)
def test_lossless_formats_give_exact_pixels(kind: str, options: dict[str, object]) -> None:
    image = decode(encoded(RGB, kind, **options), LIMITS)
    assert image.format == kind
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert image.pixels.flags.writeable
    np.testing.assert_array_equal(image.pixels, RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}])
def test_jpeg_is_what_pillow_decodes(options: dict[str, object]) -> None:
    data = encoded(SMOOTH, "JPEG", quality=90, **options)
    np.testing.assert_allclose(pixels_of(data), np.asarray(Image.open(io.BytesIO(data))), atol=2)
    np.testing.assert_allclose(pixels_of(data), SMOOTH, atol=40)


def test_gray_jpeg() -> None:
    assert gray_row(encoded(np.full((8, 8), 77, np.uint8), "JPEG", quality=100)) == [77] * 8


def test_cmyk_jpeg_is_not_inverted() -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels_of(encoded(inks, "JPEG", quality=100))[0, 0], (255, 0, 0), atol=3)


def test_heic_and_avif() -> None:
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(SMOOTH)).save(stream, quality=100)
    for name, data in (("HEIF", stream.getvalue()), ("AVIF", encoded(SMOOTH, "AVIF", quality=100))):
        image = decode(data, LIMITS)
        assert image.format == name
        np.testing.assert_allclose(image.pixels, SMOOTH, atol=30)


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    levels, expected = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16), [0, 0, 1, 127, 255]
    assert gray_row(encoded(levels)) == expected
    assert gray_row(encoded(levels, "TIFF")) == expected
    assert gray_row(b"P5 5 1 65535\n" + levels.astype(">u2").tobytes()) == expected


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    rows = b"\0" + struct.pack(">6H", 0, 255, 256, 0x7FFF, 0xFF00, 0xFFFF)
    head = png_chunk(b"IHDR", struct.pack(">LLBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert pixels_of(data).tolist() == [[[0, 0, 1], [127, 255, 255]]]


def test_twelve_bits_are_the_whole_range() -> None:
    assert gray_row(tiff(12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10]), 4)) == [0, 128, 255, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.2, 0.2, 0.2], [51, 51, 51]),
        ([10.0, 20.0, 30.0], [0, 128, 255]),
        ([-1.0, 1.0, float("nan")], [0, 255, 0]),
        ([float("inf"), 0.0, 1.0], [0, 0, 255]),
        ([7.0, 7.0, 7.0], [0, 0, 0]),
        ([float("nan")] * 3, [0, 0, 0]),
    ],
)
def test_float_tiff(values: list[float], expected: list[int]) -> None:
    assert gray_row(encoded(np.array([values], np.float32), "TIFF")) == expected


def test_32_bit_integers_are_stretched() -> None:
    assert gray_row(encoded(np.array([[-100, 0, 100, 100_100]], np.int32), "TIFF")) == [0, 0, 1, 255]


def test_palette_bilevel_and_alpha() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([1, 0])
    expected = [[[200, 100, 50], [10, 20, 30]]]
    assert pixels_of(encoded(palette)).tolist() == expected
    assert pixels_of(encoded(palette, "GIF")).tolist() == expected
    half = [[[227, 177, 152], [255, 255, 255]]]
    assert pixels_of(encoded(palette, transparency=b"\0\x80")).tolist() == half, "laid on white"
    assert gray_row(encoded(Image.fromarray(np.array([[True, False]])))) == [255, 0]
    assert gray_row(encoded(Image.new("LA", (1, 1), (90, 0)))) == [90]
    # An alpha that is 0 everywhere was never filled in: a fully transparent red is red.
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert pixels_of(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), kind, **options)).tolist() == [
            [[255, 0, 0]]
        ]


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_first_frame(kind: str, options: dict[str, object]) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    pixels = pixels_of(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert pixels.shape == (3, 4, 3)
    assert (pixels == (255, 0, 0)).all()


def test_multi_picture_jpeg_gives_the_first() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("white", "black")]
    image = decode(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]), LIMITS)
    assert image.format == "JPEG"
    assert (image.pixels == 255).all()


# What a 3×2 picture with the rows 1 2 3 and 4 5 6 looks like upright, by its EXIF orientation.
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@given(orientation=st.sampled_from(sorted(UPRIGHT)), kind=st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP"]), alpha=...)
def test_orientation(orientation: int, kind: str, alpha: bool) -> None:
    # Blocks of 8×8 pixels survive JPEG; a transparent picture takes the slow path.
    stored = np.kron(np.array(UPRIGHT[1]) * 40, np.ones((8, 8))).astype(np.uint8)
    image = Image.fromarray(stored).convert("RGBA" if alpha and kind != "JPEG" else "RGB")
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    pixels = pixels_of(encoded(image, kind, exif=exif(orientation), **options))
    np.testing.assert_allclose(pixels[4::8, 4::8, 0] / 40, UPRIGHT[orientation], atol=0.05)
    assert pixels.flags.c_contiguous


def test_orientation_stored_after_the_pixels_of_a_png() -> None:
    data = encoded(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    late = data[:-12] + png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    assert pixels_of(late)[..., 0].tolist() == UPRIGHT[6]


@pytest.mark.parametrize(
    "broken", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"]
)
def test_broken_exif_is_ignored(broken: bytes) -> None:
    for kind in ("JPEG", "WEBP"):
        assert pixels_of(encoded(SMOOTH, kind, exif=broken)).shape == SMOOTH.shape
    assert pixels_of(encoded(SMOOTH, exif=exif(99))).shape == SMOOTH.shape


def size_of(place: int, image: DecodedImage) -> tuple[int, ...]:
    return image.pixels.shape[:2]


@pytest.mark.parametrize("threads", [1, 4])
def test_decoder_keeps_the_order(threads: int) -> None:
    blobs = [encoded(np.zeros((height, 2, 3), np.uint8)) for height in range(1, 30)]
    blobs[3:5] = [b"text", None]
    results = DecodePool(LIMITS, threads).map(blobs, size_of)
    rejected = {3: Reason.NOT_AN_IMAGE, 4: Reason.FETCH_FAILED}
    for index, result in enumerate(results):
        if isinstance(result, RejectedImage):
            assert result.reason == rejected.pop(index)
            assert result.__traceback__ is None
        else:
            assert result == (index + 1, 2)
    assert not rejected
    assert DecodePool(LIMITS, threads).map([], size_of) == []
    assert DecodePool(LIMITS, threads).map(blobs[:3], lambda place, image: place) == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_slow_image_times_out_alone(threads: int) -> None:
    blobs = [encoded(np.zeros((height, 2, 3), np.uint8)) for height in range(1, 12)]
    released = threading.Event()

    def stuck_at_three(place: int, image: DecodedImage) -> int:
        height = size_of(place, image)[0]
        if height == 3:
            released.wait()
        return height

    try:
        results = DecodePool(DecodeLimits(100, 10_000, timeout_s=1.0), threads).map(blobs, stuck_at_three)
    finally:
        released.set()
    late = results.pop(2)
    assert isinstance(late, RejectedImage)
    assert late.reason == Reason.DECODE_TIMEOUT
    assert results == [1, 2, *range(4, 12)]


def test_the_result_of_a_thread_left_behind_is_dropped() -> None:
    released = threading.Event()

    def first_waits_for_second(place: int, image: DecodedImage) -> int:
        height = size_of(place, image)[0]
        if height == 1:
            released.wait()
        else:
            released.set()
            time.sleep(0.3)
        return height

    blobs = [encoded(np.zeros((height, 2, 3), np.uint8)) for height in (1, 2)]
    first, second = DecodePool(DecodeLimits(100, 10_000, timeout_s=1.0), threads=1).map(blobs, first_waits_for_second)
    assert isinstance(first, RejectedImage)
    assert second == 2


def test_threads_end_with_their_decoder() -> None:
    others = set(threading.enumerate())
    decoder = DecodePool(LIMITS, 3)
    assert decoder.map([encoded(RGB)], size_of) == [(5, 7)]
    own = set(threading.enumerate()) - others
    assert len(own) == 3
    del decoder
    for thread in own:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_another_exception_of_then_reaches_the_caller() -> None:
    def broken(place: int, image: DecodedImage) -> int:
        raise ZeroDivisionError(image.format)

    with pytest.raises(ZeroDivisionError, match="PNG"):
        DecodePool(LIMITS, 2).map([encoded(RGB)] * 5, broken)
