"""``camlake annotate``: list → plan → read → decode → annotate → commit."""

import time
from functools import partial

from jobs.console import Screen, main, verb
from jobs.estimate import print_estimate
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.job import describe, make_job, plan_inputs
from pipeline.graph.measuring import sample_plan
from pipeline.graph.model import fit_topk, load_model
from pipeline.graph.opened import open_run
from pipeline.graph.stream import run_stream
from pipeline.graph.tuning import TUNE_FROM, resolve_compute, worth_tuning
from pipeline.storage.commit import done_images
from pipeline.storage.filesystems import safe_url
from pipeline.storage.lake import Layout
from pipeline.storage.planning import Plan
from schemas.annotate import AnnotateConfig
from schemas.errors import RejectedShareError, UsageError
from schemas.runs import RunManifest


def run(config: AnnotateConfig, screen: Screen) -> None:
    """Annotate what is not done yet; raises RejectedShareError where more inputs than allowed were rejected."""
    if config.dry_run:
        print_estimate(config, screen)
        return
    manifest = annotate(config, screen)
    out, counts = safe_url(config.out), manifest.counts
    screen.result(
        f"{counts.annotated} images annotated, {counts.boxes} boxes, {counts.rejected} rejected, "
        f"{counts.already_done} done before; run {manifest.run_id}",
        **counts.model_dump(),
    )
    if counts.maps_without_box:
        screen.result(f"{counts.maps_without_box} maps have no positive value, hence no box")
    screen.result(f"query:   SELECT top1_label, count(*) FROM '{out}/images/**/*.parquet' GROUP BY top1_label")
    refuse_rejected_share(manifest, config)


def annotate(config: AnnotateConfig, screen: Screen, tune_from: int = TUNE_FROM) -> RunManifest:
    """Annotate every listed input that is not done yet, and return the run's account.

    From ``tune_from`` images on, a few seconds of trials choose what the configuration leaves open.
    """
    model = load_model(config)
    config = fit_topk(config, model.network)
    screen.say(f"model {model.partition} ({model.network.n_parameters / 1e6:.1f} M parameters, {model.weights.source})")
    with open_run(config, model) as opened:
        done = done_images(opened.fs, opened.root, opened.manifest.model, config.retry_rejected)
        plan_dir = Layout(opened.root).plan_dir(opened.manifest.run_id)
        plan = plan_inputs(config, model, done, opened.fs, opened.root, plan_dir)
        screen.say(f"{plan.counts.listed} listed, {plan.counts.already_done} done, {plan.counts.planned} to do")
        refuse_unmatched_classes(config, plan)
        if not plan.slices:
            return opened.begin(plan.counts, None).finish()
        screen.say("starting Ray and the networks")
        with ray_cluster(config.address) as machine:
            if worth_tuning(config, plan.counts.planned, tune_from):
                screen.say("trying for a few seconds what is fastest here")
            sample = partial(sample_plan, plan.slices, opened.fs, opened.root)
            compute = resolve_compute(config, model, machine, plan.slices, sample, tune_from)
            screen.say(describe(compute))
            begun = opened.begin(plan.counts, compute)
            job = make_job(config, model, begun, compute, plan.counts.planned)
            started = time.monotonic()
            with screen.progress("annotating", plan.counts.planned) as advance:
                done = run_stream(plan.slices, job, model.weights.state, advance)
            elapsed_s = time.monotonic() - started
            busy = done.busy_s / (compute.actors[1] * elapsed_s)
            screen.say(f"{plan.counts.planned / elapsed_s:.1f} images/s with the start, networks busy {busy:.0%}")
        return begun.finish()


def refuse_unmatched_classes(config: AnnotateConfig, plan: Plan) -> None:
    """Raise UsageError where ``--classes`` names none of the images that are to be annotated."""
    if config.classes and plan.counts.planned and not plan.with_classes:
        raise UsageError(
            f"--classes {safe_url(config.classes)}: names none of the {plan.counts.planned} images to annotate; "
            "its keys are uris or their ends after a /"
        )


def refuse_rejected_share(manifest: RunManifest, config: AnnotateConfig) -> None:
    """Raise RejectedShareError where the run rejected more of all its inputs than ``max_rejected`` allows."""
    counts = manifest.counts
    inputs = counts.already_done + counts.planned
    if counts.rejected > config.max_rejected * inputs:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.rejected_by_reason.items()))
        raise RejectedShareError(
            f"{counts.rejected} of {inputs} inputs were rejected ({reasons}), more than --max-rejected "
            f"{config.max_rejected:g} allows; all other work is done, see {safe_url(config.out)}/quarantine"
        )


command = verb(
    "annotate",
    AnnotateConfig,
    run,
    "camlake annotate s3://bucket/photos --out s3://bucket/labels --model resnet50",
)

if __name__ == "__main__":
    main(command)
