"""The pictures of an export: fetched and copied, embedded or linked; one that can't be read is left out and named."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.images.formats import open_header
from pipeline.images.pixels import orientation
from pipeline.outputs.export.batches import Batch
from pipeline.outputs.export.destination import Destination
from pipeline.storage.filesystems import protocol_of
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.lake.rows import plan_rows
from schemas.errors import RejectedImage
from schemas.reasons import Reason

LEFT_OUT = "camlake-left-out.csv"
"""Names every picture that is not in the export, with the reason; the file is there only where there is one."""
HEAD_BYTES = 2**16
"""The first bytes of a picture, which hold the header of most formats."""


class PictureLog:
    """Counts pictures that are left out, and lists them in LEFT_OUT; counts those that are stored turned."""

    def __init__(self, dest: Destination) -> None:
        """Begin no file before the first picture is left out."""
        self._dest = dest
        self._file: IO[bytes] | None = None
        self.count = self.turned = 0
        self.examples: list[str] = []

    def add(self, uri: str, rejection: RejectedImage) -> None:
        """Count and list a picture; the first few are examples for a message."""
        if self._file is None:
            self._file = self._dest.open(LEFT_OUT)
            self._file.write(b"uri,reason_code,detail\n")
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow([uri, rejection.reason, rejection.detail])
        self._file.write(line.getvalue().encode())
        self.count += 1
        if len(self.examples) < 3:
            self.examples.append(f"{uri} ({rejection.detail})")

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            self._file.close()


def with_data(batch: Batch, fetcher: Fetcher, log: PictureLog) -> Iterator[Batch]:
    """Yield the images of ``batch`` with their encoded pictures, in parts of about ``fetch.PART_BYTES``."""
    known = _planned(batch, log)
    start = 0
    for part, fetched in fetcher.fetch_in_parts(plan_rows(known.images)):
        places = np.arange(start, start + len(part))
        start += len(part)
        for uri, found in zip(part["uri"].to_pylist(), fetched, strict=True):
            if isinstance(found, RejectedImage):
                log.add(uri, found)
            else:
                log.turned += _is_turned(found) or False
        read = np.array([not isinstance(found, RejectedImage) for found in fetched], np.bool_)
        data = [found for found in fetched if not isinstance(found, RejectedImage)]
        yield replace(known.take(places[read]), data=data)


def stored_turned(read: Callable[[int | None], bytes]) -> bool:
    """Return whether a picture, of which ``read`` returns the first n bytes, is not stored upright."""
    turned = _is_turned(read(HEAD_BYTES))
    return (_is_turned(read(None)) or False) if turned is None else turned


def _is_turned(data: bytes) -> bool | None:
    """Return whether a picture is not stored upright, so that a reader has to apply its EXIF orientation.

    None where the bytes can't be opened: they are too few for the format, or it needs more than the header.
    """
    try:
        return orientation(open_header(data).image) != 1
    except RejectedImage:
        return None


def linkable(batch: Batch, log: PictureLog) -> tuple[Batch, list[str]]:
    """Return the images whose pictures are plain local files, as they were, with the paths of these files."""
    known = _planned(batch, log)
    plan = plan_rows(known.images)
    kept, paths = [], []
    for place, row in enumerate(plan.select(["uri", "path", "offset", "size_bytes"]).to_pylist()):
        problem = _no_link(row["uri"], row["path"], row["offset"], row["size_bytes"])
        if problem:
            log.add(row["uri"], problem)
        else:
            kept.append(place)
            paths.append(row["path"])
    return known.take(np.array(kept, np.int64)), paths


def _no_link(uri: str, path: str, offset: int | None, size_bytes: int | None) -> RejectedImage | None:
    if offset is not None or protocol_of(uri) != "file":
        return RejectedImage(
            Reason.FETCH_FAILED, "can't be linked: it lies in a shard, a Parquet file or another store"
        )
    try:
        size = os.stat(path).st_size  # noqa: PTH116 (a Path would cost as much as the call)
    except OSError as error:
        return RejectedImage(Reason.NOT_FOUND, str(error.strerror))
    if size_bytes is not None and size != size_bytes:
        return RejectedImage(Reason.CHANGED, f"{size} bytes; it had {size_bytes} when it was listed")
    return None


def _planned(batch: Batch, log: PictureLog) -> Batch:
    """Return the images whose place is known: no run's plan names the others."""
    known: NDArray[np.bool_] = batch.images["path"].is_valid().to_numpy()
    for uri in batch.images["uri"].filter(pa.array(~known)).to_pylist():
        log.add(uri, RejectedImage(Reason.NOT_FOUND, "no plan of a run says where it lies"))
    return batch.take(np.flatnonzero(known))
