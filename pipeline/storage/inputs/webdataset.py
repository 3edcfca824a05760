"""WebDataset shards: tar files whose members are images, listed by their headers."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local
from pipeline.storage.inputs.containers import READ_BYTES, unreadable
from pipeline.storage.inputs.entries import Container, Entry
from pipeline.storage.inputs.file_names import (
    IMAGE_SUFFIXES,
    SIGNATURE_BYTES,
    hidden_part,
    kind_of,
    looks_like_image,
    suffix_of,
)

_MOST_DEEP = 8
"""The most tar files around a tar file; published sets have one, a hostile file could have thousands."""
_SKIP_BYTES = 2**20
"""Larger members are skipped by a new request; smaller members are read and dropped. S3 sends about this many bytes on
one connection in the 10 to 30 ms that another request takes."""
_HEADER_BYTES = 16 * 2**10
"""Bytes of the first request and of a request after a skip. Each further request reads eight times as many, up to
READ_BYTES."""


def list_shard(fs: AbstractFileSystem, shard: Container, skipped: Counter[str]) -> Iterator[Entry]:
    """Yield the images of a tar shard, and of the tar files in it, reading its headers once from front to back.

    A member without an extension is an image if its first bytes show it. Other members count in ``skipped`` by kind.
    The part after damage can't be listed; one entry with the reason ``unreadable_container`` stands for it.
    """
    size_bytes = fs.size(shard.path) if shard.version.size_bytes is None else shard.version.size_bytes
    with _open_headers(fs, shard.path, size_bytes) as file:
        yield from _list_tar(file, _Tar(shard, shard.uri, "#", 0, size_bytes), skipped)


class _Tar(NamedTuple):
    """A tar file: the shard itself, or a tar file inside the shard."""

    shard: Container
    uri: str
    """Public name of the tar file."""
    mark: str
    """Text in a uri between the tar file's name and a member's name."""
    start: int
    """Offset of the tar file's first byte in the shard."""
    size_bytes: int
    depth: int = 0
    """Number of tar files around this tar file."""


def _list_tar(file: IO[bytes], tar: _Tar, skipped: Counter[str]) -> Iterator[Entry]:
    damage: str | None = None
    try:
        for member in _members(file):
            name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            kind = _kind_of(file, member, name)
            if kind not in ("image", "tar"):
                if kind != "folder":
                    skipped[kind] += 1
                continue
            if member.offset_data + member.size > tar.size_bytes:
                damage = f"ends inside its member {name!r}"
                break
            uri, start = f"{tar.uri}{tar.mark}{name}", tar.start + member.offset_data
            if kind == "image":
                version = tar.shard.version
                yield Entry(uri, tar.shard.path, version.tag, member.size, version.modified_us, offset=start)
                continue
            inner = _Tar(tar.shard, uri, "/", start, member.size, tar.depth + 1)
            if inner.depth > _MOST_DEEP:
                yield unreadable(tar.shard._replace(uri=uri), f"lies in more than {_MOST_DEEP} tar files")
            else:
                yield from _list_tar(cast(IO[bytes], _Window(file, member.offset_data, member.size)), inner, skipped)
    except tarfile.TarError as error:
        damage = f"not a sound tar file: {error}"
    if damage:
        yield unreadable(tar.shard._replace(uri=tar.uri), damage)


def _kind_of(file: IO[bytes], member: tarfile.TarInfo, name: str) -> str:
    """Return "image", "tar" or "folder", or else the kind under which the member counts as skipped."""
    if member.isdir():
        return "folder"
    if hidden_part(name):
        return "hidden file"
    if not member.isreg() or member.issparse():
        return "link or special file"
    suffix = suffix_of(name)
    if suffix == ".tar":
        return "tar"
    if not suffix:
        file.seek(member.offset_data)
        is_image = looks_like_image(file.read(min(SIGNATURE_BYTES, member.size)))
        return "image" if is_image else kind_of(name)
    return "image" if suffix in IMAGE_SUFFIXES else kind_of(name)


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


class _SizedFile(io.RawIOBase):
    """A readable file of a known size, with a position; a subclass reads."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position


class _Window(_SizedFile):
    """A part of a file that can be read like a file, without a copy."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__(size)
        self._file, self._start = file, start

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(rest if size < 0 else min(size, rest))
        self._position += len(data)
        return data


def _open_headers(fs: AbstractFileSystem, path: str, size: int) -> IO[bytes]:
    """Open a shard for small reads at many ascending places."""
    return Path(path).open("rb") if is_local(fs) else cast(IO[bytes], _Headers(fs, path, size))


class _Headers(_SizedFile):
    """An object of ``size`` bytes in a store; sequential reads are large requests, reads after long skips small."""

    def __init__(self, fs: AbstractFileSystem, path: str, size: int) -> None:
        super().__init__(size)
        self._fs, self._path = fs, path
        self._start, self._data, self._block = 0, b"", _HEADER_BYTES

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
