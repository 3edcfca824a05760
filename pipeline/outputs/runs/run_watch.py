"""Follows a run in progress from another process, by what the run writes: lease, manifest and commit records."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from pipeline.outputs.runs.run_list import say_duration
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease_holder import newest_holder
from pipeline.storage.lake.records import parse_record
from pipeline.storage.lake.whole_objects import list_dir, read_many, read_whole
from schemas.runs import CommitRecord, RunManifest

LOOK_EVERY_S = 2.0
"""Seconds between two looks at the output; each costs four or five requests and one for each new commit."""
RATE_OVER_S = 60.0
"""The rate is that of the last minute, so that it follows a run that becomes slower."""


class Seen(NamedTuple):
    """A run as it is at one moment."""

    text: str
    facts: dict[str, Any]


@dataclass
class WatchedRun:
    """A run and the commit records that were read so far."""

    fs: AbstractFileSystem
    root: str
    run_id: str
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    rejected: int = 0
    retries: int = 0
    _read: set[str] = field(default_factory=set)
    _points: deque[tuple[float, int]] = field(default_factory=deque)

    def look(self) -> Seen | None:
        """Return what the run has committed so far; None once it has ended. Raises StoreError."""
        paths = LakePaths(self.root)
        path = paths.full(paths.manifest_path(self.run_id))
        data = read_whole(self.fs, path)
        if data is None:
            return Seen(f"{self.run_id} has begun no run yet: it plans, compacts or repairs", {"run_id": self.run_id})
        run = parse_record(RunManifest, data, path)
        if run.status != "running":
            return None
        self._add_commits()
        rate, planned = self._rate(), run.counts.planned
        left_s = (planned - self.done) / rate if rate else None
        left = f", {say_duration(left_s)} left" if left_s is not None else ""
        speed = f"{rate:.1f} images/s, " if rate is not None else ""
        repeated = f", {self.retries} {'request' if self.retries == 1 else 'requests'} repeated" if self.retries else ""
        text = f"run {self.run_id}: {self.done}/{planned} committed, {speed}{self.rejected} rejected{repeated}{left}"
        facts = {"run_id": self.run_id, "done": self.done, "total": planned, "images_per_s": rate}
        facts |= {"rejected": self.rejected, "retries": self.retries, "left_s": left_s}
        return Seen(text, facts)

    def _add_commits(self) -> None:
        """Read the commit records that are new."""
        paths = LakePaths(self.root)
        listed = list_dir(self.fs, paths.full(paths.commits_dir(self.run_id)))
        new = [path for path in listed if path.endswith(".json") and path not in self._read]
        for path, data in zip(new, read_many(self.fs, new), strict=True):
            if data is not None:
                record = parse_record(CommitRecord, data, path)
                self.done += record.images + record.rejected
                self.rejected += record.rejected
                self.retries += record.retries
                self._read.add(path)

    def _rate(self) -> float | None:
        """Return images/s over the last RATE_OVER_S; None before there are two looks, and without a new commit."""
        now_s = self.clock()
        self._points.append((now_s, self.done))
        while len(self._points) > 2 and now_s - self._points[0][0] > RATE_OVER_S:
            self._points.popleft()
        began_s, before = self._points[0]
        return (self.done - before) / (now_s - began_s) if self.done > before else None


def watch_run(
    fs: AbstractFileSystem, root: str, show: Callable[..., None], sleep: Callable[[float], None] = time.sleep
) -> str | None:
    """Show the run in progress until it has ended or its holder is gone; return its id, None where none is in progress.

    ``show`` gets a text and its facts at every look. Raises StoreError where the store refuses.
    """
    holder = newest_holder(fs, root)
    if holder is None or holder.is_free:
        return None
    run = WatchedRun(fs, root, holder.run_id)
    while (seen := run.look()) is not None:
        show(seen.text, **seen.facts)
        sleep(LOOK_EVERY_S)
        now = newest_holder(fs, root)
        if now is None or now.run_id != run.run_id or now.is_free:
            break
    return run.run_id
