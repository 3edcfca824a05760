"""The runs of an output as its documents tell them: state, counts, duration, rate, and who holds the lease."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from fsspec import AbstractFileSystem

from pipeline.storage.lake.lease_holder import Holder, newest_holder
from pipeline.storage.lake.records import load_runs, no_output
from schemas.runs import RunManifest

State = Literal["running", "dead", "complete", "interrupted"]
"""``dead``: it neither ended nor holds the lease any more; the next run marks it as interrupted."""


@dataclass(frozen=True)
class RunRow:
    """A run and its state."""

    run: RunManifest
    state: State
    seconds: float | None
    """From the start of the run to its end, or to now; None for a dead run, whose end nobody knows."""

    @property
    def images_per_s(self) -> float | None:
        """Return the rate of the work, or without a summary that of the whole run; None for a dead run."""
        if self.run.summary:
            return self.run.summary.images_per_s
        done = self.run.counts.annotated + self.run.counts.rejected
        return done / self.seconds if self.seconds else None

    @property
    def facts(self) -> dict[str, Any]:
        """Return everything that is known of the run, for machines."""
        run = self.run
        return {
            "run_id": run.run_id,
            "state": self.state,
            "model": run.model,
            "started_at": run.started_at,
            "ended_at": run.ended_at,
            "seconds": self.seconds,
            "images_per_s": self.images_per_s,
            "counts": run.counts.model_dump(),
            "summary": run.summary.model_dump() if run.summary else None,
        }

    @property
    def cells(self) -> list[str | int]:
        """Return the row of a table with COLUMNS, for people."""
        counts, seconds, rate = self.run.counts, self.seconds, self.images_per_s
        reasons = ", ".join(f"{rows} {code}" for code, rows in sorted(counts.rejected_by_reason.items()))
        return [
            self.run.run_id,
            self.state,
            f"{self.run.started_at:%Y-%m-%d %H:%M:%S}",
            "?" if seconds is None else say_duration(seconds),
            counts.already_done,
            counts.planned,
            counts.annotated,
            counts.rejected,
            "?" if rate is None else f"{rate:.1f}",
            "?" if self.run.summary is None else self.run.summary.retries,
            reasons,
        ]


COLUMNS = (
    *("run", "state", "started (UTC)", "took", "done before", "planned", "annotated", "rejected", "images/s"),
    *("retries", "rejected by reason"),
)


def list_runs(fs: AbstractFileSystem, root: str, now: datetime | None = None) -> tuple[list[RunRow], Holder | None]:
    """Return the runs of an output, oldest first, and the last holder of its lease.

    Raises StoreError where a document can't be read, and where the output has neither a run nor a lease.
    """
    holder, runs = newest_holder(fs, root), load_runs(fs, root)
    if not runs and holder is None:
        raise no_output(fs.unstrip_protocol(root))
    return [row_of(run, holder, now or datetime.now(UTC)) for run in runs], holder


def row_of(run: RunManifest, holder: Holder | None, now: datetime) -> RunRow:
    """Return a run with its state; a run lives as long as it may hold the lease, whose last holder is ``holder``."""
    if run.status != "running":
        took = run.ended_at - run.started_at if run.ended_at else None
        return RunRow(run, run.status, took.total_seconds() if took else None)
    if holder is not None and holder.run_id == run.run_id and not holder.is_free:
        return RunRow(run, "running", (now - run.started_at).total_seconds())
    return RunRow(run, "dead", None)


def say_duration(seconds: float) -> str:
    """Return a duration as text: "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def table_of(rows: Sequence[RunRow]) -> list[list[str | int]]:
    """Return the rows of a table with COLUMNS."""
    return cast(list[list[str | int]], [row.cells for row in rows])
