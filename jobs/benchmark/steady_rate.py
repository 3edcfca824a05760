"""Images/s of a job at steady state, from the column ``annotated_at`` of its output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotate.reporter import Advance, Reporter
from schemas.errors import UsageError


class SilentReporter(Reporter):
    """A reporter that shows nothing."""

    def say(self, text: str, **facts: Any) -> None:
        """Do nothing."""

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Yield a function that does nothing."""

        def advance(done: int, rejected: int = 0) -> None: ...

        yield advance


def annotated_s(out: Path) -> list[float]:
    """Return the sorted times at which images were annotated, in seconds since 1970, from all Parquet files."""
    columns = [
        pq.read_table(path, columns=[name], partitioning=None)[name]
        for path in out.rglob("*.parquet")
        for name in pq.read_schema(path).names
        if name == "annotated_at"
    ]
    return sorted((pa.chunked_array(columns).cast(pa.int64()).to_numpy() / 1e6).tolist()) if columns else []


def steady_per_s(times_s: Sequence[float]) -> float:
    """Return images/s between the first fifth and the last tenth of the sorted times, when all workers work.

    Raises UsageError where this part has no length.
    """
    start_s, end_s = times_s[len(times_s) // 5], times_s[len(times_s) * 9 // 10]
    if end_s == start_s:
        raise UsageError(f"--count {len(times_s)}: too few images for a steady state")
    return sum(start_s < time_s <= end_s for time_s in times_s) / (end_s - start_s)
