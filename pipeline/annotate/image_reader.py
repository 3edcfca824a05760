"""The read stage: planned inputs in, their encoded bytes out. This module imports no torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.inputs.object_reader import Fetched
from pipeline.storage.lake.planning import PlanSlice, read_plan_slice
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig
from schemas.tables import PLAN

FETCHED = pa.schema([*PLAN, pa.field("data", pa.large_binary())])
"""A planned input with its encoded bytes; where they are null, ``reason_code`` and ``detail`` say why."""
UNKNOWN_BYTES = 4 * 2**20
"""An object of unknown size counts as this many bytes."""
FETCH_BYTES = 64 * 2**20
"""Encoded bytes that a read task holds at a time; a slice of large photographs becomes several tables."""

STREAM_ROWS = 128
"""Rows of a table of a long slice, which a Parquet file makes: so few that every actor gets some of the work."""


def count_tables(slices: Sequence[PlanSlice]) -> int:
    """Return about how many tables the slices become; a table is the unit of work that an actor takes."""
    return sum(max(1, math.ceil(one.rows / STREAM_ROWS)) for one in slices)


@dataclass(frozen=True)
class ImageReader:
    """Fetches planned images. It holds only a few plain values, because Ray keeps a copy for each read task."""

    storage: StorageConfig
    out: str
    max_bytes: int

    def read_slice(self, one: PlanSlice) -> Iterator[pa.Table]:
        """Yield the images of a slice (FETCHED) in tables of at most about FETCH_BYTES."""
        plan = read_plan_slice(*connect(self.out, self.storage), one)
        fetcher = Fetcher(self.storage, self.max_bytes)
        for part, fetched in fetcher.fetch_in_parts(plan, FETCH_BYTES, UNKNOWN_BYTES, STREAM_ROWS):
            yield _table(part, fetched)

    def fetch(self, plan: pa.Table) -> pa.Table:
        """Return planned inputs (PLAN) with their encoded bytes, or the reason why these can't be fetched (FETCHED)."""
        return _table(plan, Fetcher(self.storage, self.max_bytes).fetch(plan))


def _table(plan: pa.Table, fetched: Sequence[Fetched]) -> pa.Table:
    rejections = [item if isinstance(item, RejectedImage) else None for item in fetched]
    columns = {name: plan[name] for name in plan.schema.names}
    columns["reason_code"] = pa.array([item.reason if item else None for item in rejections], pa.string())
    columns["detail"] = pa.array([item.detail if item else None for item in rejections], pa.string())
    blobs = [None if isinstance(item, RejectedImage) else item for item in fetched]
    columns["data"] = pa.array(blobs, pa.large_binary())
    return pa.table({name: columns[name] for name in FETCHED.names}, schema=FETCHED)
