"""The read stage: fetches the encoded bytes of planned inputs. This module does not import torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.fetch import Fetcher
from pipeline.storage.inputs.object_reader import Fetched
from pipeline.storage.lake.plan.planning import PlanSlice, read_plan_slice
from schemas.errors import RejectedImage
from schemas.options.config import StorageConfig
from schemas.tables import PLAN

FETCHED = pa.schema([*PLAN, pa.field("data", pa.large_binary())])
"""The schema of planned inputs with their encoded bytes; null bytes have a ``reason_code`` and a ``detail``."""
STREAM_ROWS = 128
"""Most rows of a table: a Parquet file gives a long slice, and small tables distribute its rows over all actors."""


def joined_slices(slices: Sequence[PlanSlice], rows: int) -> list[list[PlanSlice]]:
    """Return the slices in groups of neighbours, each of at most ``rows`` inputs or of one slice."""
    groups: list[list[PlanSlice]] = []
    for one in slices:
        if groups and sum(each.rows for each in groups[-1]) + one.rows <= rows:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def count_tables(slices: Sequence[PlanSlice]) -> int:
    """Return about how many tables the slices become; an actor works on one table at a time."""
    return sum(max(1, math.ceil(one.rows / STREAM_ROWS)) for one in slices)


def encoded_bytes(images: pa.Table) -> int:
    """Return the bytes of the images of a fetched table (FETCHED)."""
    return int(pc.sum(pc.binary_length(images["data"])).as_py() or 0)


@dataclass(frozen=True)
class ImageReader:
    """Fetches planned images. It holds only a few plain values, because Ray keeps a copy for each read task."""

    storage: StorageConfig
    out: str
    max_bytes: int

    def read_slices(self, *slices: PlanSlice) -> Iterator[pa.Table]:
        """Yield the images of one or more slices (FETCHED) in tables of at most about ``fetch.PART_BYTES``."""
        fs, root = connect(self.out, self.storage)
        plan = pa.concat_tables([read_plan_slice(fs, root, one) for one in slices])
        fetcher = Fetcher(self.storage, self.max_bytes)
        for part, fetched in fetcher.fetch_in_parts(plan, part_rows=STREAM_ROWS):
            yield _table(part, fetched)

    def fetch(self, plan: pa.Table) -> pa.Table:
        """Return planned inputs (PLAN) with their encoded bytes, or the reason why they can't be fetched (FETCHED)."""
        return _table(plan, Fetcher(self.storage, self.max_bytes).fetch(plan))


def _table(plan: pa.Table, fetched: Sequence[Fetched]) -> pa.Table:
    rejections = [item if isinstance(item, RejectedImage) else None for item in fetched]
    columns = {name: plan[name] for name in plan.schema.names}
    columns["reason_code"] = pa.array([item.reason if item else None for item in rejections], pa.string())
    columns["detail"] = pa.array([item.detail if item else None for item in rejections], pa.string())
    blobs = [None if isinstance(item, RejectedImage) else item for item in fetched]
    columns["data"] = pa.array(blobs, pa.large_binary())
    return pa.table({name: columns[name] for name in FETCHED.names}, schema=FETCHED)
