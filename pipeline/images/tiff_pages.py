"""The page of a TIFF that people mean: not the thumbnail or the mask that some writers put before it.

Camera raws (NEF, DNG, ARW) are TIFFs whose first page is a thumbnail; the full picture is in a later page or in a
sub-directory, which Pillow does not list.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

from schemas.errors import RejectedImage
from schemas.reasons import Reason

_MAGICS = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
_WIDTH, _HEIGHT, _NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_IFDS = 256, 257, 254, 255, 330
_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType."""
_OLD_REDUCED = 2
"""Value of SubfileType, which older writers use."""
_MOST_PAGES, _MOST_ENTRIES = 256, 1024
"""Of a file, and of a directory: more are not read, because a small file could name millions."""
_SIZES = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}
"""Bytes of the field types that hold whole numbers, SHORT, LONG, IFD and BigTIFF's among them."""


class _Page(NamedTuple):
    offset: int
    """Of the page's directory in the file, in bytes."""
    pixels: int
    is_main: bool
    """False for thumbnails and masks."""
    sub_offsets: tuple[int, ...]
    next_offset: int
    """0 after the last page."""


class _Layout(NamedTuple):
    """How a TIFF (or BigTIFF) writes its directories."""

    order: Literal["little", "big"]
    big: bool

    def number(self, data: bytes, offset: int, size: int) -> int:
        """Return the whole number at ``offset``; raises EOFError where the file ends before."""
        part = data[offset : offset + size]
        if len(part) < size:
            raise EOFError(f"{size} bytes at {offset} of {len(data)}")
        return int.from_bytes(part, self.order)

    @property
    def offset_bytes(self) -> int:
        return 8 if self.big else 4

    @property
    def first_at(self) -> int:
        """Where the header holds the offset of the first page."""
        return 8 if self.big else 4


def main_page_first(data: bytes) -> bytes:
    """Return a TIFF whose header points to the main page; ``data`` itself where its first page is that, or is no TIFF.

    Where the first page is a thumbnail or a mask, the main page is the largest of the other pages and sub-directories
    that are neither. Raises RejectedImage with UNSUPPORTED where there is none. A directory that can't be read ends
    the search; a damaged first directory leaves ``data`` as it is.
    """
    if data[:4] not in _MAGICS:
        return data
    layout = _Layout("little" if data.startswith(b"I") else "big", b"+" in data[2:4])
    pages = _pages(data, layout)
    try:
        first = next(pages)
    except (StopIteration, EOFError):
        return data
    if first.is_main:
        return data
    others: list[_Page] = []
    with suppress(EOFError):
        others.extend(page for page in pages if page.is_main)
    if not others:
        raise RejectedImage(Reason.UNSUPPORTED, "TIFF with nothing but thumbnails or masks in its readable pages")
    main = max(others, key=lambda page: page.pixels)
    offset = main.offset.to_bytes(layout.offset_bytes, layout.order)
    return data[: layout.first_at] + offset + data[layout.first_at + len(offset) :]


def _pages(data: bytes, layout: _Layout) -> Iterator[_Page]:
    """Yield the pages in their order, the sub-directories of each right after it; each once."""
    waiting = [layout.number(data, layout.first_at, layout.offset_bytes)]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_PAGES:
        offset = waiting.pop(0)
        if not offset or offset in seen:
            continue
        seen.add(offset)
        page = _page(data, layout, offset)
        waiting = [*page.sub_offsets, *waiting, page.next_offset]
        yield page


def _page(data: bytes, layout: _Layout, offset: int) -> _Page:
    count_bytes, entry_bytes = (8, 20) if layout.big else (2, 12)
    n_entries = layout.number(data, offset, count_bytes)
    end = offset + count_bytes + n_entries * entry_bytes
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(offset + count_bytes, end, entry_bytes)[:_MOST_ENTRIES]:
        tag = layout.number(data, entry, 2)
        if tag in (_WIDTH, _HEIGHT, _NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_IFDS):
            tags[tag] = _values(data, layout, entry)
    kind = tags.get(_NEW_SUBFILE_TYPE, (0,))[0]
    is_main = not kind & (_REDUCED | _MASK) and tags.get(_SUBFILE_TYPE, (0,))[0] != _OLD_REDUCED
    pixels = tags.get(_WIDTH, (0,))[0] * tags.get(_HEIGHT, (0,))[0]
    return _Page(offset, pixels, is_main, tags.get(_SUB_IFDS, ()), layout.number(data, end, layout.offset_bytes))


def _values(data: bytes, layout: _Layout, entry: int) -> tuple[int, ...]:
    """Return the whole numbers of a directory's entry, (0,) for another type of field."""
    size = _SIZES.get(layout.number(data, entry + 2, 2), 0)
    count = min(layout.number(data, entry + 4, layout.offset_bytes), _MOST_PAGES)
    at = entry + 4 + layout.offset_bytes
    if not size or not count:
        return (0,)
    if size * count > layout.offset_bytes:
        at = layout.number(data, at, layout.offset_bytes)
    return tuple(layout.number(data, at + size * index, size) for index in range(count))
