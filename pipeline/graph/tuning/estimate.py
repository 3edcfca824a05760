"""A dry run: it plans a run, measures the stages on a sample, and predicts the duration and the cost of the run.

It writes nothing to the output; the plan goes to a temporary folder.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa
import yaml
from fsspec.implementations.local import LocalFileSystem

from pipeline.annotate.foreground.foreground_choice import known, with_foreground
from pipeline.annotate.input_plan import TUNE_FROM, images_per_slice, plan_inputs
from pipeline.annotate.model import Model, fit_topk, load_model
from pipeline.annotate.reporter import Reporter
from pipeline.annotate.resources import Machine
from pipeline.annotate.spec import continued, run_request
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.tuning.autotune import Measured, measure_run
from pipeline.graph.tuning.bench import sample_plan
from pipeline.storage.filesystems import connect, read_url
from pipeline.storage.inputs.folders import refuse_missing
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.plan.planning import Plan
from pipeline.storage.lake.run import check_settings, find_calibration
from schemas.cluster_pricing import ClusterFile, Prices
from schemas.errors import InputError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.yaml_text import parse_yaml


class Offer(NamedTuple):
    """The cluster that the user's files describe, and its price."""

    machine: Machine | None
    """None stands for the cluster to which the run would connect, or which it would start."""
    per_hour: float | None
    currency: str


@dataclass(frozen=True)
class PlannedRun:
    """A run whose inputs are listed and planned, but not annotated."""

    config: AnnotateConfig
    """The configuration, with ``topk`` fitted to the network."""
    model: Model
    plan: Plan
    sample: pa.Table | None
    """Planned inputs (PLAN) for the measurement; None where no input is planned."""
    planning_s: float
    """Seconds for loading the network, listing and planning."""


class Estimate(NamedTuple):
    """The time and the cost that a run would take."""

    measured: Measured
    before_s: float
    """Seconds from the start of the command until Ray runs."""
    offer: Offer

    @property
    def total_s(self) -> float:
        """Return the seconds from the start of the command to its end."""
        return self.before_s + self.measured.prediction.duration_s

    @property
    def cost(self) -> float | None:
        """Return the price of the run in the offer's currency; None without a price."""
        return None if self.offer.per_hour is None else self.total_s / 3600 * self.offer.per_hour


def plan_run(config: AnnotateConfig) -> PlannedRun:
    """List and plan the inputs of a run as ``camlake annotate`` would; raises CamlakeError where it could not begin."""
    started = time.monotonic()
    refuse_missing(config.input, config)
    model = load_model(config)
    config, _ = continued(fit_topk(config, model.network), model)
    fs, root = connect(config.out, config)
    choice = known(config, model, fs, root)
    if choice:  # A direction that the run would learn is not in the estimate.
        model, config = replace(model, foreground=choice.foreground), with_foreground(config, choice.foreground)
    request = run_request(config, model, decided=choice is not None)
    check_settings(request, fs, root)
    find_calibration(request, fs, root)
    done = done_images(fs, root, model.partition, config.retry_rejected)
    with tempfile.TemporaryDirectory(prefix="camlake-dry-run-") as folder:
        local = LocalFileSystem()
        plan = plan_inputs(
            config, model.partition, model.weights.labels, done, local, folder, "plan", images_per_slice(config)
        )
        sample = sample_plan(plan.slices, local, folder) if plan.slices else None
    return PlannedRun(config, model, plan, sample, time.monotonic() - started)


def estimate_run(run: PlannedRun, offer: Offer, reporter: Reporter, tune_from: int = TUNE_FROM) -> Estimate:
    """Measure the stages on the sample of a run, which must have one, and return the estimate for the whole run."""
    started = time.monotonic()
    reporter.say("starting Ray, and measuring for a few seconds")
    with ray_cluster(run.config.address) as machine:
        before_s = run.planning_s + time.monotonic() - started
        measured = measure_run(
            run.config, run.model, machine, run.plan.slices, run.sample, offered=offer.machine, tune_from=tune_from
        )
    return Estimate(measured, before_s, offer)


def read_offer(config: AnnotateConfig) -> Offer:
    """Return the offer in the files ``--cluster`` and ``--prices``; raises UsageError for a file that is not valid."""
    cluster = prices = None
    if config.cluster:
        where = f"--cluster {config.cluster!r}"
        cluster = ClusterFile.parse(_read_yaml(config.cluster, where, config), where)
    if config.prices:
        where = f"--prices {config.prices!r}"
        prices = Prices.parse(_read_yaml(config.prices, where, config), where)
    return Offer(
        Machine(cluster.amount("CPU"), cluster.amount("GPU"), None) if cluster else None,
        prices.of(cluster.instances() if cluster else None, where) if prices else None,
        prices.currency if prices else "",
    )


def _read_yaml(url: str, where: str, storage: StorageConfig) -> Any:
    try:
        return parse_yaml(read_url(url, storage).decode())  # JSON is YAML.
    except (InputError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: neither YAML nor JSON: {' '.join(str(error).split())}") from error
