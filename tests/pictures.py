"""Small pictures, and their encoded files."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import DecodeLimits, decode
from schemas.errors import RejectedImage

ORIENTATION = 0x0112
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
SMOOTH = np.stack(np.meshgrid(np.arange(48), np.arange(32)), -1)[..., [0, 1, 0]].astype(np.uint8) * 4


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Return the bytes of ``image`` as a file in Pillow's format ``kind``; ``options`` go to Pillow's ``save``."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def tiff(bits: int, kind: int, strip: bytes, width: int) -> bytes:
    """Return the bytes of a little-endian gray TIFF with one row of ``width`` pixels, built from the file format."""
    tags = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 1), (279, 4, len(strip)), (339, 3, kind)]
    directory = b"".join(struct.pack("<HHLL", tag, size, 1, value) for tag, size, value in tags)
    padded = strip + b"\0" * (len(strip) % 2)
    return b"II*\0" + struct.pack("<L", 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + directory + b"\0" * 4


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">L", len(payload)) + kind + payload + struct.pack(">L", zlib.crc32(kind + payload))


LIMITS = DecodeLimits(10_000_000, 10_000_000, 30.0)
RNG = np.random.default_rng(5)
PHOTO = cv2.resize(RNG.integers(0, 256, (12, 16, 3), np.uint8), (208, 152), interpolation=cv2.INTER_CUBIC)


def picture(data, **options):
    return decode(data, LIMITS, **options)


def reason(data):
    with pytest.raises(RejectedImage) as caught:
        decode(data, LIMITS)
    return caught.value.reason


def jpeg(pixels=PHOTO, **options):
    return encoded(Image.fromarray(pixels), "JPEG", quality=90, **options)
