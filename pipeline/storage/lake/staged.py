"""Data files that are written in full before any reader sees them.

A commit stages all of its files, checks the lease, and then shows one file after another. A run that takes the output
over removes what is staged: after that, showing fails. So a writer that stalls before or after its check can't show a
file once the next run has begun to work.

- Local: a file under a temporary name, which a glob for ``*.parquet`` does not find; ``show`` renames it.
- S3: a multipart upload with all of its parts; ``show`` completes it, by one small request.
- Other stores have nothing of the kind: ``show`` writes the object. A writer that stalls in this request leaves a file
  that readers by glob see until the next run, or ``verify --repair``, removes it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import is_local, is_s3
from pipeline.storage.lake.layout import DATA_NAME, HIDDEN_NAME, LakePaths
from pipeline.storage.patience import LIMIT_S, ask_store
from pipeline.storage.store_failures import is_store_failure, store_errors
from schemas.errors import StoreError
from schemas.tables import TABLES

TEMP_SUFFIX = ".camlake-tmp"
"""Ends the name of a local file that is being written."""
_PART_BYTES = 50 * 2**20
"""Of an upload: what is sent again where a request fails; S3 wants at least 5 MiB of all parts but the last."""


class Staged(Protocol):
    """A file that no reader sees yet."""

    def show(self) -> None:
        """Make the file visible under its name; raises StoreError where it was removed or the store refuses."""

    def discard(self) -> None:
        """Remove the file unless it was shown."""


def stage(fs: AbstractFileSystem, path: str, data: bytes) -> Staged:
    """Write a file in full so that ``show`` makes it visible under ``path``; raises StoreError."""
    with store_errors(f"{path} can't be written"):
        if is_local(fs):
            return StagedFile.write(Path(path), data)
        if is_s3(fs):
            return _StagedUpload.send(fs, path, data)
    return _HeldObject(fs, path, data)


@dataclass
class StagedFile:
    """A local file under a temporary name in its folder. Its methods raise OSError."""

    target: Path
    temporary: Path
    new_folders: list[Path]

    @classmethod
    def write(cls, target: Path, data: bytes) -> "StagedFile":
        """Write the temporary file and sync it to the disk."""
        new_folders = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}")
        staged = cls(target, temporary, new_folders)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            staged.discard()
            raise
        return staged

    def show(self) -> None:
        """Rename the file, and sync the folders that are new or have a new name in them."""
        with store_errors(f"{self.target} can't be written"):
            try:
                self.temporary.replace(self.target)
            except BaseException:
                self.discard()
                raise
            for folder in [self.target.parent, *(new.parent for new in self.new_folders)]:
                _sync_folder(folder)

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        self.temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk: after a power failure a synced file without its name is lost."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass
class _StagedUpload:
    """A multipart upload to S3 that is not completed."""

    fs: AbstractFileSystem
    path: str
    upload: dict[str, str]
    size_bytes: int
    parts: list[dict[str, Any]] = field(default_factory=list)
    shown: bool = False

    @classmethod
    def send(cls, fs: AbstractFileSystem, path: str, data: bytes) -> "_StagedUpload":
        """Send all parts; ``data`` is not empty."""
        bucket, key, _ = fs.split_path(path)
        doing = f"{path} can't be written"
        begun = ask_store(doing, lambda: fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key))
        staged = cls(fs, path, {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}, len(data))
        try:
            for number, start in enumerate(range(0, len(data), _PART_BYTES), start=1):
                body = data[start : start + _PART_BYTES]
                part = {**staged.upload, "PartNumber": number, "Body": body}
                sent = ask_store(doing, partial(fs.call_s3, "upload_part", **part))
                staged.parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        except BaseException:
            staged.discard()
            raise
        return staged

    def show(self) -> None:
        """Complete the upload."""
        ask_store(f"{self.path} can't be written", self._complete)
        self.shown = True

    def _complete(self) -> None:
        try:
            self.fs.call_s3("complete_multipart_upload", **self.upload, MultipartUpload={"Parts": self.parts})
        except Exception as error:
            # Where the answer to a first request was lost, a second one finds no upload. The name has a digest.
            if not is_store_failure(error) or not self._stands():
                raise

    def _stands(self) -> bool:
        self.fs.invalidate_cache()
        try:
            return bool(self.fs.info(self.path)["size"] == self.size_bytes)
        except FileNotFoundError:
            return False

    def discard(self) -> None:
        """Abort the upload. Where that fails, the end of the run or the next run does it."""
        if not self.shown:
            with suppress(StoreError):
                _abort(self.fs, self.upload, limit_s=0)


@dataclass
class _HeldObject:
    """An object that is still in memory, for stores that can't hide one."""

    fs: AbstractFileSystem
    path: str
    data: bytes

    def show(self) -> None:
        """Write the object in one step."""
        ask_store(f"{self.path} can't be written", lambda: self.fs.pipe_file(self.path, self.data))

    def discard(self) -> None:
        """Do nothing: nothing was written."""


def remove_staged(fs: AbstractFileSystem, root: str) -> None:
    """Remove the staged data files of an output, so that a late worker can't show them; raises StoreError.

    On S3 this needs the permissions s3:ListBucketMultipartUploads and s3:AbortMultipartUpload.
    """
    paths = LakePaths(root)
    fs.invalidate_cache()
    if is_s3(fs):
        for upload in _uploads(fs, root):
            _abort(fs, upload)
    elif is_local(fs):
        with store_errors(f"{root} can't be listed"):
            for table in TABLES:
                for file in Path(paths.full(table)).rglob(f".part-*{TEMP_SUFFIX}"):
                    file.unlink(missing_ok=True)


def _uploads(fs: AbstractFileSystem, root: str) -> Iterator[dict[str, str]]:
    """Yield the unfinished uploads of data files of an output."""
    bucket, key, _ = fs.split_path(root)
    prefix = f"{key.rstrip('/')}/" if key else ""
    marker: dict[str, str] = {}
    tables = tuple(f"{prefix}{table}/model=" for table in TABLES)
    while True:
        page = ask_store(
            f"{root}: unfinished uploads can't be listed (s3:ListBucketMultipartUploads)",
            partial(fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker),
        )
        for one in page.get("Uploads", []):
            name = one["Key"].rpartition("/")[2]
            if one["Key"].startswith(tables) and (DATA_NAME.fullmatch(name) or HIDDEN_NAME.fullmatch(name)):
                yield {"Bucket": bucket, "Key": one["Key"], "UploadId": one["UploadId"]}
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _abort(fs: AbstractFileSystem, upload: dict[str, str], limit_s: float = LIMIT_S) -> None:
    """Abort an upload; one that does not exist is no error. It is tried again for up to ``limit_s`` seconds."""

    def abort() -> None:
        with suppress(FileNotFoundError):  # S3's NoSuchUpload
            fs.call_s3("abort_multipart_upload", **upload)

    what = f"{upload['Key']}: the unfinished upload can't be removed (s3:AbortMultipartUpload)"
    ask_store(what, abort, limit_s=limit_s)
