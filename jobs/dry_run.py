"""``camlake annotate --dry-run``: the resolved plan, and what the run would take; nothing is written."""

import tempfile
import time
from datetime import timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import yaml
from fsspec.implementations.local import LocalFileSystem

from jobs.console import Screen
from pipeline.annotate.model import Model, fit_topk, load_model
from pipeline.annotate.spec import plan_inputs, run_request
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.resources import Machine, describe, images_per_slice
from pipeline.graph.tuning.autotune import TUNE_FROM, Measured, measure_run
from pipeline.graph.tuning.bench import sample_plan
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.planning import Plan
from pipeline.storage.lake.run import check_settings, find_calibration, shown_config
from schemas.annotate import AnnotateConfig
from schemas.cluster_pricing import ClusterFile, Prices
from schemas.errors import UsageError


class Offer(NamedTuple):
    """What the user's files say of the cluster."""

    machine: Machine | None
    """Null: the one that the run would connect to or start."""
    per_hour: float | None
    currency: str


def print_estimate(config: AnnotateConfig, screen: Screen, tune_from: int = TUNE_FROM) -> Measured | None:
    """Print the resolved configuration, the plan and what the run would take; return it, None where nothing is to do.

    The plan goes to a temporary folder. Raises UsageError for a bad price or cluster file before anything is read.
    """
    offer = read_offer(config)
    started = time.monotonic()
    model = load_model(config)
    config = fit_topk(config, model.network)
    plan, sample = _plan(config, model)
    _print_plan(config, model, plan, screen)
    if sample is None:
        return None
    screen.say("starting Ray and the networks, and measuring for a few seconds")
    with ray_cluster(config.address) as machine:
        before_s = time.monotonic() - started
        found = measure_run(config, model, machine, plan.slices, sample, offered=offer.machine, tune_from=tune_from)
    screen.result(describe(found.compute))
    _print_stages(found, screen)
    _print_prediction(found, before_s, offer, screen)
    return found


def read_offer(config: AnnotateConfig) -> Offer:
    """Return what ``--cluster`` and ``--prices`` say; raises UsageError, one line, where a file says it wrong."""
    cluster = prices = None
    if config.cluster:
        where = f"--cluster {config.cluster!r}"
        cluster = ClusterFile.parse(_read_yaml(config.cluster, where), where)
    if config.prices:
        where = f"--prices {config.prices!r}"
        prices = Prices.parse(_read_yaml(config.prices, where), where)
    return Offer(
        Machine(cluster.amount("CPU"), cluster.amount("GPU"), None) if cluster else None,
        prices.of(cluster.instances() if cluster else None, where) if prices else None,
        prices.currency if prices else "",
    )


def _read_yaml(path: str, where: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a path from the command line
            return yaml.safe_load(file)  # JSON is YAML.
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: neither YAML nor JSON: {' '.join(str(error).split())}") from error


def _plan(config: AnnotateConfig, model: Model) -> tuple[Plan, pa.Table | None]:
    """Return the plan, and planned inputs to measure on where anything is to do."""
    fs, root = connect(config.out, config)
    request = run_request(config, model)
    check_settings(request, fs, root)
    find_calibration(request, fs, root)
    done = done_images(fs, root, model.partition, config.retry_rejected)
    with tempfile.TemporaryDirectory(prefix="camlake-dry-run-") as folder:
        local = LocalFileSystem()
        plan = plan_inputs(config, model, done, local, folder, "plan", images_per_slice(config))
        return plan, sample_plan(plan.slices, local, folder) if plan.slices else None


def _print_plan(config: AnnotateConfig, model: Model, plan: Plan, screen: Screen) -> None:
    options = [(name, str(value)) for name, value in shown_config(config).items()]
    screen.table("Resolved configuration", ("option", "value"), options)
    counts = plan.counts
    facts = {
        "model": f"{model.partition} ({model.network.n_parameters / 1e6:.1f} M parameters)",
        "listed": counts.listed,
        "left out by --limit and --sample": counts.left_out,
        "already done": counts.already_done,
        "to do": counts.planned,
    }
    screen.table("Plan", ("fact", "value"), list(facts.items()))


def _print_stages(found: Measured, screen: Screen) -> None:
    """Print each stage's time and limit; the slowest one is the run's."""
    prediction = found.prediction
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
    measured = f"measured on {found.timed.images} images, {found.timed.rejected} of them rejected"
    screen.table(f"Stages, {measured}", ("stage", "ms an image", "workers", "images/s of all", ""), rows)
    if not prediction.whole:
        screen.result("the network is not measured: there is no GPU here, and a CPU does not tell a GPU's speed")


def _print_prediction(found: Measured, before_s: float, offer: Offer, screen: Screen) -> None:
    prediction = found.prediction
    most, least = ("", "") if prediction.whole else ("at most ", "at least ")
    total_s = before_s + prediction.duration_s
    facts: dict[str, Any] = {
        f"{most}images/s": round(prediction.images_per_s, 1),
        "start: listing, planning, Ray, networks (s)": round(before_s + prediction.start_s, 1),
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
    if offer.per_hour is not None:
        facts[f"{least}cost{f' ({offer.currency})' if offer.currency else ''}"] = round(
            total_s / 3600 * offer.per_hour, 2
        )
    screen.table("Prediction", ("fact", "value"), list(facts.items()))
    if offer.machine:
        screen.result(
            "predicted from this machine's speed, by numbers of CPUs and GPUs: other hardware has another one"
        )
