"""A run that is open: its output's lease held, its settings those of the rows that are there, its account begun."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration
from pipeline.graph.model import Model
from pipeline.graph.resources import Compute
from pipeline.storage import lineage
from pipeline.storage.calibrations import calibration_in, read_calibration
from pipeline.storage.commit import committed_settings, finish_run, remove_leftovers, start_run
from pipeline.storage.filesystems import connect, safe_url
from pipeline.storage.lake import new_run_id
from pipeline.storage.lease import Lease
from schemas.annotate import FIRST_LOCALIZATION, AnnotateConfig
from schemas.errors import UsageError
from schemas.rebox import MAPS_OF
from schemas.runs import Counts, Lineage, RunManifest, spelled


@dataclass(frozen=True)
class OpenRun:
    """A run that holds its output's lease; it counts from ``begin`` on."""

    fs: AbstractFileSystem
    root: str
    manifest: RunManifest
    generation: int
    calibration: Calibration | None
    """Of the box scores."""

    def begin(self, counts: Counts, compute: Compute | None) -> Self:
        """Write lineage and manifest, with what was planned and how it will run, and return the begun run."""
        config = self.manifest.config | ({"resolved": asdict(compute)} if compute else {})
        manifest = self.manifest.model_copy(update={"counts": counts, "config": config})
        start_run(self.fs, self.root, manifest)
        return replace(self, manifest=manifest)

    def finish(self) -> RunManifest:
        """Write the run's account and return it; raises StoreError where it does not add up."""
        return finish_run(self.fs, self.root, self.manifest, self.generation)


@contextmanager
def open_run(config: AnnotateConfig, model: Model) -> Iterator[OpenRun]:
    """Take the output's lease and remove what dead runs left; the caller lists, plans and begins.

    Raises LeaseError where another run is at work, UsageError where the output's rows of this model were made with
    other settings, and as ``find_calibration`` does.
    """
    fs, root = connect(config.out, config)
    started_at = datetime.now(UTC)
    run_id = new_run_id()
    with Lease.acquire(fs, root, run_id) as lease:
        remove_leftovers(fs, root)
        settings = refuse_other_settings(config, model, fs, root)
        calibration = find_calibration(config, model, settings, fs, root)
        manifest = RunManifest(
            run_id=run_id,
            status="running",
            model=model.partition,
            date=f"{started_at:%Y-%m-%d}",
            started_at=started_at,
            config=shown_config(config),
            settings=settings,
            lineage=_lineage(config, model),
        )
        yield OpenRun(fs, root, manifest, lease.generation, calibration)


def _settings(config: AnnotateConfig, model: Model) -> dict[str, Any]:
    labels = "digest " + hashlib.sha256("\n".join(model.weights.labels).encode()).hexdigest()[:8]
    return config.settings() | {"labels": labels, "classes": "a file of classes" if config.classes else "no classes"}


def refuse_other_settings(config: AnnotateConfig, model: Model, fs: AbstractFileSystem, root: str) -> dict[str, Any]:
    """Return the settings that shape the rows; raises UsageError where the output's rows of this model have others."""
    settings = _settings(config, model)
    found = committed_settings(fs, root, model.partition)
    committed = FIRST_LOCALIZATION | found if found else {}
    if MAPS_OF in committed:
        raise UsageError(
            f"--out {safe_url(config.out)}: has boxes that camlake rebox cut from the maps of {committed[MAPS_OF]}; "
            "annotate there and rebox again, or use another --out"
        )
    for name, value in settings.items():
        if name in committed and committed[name] != value:
            raise UsageError(
                f"--{name.replace('_', '-')}: the rows of this model in {safe_url(config.out)} were made with "
                f"{spelled(committed[name])}, not {spelled(value)}; use the same, or another --out"
            )
    return settings


def find_calibration(
    config: AnnotateConfig, model: Model, settings: Mapping[str, Any], fs: AbstractFileSystem, root: str
) -> Calibration | None:
    """Return the calibration of the box scores, ``--calibration``'s or the output's own; None where it has none.

    Raises UsageError where ``--calibration`` has none for boxes made as ``settings`` say, and StoreError where either
    can't be read or was fitted on other maps.
    """
    if config.calibration:
        return calibration_in(config.calibration, config, model.partition, settings)
    return read_calibration(fs, root, model.partition, settings)


def shown_config(config: AnnotateConfig) -> dict[str, Any]:
    """Return the resolved configuration without secrets that stand in URLs."""
    values = config.model_dump(mode="json")
    return {name: safe_url(value) if isinstance(value, str) else value for name, value in values.items()}


def _lineage(config: AnnotateConfig, model: Model) -> Lineage:
    return Lineage(
        camlake_version=lineage.camlake_version(),
        code_version=lineage.code_version(),
        python_version=lineage.python_version(),
        packages=lineage.package_versions(),
        model=model.network.name,
        model_digest=model.digest,
        weights=safe_url(model.weights.source),
        weights_sha256=model.weights.sha256,
        parameters=model.network.n_parameters,
        classes=model.network.classes,
        preprocessing={**asdict(model.network.preprocessing), "resize": config.resize, "map_hw": model.resize.map_hw},
    )
