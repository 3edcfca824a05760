"""``camlake annotate --dry-run``: print the resolved plan and the estimated time and cost; nothing is written."""

from datetime import timedelta
from typing import Any

from jobs.terminal.console import Screen
from pipeline.annotate.input_plan import TUNE_FROM
from pipeline.annotate.resources import describe
from pipeline.graph.annotate.engine_choice import choose_engine
from pipeline.graph.tuning.autotune import Measured
from pipeline.graph.tuning.estimate import Estimate, PlannedRun, estimate_run, plan_run, read_offer
from pipeline.storage.lake.run import shown_config
from schemas.options.annotate import AnnotateConfig


def print_estimate(config: AnnotateConfig, screen: Screen, tune_from: int = TUNE_FROM) -> Measured | None:
    """Print the resolved configuration, the plan and the estimated time and cost; return the measurement.

    Returns None where all inputs are done. Raises UsageError for a bad price or cluster file before it reads inputs.
    """
    offer = read_offer(config)
    run = plan_run(config)
    _print_plan(run, screen)
    if run.sample is None:
        return None
    estimate = estimate_run(run, offer, screen, tune_from)
    screen.result(describe(estimate.measured.compute))
    _print_stages(estimate.measured, screen)
    _print_prediction(estimate, screen)
    if offer.machine is None and choose_engine(run.config, run.plan.to_do, tune_from) == "local":
        screen.result("measured on Ray; the run itself would take the local engine, which starts sooner")
    return estimate.measured


def _print_plan(run: PlannedRun, screen: Screen) -> None:
    options = [(name, str(value)) for name, value in shown_config(run.config).items()]
    screen.table("Resolved configuration", ("option", "value"), options)
    counts = run.plan.counts
    facts = {
        "model": f"{run.model.partition} ({run.model.network.n_parameters / 1e6:.1f} M parameters)",
        "listed": counts.listed,
        "skipped": counts.skipped_sentence.removeprefix("skipped ") or 0,
        "listed again": counts.duplicates,
        "left out by --limit and --sample": counts.left_out,
        "already done": counts.already_done,
        "to do": counts.planned,
    }
    screen.table("Plan", ("fact", "value"), list(facts.items()))
    if run.plan.left_out_of_classes:
        screen.result(run.plan.left_out_of_classes)


def _print_stages(measured: Measured, screen: Screen) -> None:
    """Print the time and the speed of each stage; the slowest one limits the run."""
    prediction = measured.prediction
    rows = [
        (
            stage.name,
            round(stage.image_s * 1e3, 3),
            f"{stage.workers:g} {stage.unit}",
            round(stage.images_per_s, 1 if stage.images_per_s < 100 else None),
            "◀ the limit" if stage is prediction.limit else "",
        )
        for stage in prediction.stages
    ]
    title = f"Stages, measured on {measured.timed.images} images, {measured.timed.rejected} of them rejected"
    screen.table(title, ("stage", "ms an image", "workers", "images/s of all", ""), rows)
    if not prediction.whole:
        screen.result("the network is not measured: there is no GPU here, and a CPU does not tell a GPU's speed")


def _print_prediction(estimate: Estimate, screen: Screen) -> None:
    prediction, offer, total_s = estimate.measured.prediction, estimate.offer, estimate.total_s
    most, least = ("", "") if prediction.whole else ("at most ", "at least ")
    facts: dict[str, Any] = {
        f"{most}images/s": round(prediction.images_per_s, 1),
        "start: listing, planning, Ray, networks (s)": round(estimate.before_s + prediction.start_s, 1),
        f"{least}duration with the start (s)": round(total_s, 1),
        f"{least}duration": str(timedelta(seconds=round(total_s))),
        "output (MB)": round(prediction.output_bytes / 1e6, 2),
    }
    facts |= {
        f"output, {table} (bytes an image)": round(size / prediction.planned, 1)
        for table, size in prediction.sizes.items()
    }
    facts[f"{least}CPU-hours ({prediction.cores:g} cores)"] = round(prediction.cores * total_s / 3600, 3)
    facts[f"{least}GPU-hours ({prediction.gpus:g} GPUs)"] = round(prediction.gpus * total_s / 3600, 3)
    if estimate.cost is not None:
        facts[f"{least}cost{f' ({offer.currency})' if offer.currency else ''}"] = round(estimate.cost, 2)
    screen.table("Prediction", ("fact", "value"), list(facts.items()))
    if offer.machine:
        screen.result(
            "predicted from this machine's speed, by numbers of CPUs and GPUs: other hardware has another one"
        )
