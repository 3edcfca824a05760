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
import uuid
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
from schemas.errors import StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

DONE = "camlake-export.json"
"""Says what a whole export holds and how it was chosen; it is written last."""
UNFINISHED = "camlake-export-unfinished"
"""The file, and the end of the local folder's name, of an export that is being written or was given up."""
REQUESTS_AT_ONCE = 16
_OWNER = "owner"

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
    _owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Stands in UNFINISHED, so that of two exports into one folder only the later one can finish."""
    _folders: set[str] = field(default_factory=set)
    _opened: list[Any] = field(default_factory=list)

    def open(self, name: str) -> IO[bytes]:
        """Return a new file for writing; raises StoreError where the store refuses."""
        path = self._path(name)
        with store_errors(f"{self.url}/{name} can't be written"):
            if is_local(self.fs):  # The export that left it may still write into it.
                Path(path).unlink(missing_ok=True)
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

    def count(self, names: Iterable[str], is_one: Callable[[Callable[[int | None], bytes]], bool]) -> int:
        """Return for how many of these files ``is_one`` is true; it gets a function that reads their first n bytes."""

        def holds(name: str) -> bool:
            path = LakePaths(self.work).full(name)
            return is_one(lambda end: cast(bytes, self.fs.cat_file(path, end=end)))

        with store_errors(f"{self.url} can't be read"), ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return sum(pool.map(holds, names))

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link to the local file ``target``; DEST is local."""
        path = self._path(name)
        with store_errors(f"{self.url}/{name} can't be linked"):
            Path(path).symlink_to(target)

    def begin(self, chosen: Mapping[str, Any]) -> None:
        """Write UNFINISHED with how the export is chosen."""
        self.write(UNFINISHED, _as_json({**chosen, _OWNER: self._owner}))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Make the export whole: write ``facts`` to DONE, and give the folder its name or remove UNFINISHED.

        Raises StoreError where another export has begun in the folder, or where DEST has got files of others.
        """
        self._refuse_others()
        with store_errors(f"{self.url} can't be finished"):
            remove_many(self.fs, [f"{self.work}/{name}" for name in self.left])
        write_whole(self.fs, self._path(DONE), _as_json(facts))
        with store_errors(f"{self.url} can't be finished"):
            self.fs.rm_file(f"{self.work}/{UNFINISHED}")
            if self.work == self.root:
                return
            replaced = _replaced(self.work)
            if Path(self.root).exists():  # It is empty, or an earlier export that --overwrite gives up.
                Path(self.root).rename(replaced)
            Path(self.work).rename(self.root)
            shutil.rmtree(replaced, ignore_errors=True)  # It may not be there.

    def _refuse_others(self) -> None:
        marker = read_whole(self.fs, f"{self.work}/{UNFINISHED}")
        if marker is None or json.loads(marker or b"{}").get(_OWNER) != self._owner:
            raise StoreError(f"DEST {self.url}: another export has begun there and goes on; this one ends")
        found = set() if self.work == self.root else _names(self.fs, self.root)
        if found and DONE not in found:
            raise StoreError(
                f"DEST {self.url}: got files of others meanwhile, such as {min(found)}; move them and export again"
            )

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
    if work != root:
        _recover(root, work)
    found = _names(fs, root)
    leftover = UNFINISHED in found if work == root else bool(list_dir(fs, work))
    whole = DONE in found and UNFINISHED not in found
    if whole and not overwrite:
        raise UsageError(f"DEST {shown}: holds a whole export already; allowed: another folder, or --overwrite")
    if found and not whole and UNFINISHED not in found:
        raise UsageError(f"DEST {shown}: allowed: a new or empty folder; this one holds {min(found)}")
    destination = Destination(fs, root, work, shown)
    with store_errors(f"{shown} can't be prepared"):
        if leftover and keep and _chosen_before(fs, work) == json.loads(_as_json(chosen)):
            destination.begin(chosen)
            remove_many(fs, [f"{work}/{DONE}"])
            destination.left = _files(fs, work)
            say(f"the same export stopped in {shown} before; pictures that it had copied whole are kept")
            return destination
        if leftover:
            say(f"an unfinished export in {shown} is removed; this one starts anew")
        if work != root:
            for folder in filter(os.path.exists, (work, _replaced(work))):
                shutil.rmtree(folder)
        elif found:
            destination.begin({})  # First, so that DEST is an export's all the while; and DONE goes before the others.
            remove_many(fs, [f"{root}/{DONE}"])
            remove_many(fs, [path for path in fs.find(root) if path != f"{root}/{UNFINISHED}"])
    destination.begin(chosen)
    return destination


def _chosen_before(fs: AbstractFileSystem, work: str) -> dict[str, Any] | None:
    """Return how the unfinished export in a folder was chosen; None where it does not say."""
    try:
        chosen: dict[str, Any] = json.loads(read_whole(fs, f"{work}/{UNFINISHED}") or b"")
    except ValueError:
        return None
    return {name: value for name, value in chosen.items() if name != _OWNER}


def _replaced(work: str) -> str:
    """Return where a local export that is replaced lies while the new one gets its name."""
    return f"{work}-replaced"


def _recover(root: str, work: str) -> None:
    """Give an export its name that lost it when a process died between two renames: the new one where it is whole."""
    whole = [folder for folder in (work, _replaced(work)) if Path(folder, DONE).exists()]
    if not Path(root).exists() and Path(_replaced(work)).exists() and whole:
        Path(whole[0]).rename(root)


def _names(fs: AbstractFileSystem, folder: str) -> set[str]:
    return {posixpath.basename(path.rstrip("/")) for path in list_dir(fs, folder)}


def _files(fs: AbstractFileSystem, folder: str) -> dict[str, int]:
    """Return the bytes of each file in a folder, by its path from there, without UNFINISHED."""
    prefix = f"{folder}/"
    found = {path.removeprefix(prefix): int(facts["size"]) for path, facts in fs.find(folder, detail=True).items()}
    return {name: size for name, size in found.items() if name != UNFINISHED}


def _as_json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1, ensure_ascii=False).encode()
