"""All of ``camlake annotate``: list → plan → read → decode → annotate → commit.

Ray calls the process that starts the work the driver. The name ``run`` belongs to ``pipeline.storage.lake.run``. This
module imports neither torch nor Ray: a run that has nothing to do ends without them.
"""

from collections.abc import Sequence

from pipeline.annotate.input_plan import (
    TUNE_FROM,
    finish_at_once,
    images_per_slice,
    plan_inputs,
    refuse_at_once,
)
from pipeline.annotate.reporter import Reporter
from pipeline.annotate.run_before import request_like, run_before
from pipeline.graph.annotate.engine_choice import import_ahead
from pipeline.graph.annotate.metrics_file import RunMetrics, run_metrics
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.plan.planning import Plan
from pipeline.storage.lake.records import load_runs
from pipeline.storage.lake.run import OpenRun, open_run
from schemas.errors import RejectedShareError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url


def annotate(config: AnnotateConfig, reporter: Reporter, tune_from: int = TUNE_FROM) -> RunManifest:
    """Annotate every listed input that is not done yet, and return the final manifest of the run.

    For ``tune_from`` images or more, a few seconds of trials choose the values that the configuration leaves open.
    Raises CamlakeError for every failure of the run; earlier commits stay. A rejected image does not fail the run.
    """
    with run_metrics(config.metrics, safe_url(config.out), reporter.say) as metrics:
        manifest = _annotate(config, reporter, tune_from, metrics)
        metrics.finished(manifest)
        return manifest


def _annotate(config: AnnotateConfig, reporter: Reporter, tune_from: int, metrics: RunMetrics) -> RunManifest:
    refuse_at_once(config)
    if before := run_before(config):
        with open_run(request_like(before, config), reporter.say) as run:
            plan = _plan(config, (), run, reporter, metrics)
            if not plan.slices:
                reporter.say(f"model {before.model}, as in run {before.run_id}")
                return finish_at_once(run, plan)
            if manifest := _go_on(config, run, plan, reporter, tune_from, metrics):
                return manifest
    import_ahead(config)
    from pipeline.graph.annotate.with_network import annotate_planned, prepare  # noqa: PLC0415 - imports torch

    ready = prepare(config, reporter)
    with open_run(ready.request, reporter.say) as run:
        plan = _plan(ready.config, ready.labels, run, reporter, metrics)
        return annotate_planned(ready, run, plan, reporter, tune_from, metrics)


def _go_on(
    config: AnnotateConfig, run: OpenRun, plan: Plan, reporter: Reporter, tune_from: int, metrics: RunMetrics
) -> RunManifest | None:
    """Annotate what is planned; return None where the network turns out to be another one than that of the rows."""
    import_ahead(config)
    from pipeline.graph.annotate.with_network import annotate_planned, prepare  # noqa: PLC0415 - imports torch

    ready = prepare(config, reporter)
    if ready.model.partition != run.manifest.model:
        return None
    return annotate_planned(ready, run, plan, reporter, tune_from, metrics)


def _plan(config: AnnotateConfig, labels: Sequence[str], run: OpenRun, reporter: Reporter, metrics: RunMetrics) -> Plan:
    """Plan the inputs that are not done, and say how many there are and what was left out."""
    partition, run_id = run.manifest.model, run.manifest.run_id
    reporter.say(f"run {run_id}", run_id=run_id)
    others = sorted({one.model for one in load_runs(run.fs, run.root) if one.files})
    if others and partition not in others:
        reporter.say(f"{partition} is a new model in this output beside {', '.join(others)}; readers take --model")
    done = done_images(run.fs, run.root, partition, config.retry_rejected)
    plan_dir = LakePaths(run.root).plan_dir(run_id)
    plan = plan_inputs(config, partition, labels, done, run.fs, run.root, plan_dir, images_per_slice(config))
    counts = plan.counts
    reporter.say(f"{counts.listed} listed, {counts.already_done} done, {plan.to_do} to do")
    if counts.skipped_by_kind:
        reporter.say(counts.skipped_sentence, **counts.skipped_by_kind)
    for sentence in (counts.duplicates_sentence, counts.deleted_sentence, plan.left_out_of_classes):
        if sentence:
            reporter.say(sentence)
    refuse_unmatched_classes(config, plan)
    metrics.begin(counts)
    return plan


def refuse_unmatched_classes(config: AnnotateConfig, plan: Plan) -> None:
    """Raise UsageError where ``--classes`` names none of the images to annotate."""
    if config.classes and plan.to_do and not plan.with_classes:
        raise UsageError(
            f"--classes {safe_url(config.classes)}: names none of the {plan.to_do} images to annotate; "
            "its keys are uris or their ends after a /"
        )


def refuse_rejected_share(manifest: RunManifest, config: AnnotateConfig) -> None:
    """Raise RejectedShareError where the run rejected more of all its inputs than ``max_rejected`` allows."""
    counts = manifest.counts
    inputs = counts.already_done + counts.planned - counts.hidden
    rejected = sum(counts.refused.values())
    if rejected > config.max_rejected * inputs:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.refused.items()))
        raise RejectedShareError(
            f"{rejected} of {inputs} inputs were rejected ({reasons}), more than --max-rejected "
            f"{config.max_rejected:g} allows; all other work is done, see {safe_url(config.out)}/quarantine"
        )
