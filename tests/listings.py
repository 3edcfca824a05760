"""Inputs for the tests of listing, and functions that read what a listing gave."""

import io
import tarfile
from pathlib import Path

from pipeline.storage.inputs.listing import Listing, list_inputs
from schemas.options.config import StorageConfig

LOCAL = StorageConfig()


def rows(listing: Listing) -> list[dict]:
    return [row for batch in listing.batches for row in batch.to_pylist()]


def listed(url: str, storage: StorageConfig = LOCAL) -> list[dict]:
    return rows(list_inputs(str(url), storage))


def uris(url: str, storage: StorageConfig = LOCAL) -> list[str]:
    return [row["uri"] for row in listed(url, storage)]


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def tar_bytes(members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
