"""New boxes from stored maps: a second output beside the first, with no network and no image.

Each commit of the source is read whole, cut and committed, several side by side in threads. The stored maps are rounded
to 256 levels, so that a box is exactly that of a map which is nowhere further than (heat_max - heat_min) / 510 from the
network's: its level set lies between those of the true map at the same level plus and minus so much.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.arrays.calibration import Calibration
from pipeline.models.localize.box_rules import BoxRule
from pipeline.outputs.rebox_plan import Source, Work, open_source, plan_rebox
from pipeline.outputs.stored_maps import new_tables
from pipeline.storage.filesystems import canonical_url, safe_url
from pipeline.storage.lake.calibrations import RULE, read_calibration
from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lineage import software_versions
from pipeline.storage.lake.run import OpenRun, RunRequest, open_run, shown_config
from pipeline.storage.prefetch import map_ahead
from schemas.errors import UsageError
from schemas.rebox import MAPS_OF, ReboxConfig
from schemas.tables import written_schemas

_OUTPUTS = ["boxes"]
"""The optional tables that a rebox writes."""


@dataclass(frozen=True)
class Rebox:
    """A begun run that holds its output's lease."""

    source: Source
    run: OpenRun
    committer: Committer
    rule: BoxRule
    works: tuple[Work, ...]

    def cut(self, advance: Callable[[int], None]) -> int:
        """Commit all of the work, telling ``advance`` how many inputs are done so far.

        Return how many maps have no new box because no stored one tells the probability of their class.
        """
        done = unknown = 0
        threads = os.cpu_count() or 1
        for work, lost in zip(self.works, map_ahead(self._do, enumerate(self.works), threads), strict=True):
            done, unknown = done + work.rows, unknown + lost
            advance(done)
        return unknown

    def _do(self, numbered: tuple[int, Work]) -> int:
        task, work = numbered
        manifest = self.run.manifest
        rows = self.source.current_rows(work, self.run.fs, self.run.root)
        method = manifest.settings.get("method", "cam")
        new = new_tables(rows, self.rule, manifest.run_id, method, self.run.calibration)
        self.committer.commit(f"{task:06d}", new.tables, new.maps_without_box)
        return new.maps_without_prob


@contextmanager
def open_rebox(config: ReboxConfig) -> Iterator[Rebox]:
    """Take the new output's lease, plan what it lacks and begin; the caller cuts the boxes and finishes the run.

    Raises UsageError for a source that lacks what the boxes need and for an output whose rows were made otherwise,
    LeaseError where another run is at work on it.
    """
    source = open_source(config)
    if canonical_url(config.out) == canonical_url(config.labels):
        raise UsageError(f"--out {safe_url(config.out)}: allowed: another place than LABELS, which keeps its boxes")
    rule = BoxRule(config.box_rule, config.threshold, config.min_area)
    with open_run(_request(config, source)) as opened:
        run = replace(opened, calibration=opened.calibration or _calibration_of(source, opened))
        works, counts = plan_rebox(source, run.fs, run.root, LakePaths(run.root).plan_dir(run.manifest.run_id))
        run = run.begin(counts)
        committer = run.committer(written_schemas(_OUTPUTS))
        yield Rebox(source, run, committer, rule, tuple(works))


def _request(config: ReboxConfig, source: Source) -> RunRequest:
    chosen = config.model_dump(mode="json", include=set(RULE))
    lineage = source.run.lineage.model_copy(
        update={**software_versions(), "source": source.url, "source_runs": source.run_ids}
    )
    return RunRequest(
        out=config.out,
        storage=config.storage,
        model=source.run.model,
        settings={**source.run.settings, **chosen, "outputs": _OUTPUTS, MAPS_OF: source.url},
        config={"input": source.url, **shown_config(config)},
        lineage=lineage,
        calibration=config.calibration,
    )


def _calibration_of(source: Source, run: OpenRun) -> Calibration | None:
    """Return the calibration of the source where it was fitted on boxes of the same rule."""
    settings = run.manifest.settings
    if any(source.run.settings.get(name) != settings[name] for name in RULE):
        return None
    return read_calibration(source.fs, source.root, source.run.model, settings)
