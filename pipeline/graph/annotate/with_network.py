"""The part of ``camlake annotate`` that needs the network: loads it, chooses the engine, annotates what is planned."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from pipeline.annotate.foreground.foreground_choice import choose, with_foreground
from pipeline.annotate.image_reader import count_tables
from pipeline.annotate.input_plan import finish_at_once
from pipeline.annotate.job import Job, make_job
from pipeline.annotate.local.local_engine import run_local, this_machine
from pipeline.annotate.model import Model, fit_topk, load_model
from pipeline.annotate.reporter import Reporter, RunProgress, SaidOnce
from pipeline.annotate.resources import Compute, describe, plan_compute
from pipeline.annotate.spec import continued, run_request
from pipeline.graph.annotate.engine_choice import choose_engine
from pipeline.graph.annotate.metrics_file import RunMetrics
from pipeline.storage.lake.plan.planning import Plan, PlanSlice
from pipeline.storage.lake.plan.tombstones import commit_tombstones
from pipeline.storage.lake.run import OpenRun, RunRequest
from schemas.options.annotate import AnnotateConfig
from schemas.runs import RunManifest, RunSummary
from schemas.url_secrets import safe_url


@dataclass(frozen=True)
class Prepared:
    """A loaded network, and the configuration that fits it."""

    config: AnnotateConfig
    model: Model

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.model.weights.labels

    @property
    def request(self) -> RunRequest:
        """Return the request for a run whose figure/ground direction is not chosen yet."""
        return run_request(self.config, self.model, decided=False)


def prepare(config: AnnotateConfig, reporter: Reporter) -> Prepared:
    """Load the network; raises ModelError where it can't be used."""
    model = load_model(config)
    size = f"{model.network.n_parameters / 1e6:.1f} M parameters"
    reporter.say(f"model {model.partition} ({size}, {model.weights.source})")
    if model.head:
        reporter.say(f"{len(model.head.card.classes)} classes of the head {safe_url(config.head or '')}")
    config, said = continued(fit_topk(config, model.network), model)
    if said:
        reporter.say(said)
    return Prepared(config, model)


def annotate_planned(
    ready: Prepared, run: OpenRun, plan: Plan, reporter: Reporter, tune_from: int, metrics: RunMetrics
) -> RunManifest:
    """Choose the figure/ground direction, annotate the planned inputs, and return the final manifest."""
    config, model = ready.config, ready.model
    choice = choose(config, model, run, plan.slices)
    if choice.said:
        reporter.say(choice.said)
    model, config = replace(model, foreground=choice.foreground), with_foreground(config, choice.foreground)
    run = run.settled(run_request(config, model))
    if not plan.slices:
        return finish_at_once(run, plan)
    ready = replace(ready, config=config, model=model)
    if choose_engine(config, plan.to_do, tune_from) == "local":
        return _run(ready, run, plan, reporter, _plan_locally(config, plan), run_local, metrics)
    from pipeline.graph.annotate.ray_metrics import RayMetrics  # noqa: PLC0415 - imports Ray
    from pipeline.graph.annotate.stream import planned_on_ray, run_stream  # noqa: PLC0415 - imports Ray

    reporter.say("starting Ray" if not config.address else "connecting to Ray")
    with planned_on_ray(config, model, run, plan, reporter, tune_from) as compute:
        metrics.mirror = RayMetrics(safe_url(config.out))
        return _run(ready, run, plan, reporter, compute, run_stream, metrics)


def _plan_locally(config: AnnotateConfig, plan: Plan) -> Compute:
    """Return where the stages of a run on this machine run."""
    if config.decode == "auto":
        config = config.model_copy(update={"decode": "local"})
    return plan_compute(config, this_machine(), count_tables(plan.slices))


def _run(
    ready: Prepared,
    run: OpenRun,
    plan: Plan,
    reporter: Reporter,
    compute: Compute,
    engine: Callable[[Sequence[PlanSlice], Job, dict[str, Tensor], Callable[[RunProgress], None]], RunProgress],
    metrics: RunMetrics,
) -> RunManifest:
    """Begin the run, let an engine annotate the planned inputs, and return the final manifest."""
    reporter.say(describe(compute))
    run = run.begin(plan.counts, asdict(compute))
    commit_tombstones(run, plan.tombstones)
    job = make_job(ready.config, ready.model, run, compute, plan.to_do)
    processes = "1 process" if compute.actors[1] == 1 else f"{compute.actors[1]} processes"
    reporter.say(f"loading the network in {processes}")
    workers, notes = compute.actors[1], SaidOnce(reporter.say)
    started = time.monotonic()
    with reporter.progress("annotating", plan.to_do) as advance:

        def follow(done: RunProgress) -> None:
            advance(done.images + done.rejected, done.rejected)
            notes(done.notes)
            metrics.follow(done, workers)

        done = engine(plan.slices, job, ready.model.weights.state, follow)
    notes(done.notes)
    metrics.follow(done, workers)
    return run.finish(summarize(done, time.monotonic() - started, workers))


def summarize(done: RunProgress, elapsed_s: float, workers: int) -> RunSummary:
    """Return what ``workers`` workers took for a run; bytes and retries of the commits are added when it finishes."""
    images = done.images + done.rejected
    stages = {"decode": (images, done.decode_s), "network": (done.images, done.busy_s)}
    alone = {name: round(rows * workers / busy_s, 3) for name, (rows, busy_s) in stages.items() if busy_s}
    return RunSummary(
        seconds=round(elapsed_s, 3),
        images_per_s=round(images / elapsed_s, 3),
        stage_images_per_s=alone,
        networks_busy=round(done.busy_s / (workers * elapsed_s), 4),
        bytes_in=done.bytes_in,
        retries=done.retries,
    )
