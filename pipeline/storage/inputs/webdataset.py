"""WebDataset shards: tar files whose members are images, listed by their headers."""

import io
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local
from pipeline.storage.inputs.containers import READ_BYTES, suffix_of, unreadable
from pipeline.storage.inputs.entries import Container, Entry

_IMAGES = """
.jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .jp2 .j2k .jpx .jxl .ppm .pgm .pbm
.pnm .ico .tga .psd .pcx .dds .sgi
"""
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
"""What names a member of a tar shard as an image; the decoder goes by the content."""

_SKIP_BYTES = 2**20
"""Members of more bytes are skipped by a new request, smaller ones are read over: what S3 sends on one connection in
the 10 to 30 ms that it takes to answer another request."""
_HEADER_BYTES = 16 * 2**10
"""Read at first and after a skip; each request without a skip before it reads eight times as much, up to READ_BYTES."""


def list_shard(fs: AbstractFileSystem, shard: Container, skipped: Counter[str]) -> Iterator[Entry]:
    """Yield the images of a tar shard, reading its headers once from front to back.

    Other members count in ``skipped`` by extension. What lies after damage can't be listed: one entry with the reason
    ``unreadable_container`` stands for it.
    """
    etag, modified_us = shard.version.tag, shard.version.modified_us
    end = fs.size(shard.path) if shard.version.size_bytes is None else shard.version.size_bytes
    damage: str | None = None
    with _open_headers(fs, shard.path, end) as file:
        try:
            for member in _members(file):
                name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                hidden = posixpath.basename(name).startswith(".")
                if hidden or not member.isreg() or member.issparse() or suffix_of(name) not in IMAGE_SUFFIXES:
                    if member.isfile():
                        skipped[suffix_of(name) or "no extension"] += 1
                    continue
                if member.offset_data + member.size > end:
                    damage = f"ends inside its member {name!r}"
                    break
                uri = f"{shard.uri}#{name}"
                yield Entry(uri, shard.path, etag, member.size, modified_us, offset=member.offset_data)
        except tarfile.TarError as error:
            damage = f"not a sound tar file: {error}"
    if damage:
        yield unreadable(shard, damage)


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar; raises tarfile.ReadError for damage, also where tarfile would stop silently."""
    tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the caller closes the file)
    while (member := tar.next()) is not None:
        if tar.offset <= member.offset:
            raise tarfile.ReadError(f"impossible size in the header at byte {member.offset}")
        yield member
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset}")


def _open_headers(fs: AbstractFileSystem, path: str, size: int) -> IO[bytes]:
    """Open a shard for reading little at many places, ever further on."""
    return Path(path).open("rb") if is_local(fs) else cast(IO[bytes], _Headers(fs, path, size))


class _Headers(io.RawIOBase):
    """An object of ``size`` bytes in a store: read on in large requests, in small ones behind each long skip."""

    def __init__(self, fs: AbstractFileSystem, path: str, size: int) -> None:
        self._fs, self._path, self._size = fs, path, size
        self._position, self._start, self._data, self._block = 0, 0, b"", _HEADER_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        at = self._position
        end = self._size if size < 0 else min(at + size, self._size)
        if at < self._start or end > self._start + len(self._data):
            known = self._start + len(self._data)
            near = known > 0 and at - known <= _SKIP_BYTES
            self._block = min(8 * self._block, READ_BYTES) if near else _HEADER_BYTES
            self._start, self._data = at, self._fetch(at, min(max(end, at + self._block), self._size))
        self._position = max(at, end)
        return self._data[at - self._start : end - self._start] if end > at else b""

    def _fetch(self, start: int, end: int) -> bytes:
        return bytes(self._fs.cat_file(self._path, start=start, end=end)) if end > start else b""
