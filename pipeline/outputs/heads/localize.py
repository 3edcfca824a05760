"""Writes a second output with the maps and boxes of a head's classes, without a network and without images.

Each thread, or each task of Ray (see pipeline.graph.localize_on_ray), reads the rows of one commit of the source, makes
the maps M_c = Σ_k w_k f̂_k from the stored feature maps, cuts the boxes from them and commits both. The rows are those
of a partition of its own, named by the network and by a digest of backbone and head, so that an output may hold several
heads beside each other.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from threadpoolctl import threadpool_limits

from pipeline.arrays.calibration import uncalibrated
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.foreground import foreground_bytes
from pipeline.models.weights.head_file import Head, read_head, refuse_other_backbone
from pipeline.outputs.feature_rows import resize_of
from pipeline.outputs.heads.features import open_features
from pipeline.outputs.heads.head_rows import HeadRows, columns_of, head_tables
from pipeline.outputs.rebox_plan import Source, Work, open_source, plan_rebox
from pipeline.outputs.stored_maps import Cutting, new_tables
from pipeline.storage.filesystems import canonical_url, connect, read_url
from pipeline.storage.lake.commit import Committer
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease import silent
from pipeline.storage.lake.lineage import software_versions
from pipeline.storage.lake.run import OpenRun, RunRequest, open_run, shown_config
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.prefetch import map_ahead
from schemas.errors import UsageError
from schemas.options.box_rules import HEURISTIC_CLASSES
from schemas.options.localize import HEAD, LocalizeConfig
from schemas.options.rebox import MAPS_OF, ReboxConfig
from schemas.runs import RunManifest
from schemas.tables import say_score, written_schemas
from schemas.url_secrets import safe_url

_THREADS_A_CORE = 2
"""One thread works while another one waits for the store."""
_NOT_CARRIED = ("feature_map_bits", "feature_type", "labels", "classes")
"""Settings of the source that say nothing of the new rows."""


@dataclass(frozen=True)
class Localize:
    """A begun run of localize, which holds the lease of its output."""

    config: LocalizeConfig
    source: Source
    head: Head
    topk: int
    run: OpenRun
    committer: Committer
    rule: BoxRule
    works: tuple[Work, ...]

    def work(self, advance: Callable[[int], None]) -> None:
        """Commit all works in threads; ``advance`` gets the number of inputs that are done so far."""
        done, threads, works = 0, _THREADS_A_CORE * (os.cpu_count() or 1), enumerate(self.works)
        with threadpool_limits(1, "blas"):  # The commits are done in parallel; their products are too small for that.
            for rows in map_ahead(lambda numbered: self.localize_commit(*numbered), works, threads):
                done += rows
                advance(done)

    def sendable(self) -> Self:
        """Return the run without its works, for another process, which calls ``reconnected`` before it works."""
        return replace(self, works=(), source=replace(self.source, commits=()))

    def reconnected(self) -> Self:
        """Return the run with connections of this process to its stores."""
        config = self.config
        source_fs, _ = connect(config.labels, config, anonymous=config.anonymous)
        out_fs, _ = connect(config.out, config.storage)
        return replace(self, source=replace(self.source, fs=source_fs), run=replace(self.run, fs=out_fs))

    def localize_commit(self, number: int, work: Work) -> int:
        """Localize and commit the inputs of the work with this ``number``, and return how many they are.

        A second call for the same work writes the same rows into files of the same names.
        """
        torch.set_num_threads(1)
        foreground, run_id = self.source.foreground, self.run.manifest.run_id
        planned = work.planned(self.run.fs, self.run.root)
        rows = self.source.current_rows(work.commit, planned, columns_of(foreground is not None))
        made: HeadRows = head_tables(rows, self.head, self.topk, resize_of(self.source.run))
        scores = (
            self.run.calibration.scores
            if self.run.calibration
            else partial(uncalibrated, right_share=self.source.right_share)
        )
        method = "cam*foreground" if foreground else "cam"
        new = new_tables(made.tables, planned, Cutting(self.rule, foreground), run_id, method, scores)
        self.committer.commit(f"{number:06d}", new.tables | made.kept(run_id), new.maps_without_box)
        return work.rows


@contextmanager
def open_localize(
    config: LocalizeConfig,
    say: Callable[[str], None] = silent,
    prepare: Callable[[Sequence[Work]], None] = lambda works: None,
) -> Iterator[Localize]:
    """Open and plan a run on the new output; the caller calls ``work`` and then finishes the run.

    ``say`` gets a line where the run waits. ``prepare`` gets the planned works before the run begins; where it raises,
    it never does.

    Raises UsageError for a source without feature maps or of another backbone than the head's, and for an output whose
    rows were made with other settings. Raises HeldError while another run holds the output.
    """
    head = read_head(config.head, partial(read_url, storage=config))
    features = open_features(config.labels, config, config.model, head.card.model_digest)
    refuse_other_backbone(head, features.run.lineage.backbone_digest, safe_url(config.head), features.has)
    config = config.model_copy(update={"model": features.run.model})
    source = open_source(config, _refuse_unfit)
    if canonical_url(config.out) == canonical_url(config.labels):
        raise UsageError(f"--out {safe_url(config.out)}: allowed: another place than LABELS, which keeps its rows")
    topk = min(config.topk, len(head.card.classes))
    if config.box_rule == "heuristic" and topk < HEURISTIC_CLASSES:
        raise UsageError(f"--box-rule heuristic: takes {HEURISTIC_CLASSES} classes; the head has {topk}")
    if source.foreground and config.box_rule == "auto" and "threshold" not in config.model_fields_set:
        config = config.model_copy(update={"threshold": (source.foreground.card.threshold,)})
    rule = BoxRule(config.box_rule, config.threshold, config.min_area, config.min_prob)
    request = _request(config, source, head, topk)
    with open_run(request, say) as opened:
        plan_dir = LakePaths(opened.root).plan_dir(opened.manifest.run_id)
        plan = plan_rebox(source, opened.fs, opened.root, plan_dir, model=request.model)
        prepare(plan.works)
        run = opened.begin(plan.counts)
        if source.foreground:
            kept = LakePaths(run.root).foreground_file(request.model)
            write_whole(run.fs, kept, foreground_bytes(source.foreground))
        schemas = written_schemas(request.settings["outputs"])
        schemas = say_score(schemas, None if run.calibration else source.right_share)
        yield Localize(config, source, head, topk, run, run.committer(schemas), rule, plan.works)


def _request(config: LocalizeConfig, source: Source, head: Head, topk: int) -> RunRequest:
    old, foreground = source.run, source.foreground
    backbone = old.lineage.backbone_digest
    digest = head.partition_digest(backbone)
    chosen = config.model_dump(mode="json", include={"threshold", "box_rule", "min_area", "min_prob"})
    chosen |= {"foreground": foreground.digest if foreground else "off", "topk": topk, HEAD: head.digest}
    outputs = ["boxes", "heatmaps", *(["foreground"] if foreground else [])]
    kept = {name: value for name, value in old.settings.items() if name not in _NOT_CARRIED}
    lineage = old.lineage.model_copy(
        update={
            **software_versions(),
            "source": source.url,
            "source_runs": source.run_ids,
            "foreground": foreground.digest if foreground else None,
            "head": head.digest,
            "backbone": backbone,
            "model_digest": digest,
            "classes": len(head.card.classes),
        }
    )
    return RunRequest(
        out=config.out,
        storage=config.storage,
        model=f"{old.lineage.model}-{digest[:8]}",
        settings={**kept, **chosen, "outputs": outputs, MAPS_OF: source.url},
        config={"input": source.url, **shown_config(config)},
        lineage=lineage,
        calibration=config.calibration,
        wait_s=config.wait_s,
    )


def _refuse_unfit(config: ReboxConfig, run: RunManifest) -> None:
    """Raise UsageError where the source has no feature maps."""
    if "feature_maps" not in run.settings["outputs"]:
        raise UsageError(
            f"LABELS {safe_url(config.labels)}: has no feature_maps; annotate with --outputs boxes,heatmaps,features,"
            "feature_maps"
        )
