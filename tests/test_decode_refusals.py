"""What decoding refuses: a true reason for each damaged, foreign or oversized file, and no other exception ever."""

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images.decode import DecodeLimits, decode
from schemas.errors import RejectedImage
from schemas.reasons import Reason
from tests.pictures import ORIENTATION, RGB, SMOOTH, encoded, png_chunk, tiff

LIMITS = DecodeLimits(max_pixels=1_000_000, max_bytes=1_000_000, timeout_s=30.0)


def pixels_of(data: bytes) -> np.ndarray:
    return decode(data, LIMITS).pixels


def reason_of(data: bytes, limits: DecodeLimits = LIMITS) -> Reason:
    with pytest.raises(RejectedImage) as caught:
        decode(data, limits)
    assert "\n" not in caught.value.detail
    assert " at 0x" not in caught.value.detail
    return caught.value.reason


def test_bytes_and_pixels_are_limited() -> None:
    data = encoded(RGB)
    assert reason_of(b"") == Reason.EMPTY
    assert reason_of(data, DecodeLimits(100, len(data) - 1, 1.0)) == Reason.TOO_MANY_BYTES
    assert reason_of(data, DecodeLimits(34, len(data), 1.0)) == Reason.TOO_MANY_PIXELS
    assert decode(data, DecodeLimits(35, len(data), 1.0)).pixels.shape == RGB.shape


