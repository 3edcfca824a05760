"""Opens and closes the runs of an output, for annotate, rebox and other writers.

A run is open while it holds the output's lease. This module knows neither Ray nor networks: a run is opened with the
name of a partition, a lineage and plain values.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.calibrations import calibration_in, read_calibration
from pipeline.storage.lake.commit import (
    Committer,
    finish_run,
    interrupt_run,
    remove_leftovers,
    start_run,
)
from pipeline.storage.lake.layout import new_run_id
from pipeline.storage.lake.lease import lease_when_free, silent
from pipeline.storage.lake.records import committed_settings
from pipeline.storage.lake.whole_objects import remove_secrets
from pipeline.storage.patience import PATIENCE
from schemas.errors import CamlakeError, UsageError
from schemas.options.annotate import FIRST_LOCALIZATION
from schemas.options.box_rules import FIRST_BOXES
from schemas.options.config import JobConfig, StorageConfig
from schemas.options.rebox import MAPS_OF
from schemas.runs import Counts, Lineage, RunManifest, RunSummary, spelled
from schemas.tables import Table
from schemas.url_secrets import safe_url


@dataclass(frozen=True)
class RunRequest:
    """The values with which a run is opened."""

    out: str
    storage: StorageConfig
    model: str
    """Value of the ``model`` partition: <name>-<digest8>."""
    settings: Mapping[str, Any]
    """The options that shape the rows, by name; all runs of one model in one output must agree on them."""
    config: Mapping[str, Any]
    """The resolved configuration, as ``shown_config`` gives it."""
    lineage: Lineage
    calibration: str | None = None
    """URL of another output whose calibration gives ``box_score``; None: this output's calibration, if it has one."""
    wait_s: float = 0.0
    """How long to wait while another run holds the output, in seconds."""
    undecided: frozenset[str] = frozenset()
    """Names of settings that are decided while the run is open; ``settled`` then checks them."""


@dataclass(frozen=True)
class OpenRun:
    """A run that holds the lease of its output. Only after ``begin`` is it one of the output's runs."""

    fs: AbstractFileSystem
    root: str
    out: str
    storage: StorageConfig
    manifest: RunManifest
    generation: int
    """Generation of the lease."""
    calibration: Calibration | None
    """The calibration that gives ``box_score``; None where there is none."""

    def settled(self, request: RunRequest) -> Self:
        """Return the run with the settings and the lineage of ``request``, in which nothing is undecided.

        Raises as ``check_settings`` and ``find_calibration`` do.
        """
        check_settings(request, self.fs, self.root)
        changed = {"settings": dict(request.settings), "config": dict(request.config), "lineage": request.lineage}
        manifest = self.manifest.model_copy(update=changed)
        return replace(self, manifest=manifest, calibration=find_calibration(request, self.fs, self.root))

    def begin(self, counts: Counts, resolved: Mapping[str, Any] | None = None) -> Self:
        """Write the lineage and the manifest of the run, and return the begun run.

        ``counts`` has the numbers of listed and planned inputs; ``resolved`` has the values that were chosen for
        options which the user left open.
        """
        config = self.manifest.config | ({"resolved": dict(resolved)} if resolved else {})
        manifest = self.manifest.model_copy(update={"counts": counts, "config": config})
        start_run(self.fs, self.root, manifest)
        return replace(self, manifest=manifest)

    def committer(self, schemas: Mapping[Table, pa.Schema]) -> Committer:
        """Return the object that commits the rows of this run; ``schemas`` has the schema of each table it writes."""
        manifest = self.manifest
        return Committer(
            self.out, self.storage, manifest.run_id, manifest.model, manifest.date, self.generation, schemas
        )

    def finish(self, summary: RunSummary | None = None) -> RunManifest:
        """Write the final manifest, with ``summary``, and return it; raises StoreError where counts do not add up."""
        manifest = self.manifest.model_copy(update={"summary": summary})
        return finish_run(self.fs, self.root, manifest, self.generation)


@contextmanager
def open_run(request: RunRequest, say: Callable[[str], None] = silent) -> Iterator[OpenRun]:
    """Take the output's lease and remove what dead runs left behind; then the caller plans and calls ``begin``.

    The secrets of the run's plan are removed at the end, also after an error.

    ``say`` gets a line where another run holds the output and is waited for. Raises HeldError where it holds the output
    for longer than ``request.wait_s``, and what ``check_settings`` and ``find_calibration`` raise.
    """
    fs, root = connect(request.out, request.storage)
    started_at = datetime.now(UTC)
    run_id = new_run_id()
    with lease_when_free(fs, root, run_id, request.wait_s, say) as lease:
        remove_leftovers(fs, root, lease.generation)
        check_settings(request, fs, root)
        calibration = None if request.undecided else find_calibration(request, fs, root)
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
        try:
            yield OpenRun(fs, root, request.out, request.storage, manifest, lease.generation, calibration)
        except BaseException:
            # The error of the run is what counts; the next run does what fails here.
            with PATIENCE.hurried():
                with suppress(CamlakeError):
                    remove_secrets(fs, root, run_id)
                with suppress(CamlakeError):
                    interrupt_run(fs, root, run_id, lease.generation)
            raise
        remove_secrets(fs, root, run_id)


def check_settings(request: RunRequest, fs: AbstractFileSystem, root: str) -> None:
    """Raise UsageError where the output has rows of the same model that were made with other settings."""
    found = committed_settings(fs, root, request.model)
    if not found:
        return
    committed, where = FIRST_LOCALIZATION | FIRST_BOXES | found, safe_url(request.out)
    maps_of, source = committed.get(MAPS_OF), request.settings.get(MAPS_OF)
    if maps_of and not source:
        raise UsageError(
            f"--out {where}: has boxes that camlake rebox cut from the maps of {maps_of}; "
            "annotate there and rebox again, or use another --out"
        )
    if maps_of != source:
        made = f"has boxes of {maps_of}" if maps_of else "was made by camlake annotate"
        raise UsageError(f"--out {where}: {made}, not of {source}; use another --out")
    rows = "boxes" if source else "rows of this model"
    for name, value in request.settings.items():
        if name in committed and committed[name] != value and name not in request.undecided:
            raise UsageError(
                f"--{name.replace('_', '-')}: the {rows} in {where} were made with "
                f"{spelled(committed[name])}, not {spelled(value)}; use the same, or another --out"
            )


def find_calibration(request: RunRequest, fs: AbstractFileSystem, root: str) -> Calibration | None:
    """Return the calibration from ``--calibration``, or else this output's calibration; None where there is none.

    Raises UsageError where ``--calibration`` has none for boxes made with these settings, and StoreError where a
    calibration can't be read or was fitted on other maps.
    """
    if request.calibration:
        return calibration_in(request.calibration, request.storage, request.model, request.settings)
    return read_calibration(fs, root, request.model, request.settings)


def shown_config(config: JobConfig) -> dict[str, Any]:
    """Return the resolved configuration without the secrets in URLs."""
    values = config.model_dump(mode="json")
    return {name: safe_url(value) if isinstance(value, str) else value for name, value in values.items()}
