"""New boxes from stored maps: writes a second output beside the first, without a network and without images.

Threads take the source commit by commit: they read its rows, cut the boxes and commit them. Stored maps are rounded to
256 levels. So each box is exact for a map that differs from the network's map by at most (heat_max - heat_min) / 510.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.arrays.calibration import Calibration
from pipeline.models.localize.box_rules import BoxRule
from pipeline.outputs.rebox_plan import Source, Work, open_source, plan_rebox
from pipeline.outputs.stored_maps import new_tables
from pipeline.storage.filesystems import canonical_url
from pipeline.storage.lake.calibrations import RULE, read_calibration
from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lineage import software_versions
from pipeline.storage.lake.run import OpenRun, RunRequest, open_run, shown_config
from pipeline.storage.prefetch import map_ahead
from schemas.errors import UsageError
from schemas.rebox import MAPS_OF, ReboxConfig
from schemas.tables import written_schemas
from schemas.url_secrets import safe_url

_OUTPUTS = ["boxes"]
"""The optional tables that a rebox writes."""


@dataclass(frozen=True)
class Rebox:
    """A begun run of rebox, which holds the lease of its output."""

    source: Source
    run: OpenRun
    committer: Committer
    rule: BoxRule
    works: tuple[Work, ...]

    def cut(self, advance: Callable[[int], None]) -> int:
        """Commit all of the work; ``advance`` is called with the number of inputs that are done so far.

        Return the number of maps without a new box for which no stored box gives the probability of the class.
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
    """Open and plan a run on the new output; the caller calls ``cut`` and finishes the run.

    Raises UsageError for a source without the tables that the boxes need and for an output whose rows were made with
    other settings, LeaseError while another run holds the output.
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
    """Return the calibration of the source; None unless it was fitted on boxes of the same rule."""
    settings = run.manifest.settings
    if any(source.run.settings.get(name) != settings[name] for name in RULE):
        return None
    return read_calibration(source.fs, source.root, source.run.model, settings)
