"""Writes a second output with new boxes from the stored maps of a first one, without a network and without images.

Each thread reads the rows of one commit of the source, cuts the boxes and commits them. Stored maps are rounded to 256
levels. So each box is exact for a map that differs from the network's map by at most (heat_max - heat_min) / 510.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from pipeline.arrays.calibration import Calibration, uncalibrated
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.foreground import foreground_bytes
from pipeline.outputs.rebox_plan import ReboxPlan, Source, Work, open_source, plan_rebox
from pipeline.outputs.stored_maps import Cutting, Unboxed, new_tables
from pipeline.storage.filesystems import canonical_url
from pipeline.storage.lake.calibrations import RULE, read_calibration
from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease import silent
from pipeline.storage.lake.lineage import software_versions
from pipeline.storage.lake.run import OpenRun, RunRequest, open_run, shown_config
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.prefetch import map_ahead
from pipeline.storage.truth.class_names import ClassNames
from pipeline.storage.truth.coco import skipped_sentence
from pipeline.storage.truth.image_classes import read_classes
from schemas.errors import UsageError
from schemas.options.box_rules import FIRST_BOXES
from schemas.options.rebox import MAPS_OF, ReboxConfig
from schemas.tables import say_score, written_schemas
from schemas.url_secrets import safe_url

_OUTPUTS = ["boxes"]
"""The optional tables that a run of rebox writes."""


@dataclass(frozen=True)
class Rebox:
    """A begun run of rebox, which holds the lease of its output."""

    source: Source
    run: OpenRun
    committer: Committer
    rule: BoxRule
    works: tuple[Work, ...]
    names: ClassNames | None
    """What the classes that ``--classes`` names are called; None without this option."""
    left_out_of_classes: str
    """One line on the annotations of ``--classes`` that can't be used; empty where there are none."""

    def cut(self, advance: Callable[[int], None]) -> list[str]:
        """Commit all works; ``advance`` gets the number of inputs that are done so far.

        Return a line for each kind of classes that get no box because the source lacks something.
        """
        done, unboxed = 0, Unboxed()
        threads = os.cpu_count() or 1
        for work, lost in zip(self.works, map_ahead(self._do, enumerate(self.works), threads), strict=True):
            done, unboxed = done + work.rows, unboxed.plus(lost)
            advance(done)
        return list(self._lines(unboxed))

    def _lines(self, unboxed: Unboxed) -> Iterator[str]:
        no_prob = "no box: LABELS has none of theirs, which would tell their class_prob"
        if unboxed.without_prob:
            yield f"{unboxed.without_prob} maps get {no_prob}"
        if unboxed.named_without_prob:
            yield (
                f"{unboxed.named_without_prob} maps of classes that --classes names get {no_prob}; annotate with"
                " --classes, into another output, to have both"
            )
        if unboxed.example and self.names:
            uri, class_id = unboxed.example
            yield (
                f"{unboxed.named_without_map} classes that --classes names have no stored map, like"
                f" {self.names.name(class_id)!r} of {uri}; annotate with --classes, into another output, to have the"
                " maps of those that the network knows"
            )

    def _do(self, numbered: tuple[int, Work]) -> Unboxed:
        task, work = numbered
        manifest = self.run.manifest
        planned = work.planned(self.run.fs, self.run.root)
        rows = self.source.current_rows(work.commit, planned)
        method = manifest.settings.get("method", "cam") + ("*foreground" if self.source.foreground else "")
        scores = (
            self.run.calibration.scores
            if self.run.calibration
            else partial(uncalibrated, right_share=self.source.right_share)
        )
        least_stored = float(self.source.run.settings.get("min_prob", 0.0))
        cutting = Cutting(self.rule, self.source.foreground, least_stored)
        new = new_tables(rows, planned, cutting, manifest.run_id, method, scores)
        self.committer.commit(f"{task:06d}", new.tables, new.maps_without_box)
        return new.unboxed


@contextmanager
def open_rebox(config: ReboxConfig, say: Callable[[str], None] = silent) -> Iterator[Rebox]:
    """Open and plan a run on the new output; the caller calls ``cut`` and then finishes the run.

    ``say`` gets a line where the run waits.

    Raises UsageError for a source without the tables that the boxes need, and for an output whose rows were made with
    other settings. Raises HeldError while another run holds the output.
    """
    source = open_source(config)
    if canonical_url(config.out) == canonical_url(config.labels):
        raise UsageError(f"--out {safe_url(config.out)}: allowed: another place than LABELS, which keeps its boxes")
    if source.foreground and config.box_rule == "auto" and "threshold" not in config.model_fields_set:
        config = config.model_copy(update={"threshold": (source.foreground.card.threshold,)})
    names = source.class_names() if config.classes else None
    skipped: list[str] = []
    classes = read_classes(config.classes, config, names, skipped=skipped) if config.classes and names else None
    rule = BoxRule(config.box_rule, config.threshold, config.min_area, config.min_prob)
    with open_run(_request(config, source), say) as opened:
        run = replace(opened, calibration=opened.calibration or _calibration_of(source, opened))
        plan = plan_rebox(source, run.fs, run.root, LakePaths(run.root).plan_dir(run.manifest.run_id), classes)
        _refuse_unmatched_classes(config, plan)
        run = run.begin(plan.counts)
        if source.foreground:
            kept = LakePaths(run.root).foreground_file(source.run.model)
            write_whole(run.fs, kept, foreground_bytes(source.foreground))
        said = skipped_sentence(skipped, f"--classes {safe_url(config.classes or '')}")
        schemas = say_score(written_schemas(_OUTPUTS), None if run.calibration else source.right_share)
        yield Rebox(source, run, run.committer(schemas), rule, plan.works, names, said)


def _refuse_unmatched_classes(config: ReboxConfig, plan: ReboxPlan) -> None:
    """Raise UsageError where ``--classes`` names none of the images that get new boxes."""
    if config.classes and plan.works and not plan.with_classes:
        raise UsageError(
            f"--classes {safe_url(config.classes)}: names none of the {plan.counts.planned} images to cut boxes for;"
            " its keys are uris or their ends after a /"
        )


def _request(config: ReboxConfig, source: Source) -> RunRequest:
    digest = source.foreground.digest if source.foreground else None
    chosen = config.model_dump(mode="json", include={*RULE, "min_prob"}) | {"foreground": digest or "off"}
    classes = "a file of classes" if config.classes else "no classes"
    lineage = source.run.lineage.model_copy(
        update={**software_versions(), "source": source.url, "source_runs": source.run_ids, "foreground": digest}
    )
    return RunRequest(
        out=config.out,
        storage=config.storage,
        model=source.run.model,
        settings={**source.run.settings, **chosen, "outputs": _OUTPUTS, "classes": classes, MAPS_OF: source.url},
        config={"input": source.url, **shown_config(config)},
        lineage=lineage,
        calibration=config.calibration,
        wait_s=config.wait_s,
    )


def _calibration_of(source: Source, run: OpenRun) -> Calibration | None:
    """Return the calibration of the source; None where it was fitted on boxes of another rule, or where none exists."""
    settings = run.manifest.settings
    fitted_on = FIRST_BOXES | source.run.settings
    if any(fitted_on.get(name) != settings[name] for name in RULE):
        return None
    return read_calibration(source.fs, source.root, source.run.model, settings)
