"""All of ``camlake annotate``: list → plan → read → decode → annotate → commit.

Ray calls the process that starts the work the driver. Ray itself is imported only where it runs. The name ``run``
belongs to ``pipeline.storage.lake.run``.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Literal

import torch
from torch import Tensor

from pipeline.annotate.foreground_choice import choose, with_foreground
from pipeline.annotate.image_reader import count_tables
from pipeline.annotate.job import Job, make_job
from pipeline.annotate.local_engine import run_local, this_machine
from pipeline.annotate.local_server import worker_server
from pipeline.annotate.model import Model, fit_topk, load_model
from pipeline.annotate.reporter import Reporter, RunProgress
from pipeline.annotate.resources import TUNE_FROM, Compute, describe, images_per_slice, plan_compute
from pipeline.annotate.spec import continued, plan_inputs, run_request
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.planning import Plan, PlanSlice
from pipeline.storage.lake.run import OpenRun, open_run
from pipeline.storage.lake.tombstones import commit_tombstones
from schemas.errors import RejectedShareError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url


def annotate(config: AnnotateConfig, reporter: Reporter, tune_from: int = TUNE_FROM) -> RunManifest:
    """Annotate every listed input that is not done yet, and return the final manifest of the run.

    For ``tune_from`` images or more, a few seconds of trials choose the values that the configuration leaves open.
    Raises CamlakeError for every failure of the run; earlier commits stay. A rejected image does not fail the run.
    """
    engine = choose_engine(config)
    if engine == "local":
        worker_server()  # Its imports run beside the work here.
    model = load_model(config)
    config = fit_topk(config, model.network)
    size = f"{model.network.n_parameters / 1e6:.1f} M parameters"
    reporter.say(f"model {model.partition} ({size}, {model.weights.source})")
    config, said = continued(config, model)
    if said:
        reporter.say(said)
    with open_run(run_request(config, model, decided=False)) as opened:
        run = opened
        done = done_images(run.fs, run.root, run.manifest.model, config.retry_rejected)
        plan_dir = LakePaths(run.root).plan_dir(run.manifest.run_id)
        plan = plan_inputs(config, model, done, run.fs, run.root, plan_dir, images_per_slice(config))
        counts = plan.counts
        reporter.say(f"{counts.listed} listed, {counts.already_done} done, {plan.to_do} to do")
        if counts.skipped_by_kind:
            reporter.say(counts.skipped_sentence, **counts.skipped_by_kind)
        if counts.deleted_sentence:
            reporter.say(counts.deleted_sentence)
        if plan.left_out_of_classes:
            reporter.say(plan.left_out_of_classes)
        refuse_unmatched_classes(config, plan)
        choice = choose(config, model, run, plan.slices)
        if choice.said:
            reporter.say(choice.said)
        model, config = replace(model, foreground=choice.foreground), with_foreground(config, choice.foreground)
        run = run.settled(run_request(config, model))
        if not plan.slices:
            run = run.begin(counts)
            commit_tombstones(run, plan.tombstones)
            return run.finish()
        if engine == "local":
            return _run(config, model, run, plan, reporter, _plan_locally(config, plan), run_local)
        from pipeline.graph.annotate.stream import planned_on_ray, run_stream  # noqa: PLC0415 - imports Ray

        reporter.say("starting Ray and the networks")
        with planned_on_ray(config, model, run, plan, reporter, tune_from) as compute:
            return _run(config, model, run, plan, reporter, compute, run_stream)


def choose_engine(config: AnnotateConfig) -> Literal["local", "ray"]:
    """Return the engine of a run; ``auto`` takes Ray on a cluster and for a GPU.

    Elsewhere the machine is one: the local engine is as fast as Ray at any size and starts in a fraction of the time
    (`python -m tests.benchmarks.engines` measures both). On a GPU Ray decodes in processes of their own.
    """
    if config.engine != "auto":
        return config.engine
    cluster = config.address or os.environ.get("RAY_ADDRESS")
    cuda = config.device != "cpu" and torch.cuda.is_available()
    return "ray" if cluster or cuda or config.decode == "remote" else "local"


def _plan_locally(config: AnnotateConfig, plan: Plan) -> Compute:
    """Return where the stages of a run on this machine run."""
    if config.decode == "auto":
        config = config.model_copy(update={"decode": "local"})
    return plan_compute(config, this_machine(), count_tables(plan.slices))


def _run(
    config: AnnotateConfig,
    model: Model,
    run: OpenRun,
    plan: Plan,
    reporter: Reporter,
    compute: Compute,
    engine: Callable[[Sequence[PlanSlice], Job, dict[str, Tensor], Callable[[int, int], None]], RunProgress],
) -> RunManifest:
    """Begin the run, let an engine annotate the planned inputs, and return the final manifest."""
    reporter.say(describe(compute))
    run = run.begin(plan.counts, asdict(compute))
    commit_tombstones(run, plan.tombstones)
    job = make_job(config, model, run, compute, plan.to_do)
    started = time.monotonic()
    with reporter.progress("annotating", plan.to_do) as advance:
        done = engine(plan.slices, job, model.weights.state, advance)
    elapsed_s = time.monotonic() - started
    busy = done.busy_s / (compute.actors[1] * elapsed_s)
    reporter.say(f"{plan.to_do / elapsed_s:.1f} images/s with the start, networks busy {busy:.0%}")
    return run.finish()


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