def test_bombs_are_refused_by_their_header() -> None:
    """None of these holds the pixels it declares: only the header can have been read."""
    head = png_chunk(b"IHDR", struct.pack(">LLBBBBB", 30_000, 3_000, 1, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    assert reason_of(bomb) == Reason.TOO_MANY_PIXELS
    icon = struct.pack("<HHHBBBBHHLL", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(bomb), 22) + bomb
    assert reason_of(icon) == Reason.TOO_MANY_PIXELS
    jpeg = encoded(SMOOTH, "JPEG")
    size = jpeg.index(struct.pack(">HH", 32, 48))
    assert reason_of(jpeg[:size] + b"\xff\xff\xff\xff" + jpeg[size + 4 :]) == Reason.TOO_MANY_PIXELS


def test_scan_bomb() -> None:
    data = encoded(SMOOTH, "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert pixels_of(data[:-2] + scan * 50 + data[-2:]).shape == SMOOTH.shape
    assert reason_of(data[:-2] + scan * 100 + data[-2:]) == Reason.UNSUPPORTED


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF holds a whole JPEG, end marker included."""
    return encoded(SMOOTH, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + encoded(RGB, "JPEG"))


@given(cut=st.integers(3, len(with_thumbnail()) - 1))
def test_a_cut_jpeg_is_truncated_unless_every_block_is_there(cut: int) -> None:
    data = with_thumbnail()
    if cut < len(data) - 2:
        assert reason_of(data[:cut]) == Reason.TRUNCATED
    else:
        np.testing.assert_array_equal(pixels_of(data[:cut]), pixels_of(data))


def test_bytes_around_a_whole_jpeg_do_no_harm() -> None:
    data = with_thumbnail()
    expected = pixels_of(data)
    np.testing.assert_array_equal(pixels_of(data + b"\0trailing\xff\xd8\xff"), expected)
    np.testing.assert_array_equal(pixels_of(data[:2] + b"\xff\xff" + data[2:]), expected)


def test_stray_marker_in_jpeg_data_is_corrupt() -> None:
    data = bytearray(encoded(SMOOTH, "JPEG", quality=95))
    data[-40:-38] = b"\xff\x22"
    assert reason_of(bytes(data)) == Reason.CORRUPT
    assert reason_of(b"\xff\xd8\xff\xd9\xff\xd9") == Reason.CORRUPT


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO", "QOI", "TGA"])
def test_other_cut_files_are_truncated(kind: str) -> None:
    data = encoded(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8), kind)
    for share in (0.5, 0.75, 0.9):
        assert reason_of(data[: int(len(data) * share)]) == Reason.TRUNCATED


def test_a_png_whose_pixels_are_complete_is_read_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    without_end = encoded(SMOOTH)[:-12]
    np.testing.assert_array_equal(pixels_of(without_end), SMOOTH)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"this is no image", Reason.NOT_AN_IMAGE),
        (b"<!doctype html><title>404</title>", Reason.NOT_AN_IMAGE),
        (b"\x00", Reason.NOT_AN_IMAGE),
        (b"\0\0\0\x18ftypmp42" + bytes(16), Reason.NOT_AN_IMAGE),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.UNSUPPORTED),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", Reason.UNSUPPORTED),
        (b"\0\0\0\x0cJXL \r\n\x87\n", Reason.UNSUPPORTED),
        (b"\xff\xd8\xff\xc5\0\x0b\x08\0\x01\0\x01\x01\x01\x11\0", Reason.UNSUPPORTED),
        (tiff(7, 1, b"\0", 1), Reason.UNSUPPORTED),
        (encoded(RGB)[:-30] + b"\0" * 18 + encoded(RGB)[-12:], Reason.CORRUPT),
    ],
)
def test_reasons(data: bytes, reason: Reason) -> None:
    assert reason_of(data) == reason


def damaged() -> st.SearchStrategy[bytes]:
    """Valid files of many formats with some bytes changed and perhaps the end missing."""
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO", "QOI", "TGA", "DDS", "PCX")
    whole = [encoded(RGB, kind) for kind in kinds]

    def damage(data: bytes, seed: int) -> bytes:
        draw, changed = random.Random(seed), bytearray(data)
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] = draw.choice((0, 1, 127, 255, draw.randrange(256)))
        return bytes(changed[: draw.choice((len(changed), draw.randrange(1, len(changed))))])

    return st.builds(damage, st.sampled_from(whole), st.integers(0, 2**32)) | st.binary(max_size=200)


def outcome_of(data: bytes, limits: DecodeLimits = LIMITS) -> np.ndarray | Reason:
    try:
        return decode(data, limits).pixels
    except RejectedImage as rejected:
        return rejected.reason


@settings(max_examples=300)
@given(data=damaged())
def test_damage_never_raises_anything_but_a_rejection(data: bytes) -> None:
    outcome = outcome_of(data)
    if isinstance(outcome, np.ndarray):
        assert outcome.dtype == np.uint8
        assert outcome.shape[2:] == (3,)


# The files of the folder of odd ones that are refused; all others must equal Pillow's picture.
ODD_REFUSED = {
    "image-rs__bad__bmp__Bad_reallybig.bmp": Reason.TOO_MANY_PIXELS,
    "image-rs__bad__bmp__Bad_shortfile.bmp": Reason.TRUNCATED,
    # A palette of 300 colours for 8 bits.
    "image-rs__images__bmp__images__lenient__pal8oversizepal.bmp": Reason.CORRUPT,
    # A run that leads past the last pixel.
    "image-rs__images__tga__testsuite__bottom_left.tga": Reason.CORRUPT,
    # Three channels of 32-bit floats.
    "image-rs__reference__hdr__images__old-rle.hdr.tiff": Reason.UNSUPPORTED,
    "image-rs__regression__jpg__oss-fuzz-36829.jpeg": Reason.TRUNCATED,
    "image-rs__regression__tga__slice-copy-length.tga": Reason.TRUNCATED,
    # No image data at all between a header and an end that are both there.
    "pillow__apng__syntax_num_frames_zero.png": Reason.CORRUPT,
    "pillow__bmp__b__shortfile.bmp": Reason.TRUNCATED,
    # JPEG inside of BMP.
    "pillow__bmp__q__rgb24jpeg.bmp": Reason.UNSUPPORTED,
    # The second data chunk has a head and nothing else.
    "pillow__broken_data_stream.png": Reason.TRUNCATED,
    "pillow__crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif": Reason.TRUNCATED,
    "pillow__crash-0e16d3bfb83be87356d026d66919deaefca44dac.tif": Reason.TRUNCATED,
    "pillow__crash-1185209cf7655b5aed8ae5e77784dfdd18ab59e9.tif": Reason.TRUNCATED,
    "pillow__crash-4fb027452e6988530aa5dabee76eecacb3b79f8a.j2k": Reason.CORRUPT,
    "pillow__crash-7d4c83eb92150fb8f1653a697703ae06ae7c4998.j2k": Reason.CORRUPT,
    "pillow__crash-d2c93af851d3ab9a19e34503626368b2ecde9c03.j2k": Reason.CORRUPT,
    "pillow__cross_scan_line_truncated.tga": Reason.TRUNCATED,
    "pillow__l2rgb_read.bmp": Reason.TOO_MANY_PIXELS,
    "pillow__truncated_end_chunk.png": Reason.TRUNCATED,
    "pillow__truncated_image.png": Reason.TRUNCATED,
    "pillow__ultrahdr.jpg": Reason.TRUNCATED,
    "sharp__truncated.png": Reason.TRUNCATED,
    "synth__bitflips_200.jpg": Reason.CORRUPT,
    "synth__empty.jpg": Reason.EMPTY,
    "synth__header_only.jpg": Reason.TRUNCATED,
    "synth__html_named.png": Reason.NOT_AN_IMAGE,
    "synth__huge_30000x30000_1bit.png": Reason.TOO_MANY_PIXELS,
    "synth__text_named.jpg": Reason.NOT_AN_IMAGE,
    "synth__truncated_10pct.jpg": Reason.TRUNCATED,
    "synth__truncated_50pct.gif": Reason.TRUNCATED,
    "synth__truncated_50pct.jpg": Reason.TRUNCATED,
    "synth__truncated_50pct.png": Reason.TRUNCATED,
    "synth__truncated_50pct.tif": Reason.TRUNCATED,
    "synth__truncated_50pct.webp": Reason.TRUNCATED,
    "synth__truncated_95pct.jpg": Reason.TRUNCATED,
}


def by_pillow(data: bytes) -> np.ndarray:
    """Pillow's own picture, turned upright by the tag that ImageOps also reads.

    16-bit gray by the range it uses, transparency on white; one of the files lacks half of its end marker alone.
    """
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
    turns |= {7: "TRANSVERSE", 8: "ROTATE_90"}
    image = Image.open(io.BytesIO(data + b"\xff\xd9"))
    image.load()
    turn = turns.get(image.getexif().get(ORIENTATION, 1))
    if image.mode in ("I", "I;16"):
        values = np.asarray(image)
        white = next(2**bits for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
        image = Image.fromarray((values // (white // 256)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        picture = image.convert("RGBA")
        if picture.getextrema()[3][1] > 0:
            image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    image = image.convert("RGB")
    return np.asarray(image.transpose(Image.Transpose[turn]) if turn else image)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_odd_file(shared: Path) -> None:
    limits = DecodeLimits(100_000_000, 100_000_000, 30.0)
    files = [path for path in sorted((shared / "real" / "odd").iterdir()) if path.name != "LIST.csv"]
    assert len(files) == 277
    for path in files:
        data = path.read_bytes()
        outcome = outcome_of(data, limits)
        if path.name in ODD_REFUSED or isinstance(outcome, Reason):
            assert outcome == ODD_REFUSED.get(path.name), path.name
        else:
            np.testing.assert_allclose(outcome, by_pillow(data), atol=2, err_msg=path.name)
