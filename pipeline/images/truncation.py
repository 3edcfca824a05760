"""Finds out, by the lengths that a file declares, whether its end is missing; and lists the errors of the decoders.

Decoders differ on files that were cut off: some raise any kind of error, some return a picture whose rest is gray.
"""

import io
import struct
from collections.abc import Callable, Iterator

from PIL import Image, TiffImagePlugin

# The errors of Pillow, pillow-heif and their libraries for unreadable files. MemoryError is not among them: it
# is a failure of the machine, not of the image.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)


def ends_early(name: str, data: bytes) -> bool:
    """Return whether a part that a file of format ``name`` declares lies beyond the end of ``data``.

    False for formats that declare no lengths, and where the lengths can't be read. For JPEG see ``jpeg.py``.
    """
    try:
        return name in _ENDS and any(end > len(data) for end in _ENDS[name](data))
    except DECODER_ERRORS:
        return False


def _png_ends(data: bytes) -> Iterator[int]:
    position, kind = 8, b""
    while kind != b"IEND":
        kind = data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        yield position


def _riff_ends(data: bytes) -> Iterator[int]:
    yield 8 + int.from_bytes(data[4:8], "little")


def _box_ends(data: bytes) -> Iterator[int]:
    """Yield where each top-level box of an ISO base media file ends; size 0 means "to the end of the file"."""
    position = 0
    while position < len(data):
        yield position + 8
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        position = position + max(size, 8) if size else len(data)
        yield position


def _jpeg2000_ends(data: bytes) -> Iterator[int]:
    """Yield where the boxes end; a codestream that runs to the end of the file must have its end marker there."""
    bare = data.startswith(b"\xff\x4f")
    if not bare:
        yield from _box_ends(data)
    if bare or b"\0\0\0\0jp2c" in data:
        yield len(data) + (not data.endswith(b"\xff\xd9"))


def _icon_ends(data: bytes) -> Iterator[int]:
    (count,) = struct.unpack_from("<H", data, 4)
    yield 6 + 16 * count
    for entry in range(count):
        size, offset = struct.unpack_from("<LL", data, 6 + 16 * entry + 8)
        yield offset + size


_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TIFF_STRIPS = (273, 279)
_TIFF_TILES = (324, 325)


def _tiff_ends(data: bytes) -> Iterator[int]:
    """Yield where a TIFF's first directory ends, each value stored outside of it, and each strip or tile."""
    yield 8
    order = "<" if data.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(order + "L", data, 4)
    yield directory + 2
    (count,) = struct.unpack_from(order + "H", data, directory)
    yield directory + 2 + 12 * count
    for entry in range(count):
        _, kind, values, offset = struct.unpack_from(order + "HHLL", data, directory + 2 + 12 * entry)
        size = values * _TIFF_TYPE_BYTES.get(kind, 0)
        if size > 4:
            yield offset + size
    stream = io.BytesIO(data)
    stream.seek(directory)
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    tags.load(stream)
    for offsets, counts in (_TIFF_STRIPS, _TIFF_TILES):
        for offset, length in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            yield offset + length


_ENDS: dict[str, Callable[[bytes], Iterator[int]]] = {
    "PNG": _png_ends,
    "WEBP": _riff_ends,
    "AVIF": _box_ends,
    "HEIF": _box_ends,
    "JPEG2000": _jpeg2000_ends,
    "ICO": _icon_ends,
    "CUR": _icon_ends,
    "TIFF": _tiff_ends,
}
