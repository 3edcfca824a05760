"""Main pages, whole JPEGs, deep and transparent pictures, wide gamuts: the picture that people mean, or a reason."""

import io
import struct

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from pipeline.images.jpeg import MAX_SCANS
from schemas.errors import RejectedImage
from schemas.reasons import Reason
from tests.pictures import PHOTO, encoded, jpeg, picture, reason

SMALL = Image.new("RGB", (16, 12), "red")
TRAILER = b"\0\0\1\x08SEFH" + b"\0" * 60 + b"SEFT"


def tiff(pages):
    """A TIFF of (image, tags) in their order."""
    buffer = io.BytesIO()
    with AppendingTiffWriter(buffer, new=True) as file:
        for image, tags in pages:
            image.save(file, "TIFF", tiffinfo=tags)
            file.newFrame()
    return buffer.getvalue()


def with_sub_directory(data, order="<"):
    """Move the second page of a TIFF into a sub-directory of the first, as cameras do."""
    first = struct.unpack_from(order + "L", data, 4)[0]
    count = struct.unpack_from(order + "H", data, first)[0]
    second = struct.unpack_from(order + "L", data, first + 2 + 12 * count)[0]
    entries = [data[first + 2 + 12 * i :][:12] for i in range(count)]
    entries = sorted([*entries, struct.pack(order + "HHLL", 330, 4, 1, second)], key=lambda e: e[:2][::-1])
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    moved = bytearray(data + directory)
    struct.pack_into(order + "L", moved, 4, len(data))
    return bytes(moved)


FULL = Image.fromarray(PHOTO)
THUMBNAIL, MASK = {254: 1}, {254: 4}
TIFFS = {
    "thumbnail, full page": [(SMALL, THUMBNAIL), (FULL, {})],
    "two thumbnails, full page": [(SMALL, THUMBNAIL), (SMALL.resize((32, 24)), THUMBNAIL), (FULL, {254: 0})],
    "thumbnail of the older tag": [(SMALL, {255: 2}), (FULL, {255: 1})],
    "mask, full page": [(SMALL.convert("L"), MASK), (FULL, {})],
    "thumbnail, a smaller page, full page": [(SMALL, THUMBNAIL), (SMALL.resize((32, 24)), {}), (FULL, {})],
    "full page first": [(FULL, {}), (SMALL, THUMBNAIL)],
    "plain pages: the first": [(FULL, {}), (Image.new("RGB", (300, 300)), {})],
}


@pytest.mark.parametrize("pages", TIFFS.values(), ids=TIFFS)
def test_the_full_page_of_a_tiff(pages):
    np.testing.assert_array_equal(picture(tiff(pages)).pixels, PHOTO)


def test_a_sub_directory_holds_the_full_page():
    data = with_sub_directory(tiff([(SMALL, THUMBNAIL), (FULL, {})]))
    assert Image.open(io.BytesIO(data)).n_frames == 1
    np.testing.assert_array_equal(picture(data).pixels, PHOTO)


@pytest.mark.parametrize(
    "pages",
    [
        [(SMALL, THUMBNAIL)],
        [(SMALL, THUMBNAIL), (SMALL, MASK)],
        [(SMALL, THUMBNAIL), (FULL.convert("L"), {262: 32803})],
    ],
    ids=["a thumbnail alone", "thumbnail and mask", "raw data of a sensor"],
)
def test_a_tiff_without_a_readable_full_page_is_unsupported(pages):
    data = tiff([(image, {tag: value for tag, value in tags.items() if tag != 262}) for image, tags in pages])
    if 262 in pages[-1][1]:
        at = data.rindex(struct.pack("<HHL", 262, 3, 1))
        data = data[: at + 8] + struct.pack("<L", 32803) + data[at + 12 :]
    assert reason(data) == Reason.UNSUPPORTED


@pytest.mark.parametrize("offset", [2**32, 2**63, 2**64 - 1])
def test_a_directory_far_beyond_the_end(offset):
    data = b"II+\0\x08\0\0\0" + offset.to_bytes(8, "little") + bytes(100)
    assert reason(data) in (Reason.TRUNCATED, Reason.CORRUPT, Reason.UNSUPPORTED)


