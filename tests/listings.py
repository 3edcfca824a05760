"""Inputs for the tests of listing, and functions that read what a listing gave."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.inputs.listing import Listing, list_inputs
from schemas.input_options import InputOptions
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


JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF"
PNG = b"\x89PNG\r\n\x1a\n"


def found_in(url, how: InputOptions = InputOptions()) -> tuple[list[str], dict[str, int], str]:  # noqa: B008
    """Return the uris below ``url``, what was skipped by kind, and the kind of the input."""
    listing = list_inputs(str(url), LOCAL, how=how)
    uris = sorted(row["uri"].removeprefix(f"{url}").lstrip("/") for row in rows(listing))
    return uris, dict(listing.skipped_kinds), listing.kind


def parquet_of(columns: dict | pa.Table, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer, **options)
    return buffer.getvalue()


PICTURE = JPEG + b"x" * 300
IMAGES_INSIDE = parquet_of({"image": [PICTURE + os.urandom(5000), PICTURE + os.urandom(5000)]})
SHARD = tar_bytes({"a.jpg": PICTURE * 30, "b.jpg": PICTURE * 30, "a.json": b"{}"})
