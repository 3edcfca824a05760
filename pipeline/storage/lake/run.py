"""Opens and closes the runs of an output for whoever writes to it: annotate, rebox and what comes.

A run is open while it holds the output's lease. It knows neither Ray nor a network: it takes the name of the partition,
a lineage and plain values.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration
from pipeline.storage.filesystems import connect, safe_url
from pipeline.storage.lake.calibrations import calibration_in, read_calibration
from pipeline.storage.lake.commit import Committer, committed_settings, finish_run, remove_leftovers, start_run
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import Lease
from schemas.annotate import FIRST_LOCALIZATION
from schemas.config import JobConfig, StorageConfig
from schemas.errors import UsageError
from schemas.rebox import MAPS_OF
from schemas.runs import Counts, Lineage, RunManifest, spelled
from schemas.tables import Table


@dataclass(frozen=True)
class RunRequest:
    """What a run needs to be opened: where it writes, for which model, and what its rows are made with."""

    out: str
    storage: StorageConfig
    model: str
    """Value of the ``model`` partition: <name>-<digest8>."""
    settings: Mapping[str, Any]
    """What shapes the rows, by the names of the options; the same for all runs of one model in one output."""
    config: Mapping[str, Any]
    """The resolved configuration, as ``shown_config`` gives it."""
    lineage: Lineage
    calibration: str | None = None
    """URL of another output whose calibration makes ``box_score``; None: the output's own, where it has one."""


@dataclass(frozen=True)
class OpenRun:
    """A run that holds its output's lease; it counts from ``begin`` on."""

    fs: AbstractFileSystem
    root: str
    out: str
    storage: StorageConfig
    manifest: RunManifest
    generation: int
    """Of the lease."""
    calibration: Calibration | None
    """What makes ``box_score``; None where there is none."""

    def begin(self, counts: Counts, resolved: Mapping[str, Any] | None = None) -> Self:
        """Write the lineage and the manifest of the run, and return the begun run.

        ``counts`` says what was planned; ``resolved`` holds what was chosen for options that the user left open.
        """
        config = self.manifest.config | ({"resolved": dict(resolved)} if resolved else {})
        manifest = self.manifest.model_copy(update={"counts": counts, "config": config})
        start_run(self.fs, self.root, manifest)
        return replace(self, manifest=manifest)

    def committer(self, schemas: Mapping[Table, pa.Schema]) -> Committer:
        """Return what commits the rows of this run; ``schemas`` are those of the tables that it writes."""
        manifest = self.manifest
        return Committer(
            self.out, self.storage, manifest.run_id, manifest.model, manifest.date, self.generation, schemas
        )

    def finish(self) -> RunManifest:
        """Write the final manifest and return it; raises StoreError where its counts do not add up."""
        return finish_run(self.fs, self.root, self.manifest, self.generation)


@contextmanager
def open_run(request: RunRequest) -> Iterator[OpenRun]:
    """Take the output's lease and remove what dead runs left; the caller plans and begins.

    Raises LeaseError where another run holds the output, and as ``check_settings`` and ``find_calibration`` do.
    """
    fs, root = connect(request.out, request.storage)
    started_at = datetime.now(UTC)
    run_id = new_run_id()
    with Lease.acquire(fs, root, run_id) as lease:
        remove_leftovers(fs, root)
        check_settings(request, fs, root)
        calibration = find_calibration(request, fs, root)
        manifest = RunManifest(
            run_id=run_id,
            status="running",
            model=request.model,
            date=f"{started_at:%Y-%m-%d}",
            started_at=started_at,
            config=dict(request.config),
            settings=dict(request.settings),
            lineage=request.lineage,
        )
        yield OpenRun(fs, root, request.out, request.storage, manifest, lease.generation, calibration)


def check_settings(request: RunRequest, fs: AbstractFileSystem, root: str) -> None:
    """Raise UsageError where the output has rows of the same model that were made with other settings."""
    found = committed_settings(fs, root, request.model)
    if not found:
        return
    committed, where = FIRST_LOCALIZATION | found, safe_url(request.out)
    maps_of, source = committed.get(MAPS_OF), request.settings.get(MAPS_OF)
    if maps_of and not source:
        raise UsageError(
            f"--out {where}: has boxes that camlake rebox cut from the maps of {maps_of}; "
            "annotate there and rebox again, or use another --out"
        )
    if maps_of != source:
        made = f"has boxes of {maps_of}" if maps_of else "was made by camlake annotate"
        raise UsageError(f"--out {where}: {made}, not of {source}; use another --out")
    for name, value in request.settings.items():
        if name in committed and committed[name] != value:
            raise UsageError(
                f"--{name.replace('_', '-')}: the rows of this model in {where} were made with "
                f"{spelled(committed[name])}, not {spelled(value)}; use the same, or another --out"
            )


def find_calibration(request: RunRequest, fs: AbstractFileSystem, root: str) -> Calibration | None:
    """Return the calibration that ``--calibration`` names, else the output's own, None where it has none.

    Raises UsageError where ``--calibration`` has none for boxes made with these settings, and StoreError where a
    calibration can't be read or was fitted on other maps.
    """
    if request.calibration:
        return calibration_in(request.calibration, request.storage, request.model, request.settings)
    return read_calibration(fs, root, request.model, request.settings)


def shown_config(config: JobConfig) -> dict[str, Any]:
    """Return the resolved configuration without secrets that stand in URLs."""
    values = config.model_dump(mode="json")
    return {name: safe_url(value) if isinstance(value, str) else value for name, value in values.items()}