def test_directories_in_a_circle_end():
    data = bytearray(tiff([(SMALL, THUMBNAIL), (SMALL, THUMBNAIL)]))
    first = struct.unpack_from("<L", data, 4)[0]
    second_at = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    second = struct.unpack_from("<L", data, second_at)[0]
    struct.pack_into("<L", data, second + 2 + 12 * struct.unpack_from("<H", data, second)[0], first)
    assert reason(bytes(data)) == Reason.UNSUPPORTED


@pytest.mark.parametrize("primary", [0, 1])
def test_the_primary_picture_of_a_heic(primary):
    heif = pillow_heif.HeifFile()
    images = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (128, 64), "blue")]
    for image in images:
        heif.add_from_pillow(image)
    buffer = io.BytesIO()
    heif.save(buffer, primary_index=primary)
    assert picture(buffer.getvalue()).size_hw == images[primary].size[::-1]


def test_the_largest_picture_of_an_icon_with_most_colours():
    big, small = Image.fromarray(PHOTO).resize((64, 64)), Image.new("RGB", (16, 16), "red")
    buffer = io.BytesIO()
    big.save(buffer, "ICO", sizes=[(16, 16), (64, 64)], append_images=[small])
    assert picture(buffer.getvalue()).size_hw == (64, 64)


def test_the_first_picture_of_an_mpo():
    assert picture(encoded(FULL, "MPO", save_all=True, append_images=[SMALL])).size_hw == PHOTO.shape[:2]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    shown = picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:])).pixels
    assert (abs(shown.astype(int) - (255, 0, 0)) < 4).all()


KINDS = {
    "baseline": {},
    "gray": {"pixels": PHOTO[..., 0]},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}
THUMBNAIL_JPEG = jpeg(PHOTO[:32, :32])
TRAILERS = {
    "a maker's": TRAILER,
    "nothing": b"",
    "half an end marker": b"\xff",
    "zeros": bytes(1000),
    "another JPEG": THUMBNAIL_JPEG,
    "text": b"the end",
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_a_jpeg_with_all_its_blocks_is_whole(kind, trailer):
    raw = jpeg(**kind)
    np.testing.assert_array_equal(picture(raw[:-2] + trailer).pixels, picture(raw).pixels)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("tail", [b"\xff\xd9", b"", THUMBNAIL_JPEG])
def test_a_jpeg_without_all_its_blocks_is_truncated(kind, share, tail):
    raw = jpeg(**kind)
    assert reason(raw[: int(len(raw) * share)] + tail) in {Reason.TRUNCATED} | ({Reason.CORRUPT} if tail else set())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_half_a_jpeg_with_an_end_marker_is_truncated(kind):
    raw = jpeg(**kind)
    assert reason(raw[: len(raw) // 2] + b"\xff\xd9") == Reason.TRUNCATED


def test_half_a_cmyk_jpeg_with_an_end_marker_is_truncated():
    raw = encoded(FULL.convert("CMYK"), "JPEG")
    assert picture(raw).size_hw == PHOTO.shape[:2]
    assert reason(raw[: len(raw) // 2] + b"\xff\xd9") == Reason.TRUNCATED


def test_a_scaled_decode_asks_for_the_blocks_too():
    raw = jpeg()
    assert picture(raw, least_hw=lambda h, w: (h // 8, w // 8)).pixels.shape == (19, 26, 3)
    with pytest.raises(RejectedImage) as caught:
        picture(raw[: len(raw) // 2] + b"\xff\xd9", least_hw=lambda h, w: (h // 8, w // 8))
    assert caught.value.reason == Reason.TRUNCATED


def test_a_progressive_jpeg_that_ends_between_two_scans_is_truncated():
    raw = jpeg(progressive=True)
    last = raw.rindex(b"\xff\xda")
    before = raw.rindex(b"\xff\xc4", 0, last)
    assert reason(raw[:before]) == Reason.TRUNCATED


def test_scans_stay_bounded():
    raw = jpeg(progressive=True)
    scan = raw[raw.rindex(b"\xff\xda") : -2]
    assert reason(raw[:-2] + scan * MAX_SCANS) == Reason.UNSUPPORTED
