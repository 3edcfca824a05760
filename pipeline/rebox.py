"""New boxes from stored maps: a second output beside the first, with no network and no image.

Each commit of the source is read whole, cut and committed, several side by side in threads. The stored maps are rounded
to 256 levels, so that a box is exactly that of a map which is nowhere further than (heat_max - heat_min) / 510 from the
network's: its level set lies between those of the true map at the same level plus and minus so much.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration
from pipeline.models.box_rules import BoxRule
from pipeline.storage import lineage
from pipeline.storage.ahead import map_ahead
from pipeline.storage.calibrations import RULE, calibration_in, read_calibration
from pipeline.storage.commit import Committer, committed_settings, finish_run, remove_leftovers, start_run
from pipeline.storage.filesystems import canonical_url, connect, safe_url
from pipeline.storage.lake import Layout, new_run_id
from pipeline.storage.lease import Lease
from pipeline.storage.reboxing import Source, Work, open_source, plan_rebox
from pipeline.stored_maps import new_tables
from schemas.config import StorageConfig
from schemas.errors import UsageError
from schemas.rebox import MAPS_OF, ReboxConfig
from schemas.runs import Lineage, RunManifest, spelled
from schemas.tables import Table, table_schema

_TABLES: tuple[Table, ...] = ("images", "boxes", "quarantine")


@dataclass(frozen=True)
class Rebox:
    """A begun run that holds its output's lease."""

    source: Source
    fs: AbstractFileSystem
    root: str
    manifest: RunManifest
    committer: Committer
    rule: BoxRule
    calibration: Calibration | None
    works: tuple[Work, ...]

    def run(self, advance: Callable[[int], None]) -> int:
        """Commit all of the work, telling ``advance`` how many inputs are done so far.

        Return how many maps have no new box because no stored one tells the probability of their class.
        """
        done = unknown = 0
        threads = os.cpu_count() or 1
        for work, lost in zip(self.works, map_ahead(self._do, enumerate(self.works), threads), strict=True):
            done, unknown = done + work.rows, unknown + lost
            advance(done)
        return unknown

    def finish(self) -> RunManifest:
        """Write the run's account and return it; raises StoreError where it does not add up."""
        return finish_run(self.fs, self.root, self.manifest, self.committer.generation)

    def _do(self, numbered: tuple[int, Work]) -> int:
        task, work = numbered
        method = self.manifest.settings.get("method", "cam")
        rows = self.source.current_rows(work, self.fs, self.root)
        new = new_tables(rows, self.rule, self.manifest.run_id, method, self.calibration)
        self.committer.commit(f"{task:06d}", new.tables, new.maps_without_box)
        return new.maps_without_prob


@contextmanager
def open_rebox(config: ReboxConfig) -> Iterator[Rebox]:
    """Take the new output's lease, plan what it lacks and begin; the caller runs and finishes.

    Raises UsageError for a source that lacks what the boxes need and for an output whose rows were made otherwise,
    LeaseError where another run is at work on it.
    """
    source = open_source(config)
    fs, root = connect(config.out, config)
    if canonical_url(config.out) == canonical_url(config.labels):
        raise UsageError(f"--out {safe_url(config.out)}: allowed: another place than LABELS, which keeps its boxes")
    rule = BoxRule(config.box_rule, config.threshold, config.min_area)
    started_at, run_id = datetime.now(UTC), new_run_id()
    with Lease.acquire(fs, root, run_id) as lease:
        remove_leftovers(fs, root)
        settings = _settings(config, source)
        _refuse_other_settings(config, source, settings, committed_settings(fs, root, source.run.model))
        calibration = _calibration(config, source, fs, root, settings)
        works, counts = plan_rebox(source, fs, root, Layout(root).plan_dir(run_id))
        manifest = RunManifest(
            run_id=run_id,
            status="running",
            model=source.run.model,
            date=f"{started_at:%Y-%m-%d}",
            started_at=started_at,
            config={"input": source.url, **_shown(config)},
            settings=settings,
            lineage=_lineage(source),
            counts=counts,
        )
        start_run(fs, root, manifest)
        schemas = {table: table_schema(table, 1, "float32") for table in _TABLES}
        storage = StorageConfig(**config.model_dump(include=set(StorageConfig.model_fields)))
        committer = Committer(config.out, storage, run_id, manifest.model, manifest.date, lease.generation, schemas)
        yield Rebox(source, fs, root, manifest, committer, rule, calibration, tuple(works))


def _settings(config: ReboxConfig, source: Source) -> dict[str, Any]:
    chosen = config.model_dump(mode="json", include=set(RULE))
    return {**source.run.settings, **chosen, "outputs": ["boxes"], MAPS_OF: source.url}


def _refuse_other_settings(
    config: ReboxConfig, source: Source, settings: dict[str, Any], committed: dict[str, Any] | None
) -> None:
    where = safe_url(config.out)
    if committed is not None and committed.get(MAPS_OF) != source.url:
        made = f"has boxes of {committed[MAPS_OF]}" if MAPS_OF in committed else "was made by camlake annotate"
        raise UsageError(f"--out {where}: {made}, not of {source.url}; use another --out")
    for name in RULE if committed else ():
        if committed and committed.get(name) != settings[name]:
            raise UsageError(
                f"--{name.replace('_', '-')}: the boxes in {where} were made with {spelled(committed.get(name))}, not"
                f" {spelled(settings[name])}; use the same, or another --out"
            )


def _calibration(
    config: ReboxConfig, source: Source, fs: AbstractFileSystem, root: str, settings: dict[str, Any]
) -> Calibration | None:
    """Return what makes ``box_score``: a calibration of the same model that was fitted on boxes of the same rule."""
    model = source.run.model
    if config.calibration is None:
        found = read_calibration(fs, root, model, settings)
        same_rule = all(source.run.settings.get(name) == settings[name] for name in RULE)
        return read_calibration(source.fs, source.root, model, settings) if found is None and same_rule else found
    return calibration_in(config.calibration, config, model, settings)


def _shown(config: ReboxConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {name: safe_url(value) if isinstance(value, str) else value for name, value in values.items()}


def _lineage(source: Source) -> Lineage:
    """Return the source's lineage, with who cut the boxes and from which runs."""
    own = {
        "camlake_version": lineage.camlake_version(),
        "code_version": lineage.code_version(),
        "python_version": lineage.python_version(),
        "packages": lineage.package_versions(),
        "source": source.url,
        "source_runs": source.run_ids,
    }
    return source.run.lineage.model_copy(update=own)
