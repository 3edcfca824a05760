"""The folder that an export writes, on any fsspec file system; it looks whole only when it is.

On the local disk the files are written into a folder beside DEST that is renamed at the end. Other stores can't rename
a folder: there the files go into DEST. The folder that is written holds UNFINISHED until the end; a whole export has
DONE. UNFINISHED says how the export was chosen: the same export, started again, keeps the pictures that it had copied.
"""

import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import connect, is_local
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.whole_objects import list_dir, read_whole, remove_many, write_whole
from pipeline.storage.store_failures import store_errors
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

DONE = "camlake-export.json"
"""Says what a whole export holds and how it was chosen; it is written last."""
UNFINISHED = "camlake-export-unfinished"
"""The file, and the end of the local folder's name, of an export that is being written or was given up."""
REQUESTS_AT_ONCE = 16
HEAD_BYTES = 2**16
"""The first bytes of a picture, which hold its header."""

_Closable = TypeVar("_Closable")


@dataclass
class Destination:
    """A begun export; names are relative paths with ``/``."""

    fs: AbstractFileSystem
    root: str
    """The full path of DEST."""
    work: str
    """The full path of the folder that is written."""
    url: str
    """DEST without secrets, for messages."""
    left: dict[str, int] = field(default_factory=dict)
    """Bytes of each file that the same export left here when it stopped, without those that are written again."""
    _folders: set[str] = field(default_factory=set)
    _opened: list[Any] = field(default_factory=list)

    def open(self, name: str) -> IO[bytes]:
        """Return a new file for writing; raises StoreError where the store refuses."""
        path = self._path(name)
        with store_errors(f"{self.url}/{name} can't be written"):
            return self.keep(cast(IO[bytes], self.fs.open(path, "wb")))

    def spool(self) -> IO[bytes]:
        """Return a temporary file on this machine."""
        return self.keep(cast(IO[bytes], tempfile.TemporaryFile()))

    def keep(self, opened: _Closable) -> _Closable:
        """Return ``opened`` and remember to close it where the export fails."""
        self._opened = [*(one for one in self._opened if not getattr(one, "closed", False)), opened]
        return opened

    def close(self) -> None:
        """Close what a failed export left open, the last first; the files stay parts of an unfinished export."""
        while self._opened:
            with suppress(Exception):  # The export fails with another error already.
                self._opened.pop().close()

    def write(self, name: str, data: bytes) -> None:
        """Write a file; raises StoreError where the store refuses."""
        path = self._path(name)
        with store_errors(f"{self.url}/{name} can't be written"):
            self.fs.pipe_file(path, data)

    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write files, several at the same time; raises StoreError where the store refuses."""
        for name in files:  # The folders are made here, because the set of known folders is for one thread.
            self._path(name)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(self.write, files, files.values()))

    def keep_left(self, sizes: Mapping[str, int | None]) -> set[str]:
        """Return those of these files that the same export left here with these ``sizes``, and keep them."""
        kept = {name for name, size in sizes.items() if size is not None and self.left.get(name) == size}
        for name in kept:
            del self.left[name]
        return kept

    def heads(self, names: Iterable[str]) -> list[bytes]:
        """Return the first bytes of files that are here; raises StoreError where the store refuses."""
        paths = [LakePaths(self.work).full(name) for name in names]
        with store_errors(f"{self.url} can't be read"), ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(pool.map(lambda path: cast(bytes, self.fs.cat_file(path, end=HEAD_BYTES)), paths))

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link to the local file ``target``; DEST is local."""
        path = self._path(name)
        with store_errors(f"{self.url}/{name} can't be linked"):
            Path(path).symlink_to(target)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Make the export whole: write ``facts`` to DONE, and give the folder its name or remove UNFINISHED."""
        with store_errors(f"{self.url} can't be finished"):
            remove_many(self.fs, [f"{self.work}/{name}" for name in self.left])
        write_whole(self.fs, self._path(DONE), _as_json(facts))
        with store_errors(f"{self.url} can't be finished"):
            self.fs.rm_file(f"{self.work}/{UNFINISHED}")
            if self.work == self.root:
                return
            replaced = Path(f"{self.work}-replaced")
            if Path(self.root).exists():  # It is empty, or an earlier export that --overwrite gives up.
                Path(self.root).rename(replaced)
            Path(self.work).rename(self.root)
            shutil.rmtree(replaced, ignore_errors=True)  # It may not be there.

    def _path(self, name: str) -> str:
        path = LakePaths(self.work).full(name)
        self.left.pop(name, None)
        folder = posixpath.dirname(path)
        if is_local(self.fs) and folder not in self._folders:
            with store_errors(f"{self.url} can't be written"):
                self.fs.makedirs(folder, exist_ok=True)
            self._folders.add(folder)
        return path


def begin(
    url: str,
    storage: StorageConfig,
    overwrite: bool,
    say: Callable[[str], None],
    chosen: Mapping[str, Any],
    *,
    keep: bool = False,
) -> Destination:
    """Return the destination of a new export.

    ``chosen`` says how the export is chosen. What an unfinished one left there is removed, and said; with ``keep`` that
    of the same export stays until it is known what is still needed. With ``overwrite`` a whole export in DEST is
    replaced. Raises UsageError where DEST holds anything else.
    """
    fs, root = connect(url, storage)
    root = root.rstrip("/")
    shown = safe_url(url.rstrip("/"))
    work = f"{root}.{UNFINISHED}" if is_local(fs) else root
    found = {posixpath.basename(path.rstrip("/")) for path in list_dir(fs, root)}
    leftover = UNFINISHED in found if work == root else bool(list_dir(fs, work))
    whole = DONE in found and UNFINISHED not in found
    if whole and not overwrite:
        raise UsageError(f"DEST {shown}: holds a whole export already; allowed: another folder, or --overwrite")
    if found and not whole and UNFINISHED not in found:
        raise UsageError(f"DEST {shown}: allowed: a new or empty folder; this one holds {min(found)}")
    destination = Destination(fs, root, work, shown)
    with store_errors(f"{shown} can't be prepared"):
        if leftover and keep and read_whole(fs, f"{work}/{UNFINISHED}") == _as_json(chosen):
            destination.left = _files(fs, work)
            say(f"the same export stopped in {shown} before; of its {len(destination.left)} files pictures are kept")
            return destination
        if leftover:
            say(f"an unfinished export in {shown} is removed; this one starts anew")
        if work != root:
            for folder in filter(os.path.exists, (work, f"{work}-replaced")):
                shutil.rmtree(folder)
        elif work == root and found:
            destination.write(UNFINISHED, b"")  # First, so that DEST is an export's all the while.
            remove_many(fs, [path for path in fs.find(root) if posixpath.basename(path) != UNFINISHED])
    destination.write(UNFINISHED, _as_json(chosen))
    return destination


def _files(fs: AbstractFileSystem, folder: str) -> dict[str, int]:
    """Return the bytes of each file in a folder, by its path from there, without UNFINISHED."""
    prefix = f"{folder}/"
    found = {path.removeprefix(prefix): int(facts["size"]) for path, facts in fs.find(folder, detail=True).items()}
    return {name: size for name, size in found.items() if name != UNFINISHED}


def _as_json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1, ensure_ascii=False).encode()
