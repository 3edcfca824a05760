"""``camlake annotate --dry-run``: the resolved plan, and what the run would take; nothing is written."""

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from jobs.console import Screen
from pipeline.graph.cluster import ray_cluster
from pipeline.graph.estimate import SAMPLE, estimate
from pipeline.graph.job import describe, load_model, plan_inputs, refuse_other_settings, shown_config
from pipeline.graph.resources import plan_compute
from pipeline.storage.commit import done_images
from pipeline.storage.fetch import read_plan_slice
from pipeline.storage.filesystems import connect
from pipeline.storage.planning import PlanSlice
from schemas.config import AnnotateConfig


def print_estimate(config: AnnotateConfig, screen: Screen) -> None:
    """Print the resolved configuration and what the run would take; the plan goes to a temporary folder."""
    model = load_model(config)
    fs, root = connect(config.out, config)
    refuse_other_settings(config, model, fs, root)
    done = done_images(fs, root, model.partition, config.retry_rejected)
    with tempfile.TemporaryDirectory(prefix="camlake-dry-run-") as folder:
        local = LocalFileSystem()
        plan = plan_inputs(config, model, done, local, folder, "plan")
        if plan.slices:
            slices = spread_slices(plan.slices)
            each = max(1, SAMPLE // len(slices))
            sample = pa.concat_tables(read_plan_slice(local, folder, one).slice(0, each) for one in slices)
    with ray_cluster(config.address) as machine:
        compute = plan_compute(config, machine, len(plan.slices))
        found = estimate(config, model, compute, machine, plan.counts.planned, sample) if plan.slices else None
    rows = [(name, str(value)) for name, value in shown_config(config).items()]
    screen.table("Resolved configuration", ("option", "value"), rows)
    counts = plan.counts
    facts: dict[str, Any] = {
        "model": model.partition,
        "listed": counts.listed,
        "left out by --limit and --sample": counts.left_out,
        "already done": counts.already_done,
        "to do": counts.planned,
        "compute": describe(compute),
    }
    if found:
        timed = found.timed
        facts |= {
            "measured on": f"{timed.images} images, {timed.rejected} of them rejected",
            "fetching (ms an image)": round(timed.fetch_s / timed.images * 1e3, 2),
            "decoding (ms an image)": round(timed.decode_s / timed.images * 1e3, 2),
            "network, maps, boxes (ms an image)": round(timed.network_s / timed.images * 1e3, 2),
            "images/s": round(found.images_per_s, 1),
            "duration, after the start": str(timedelta(seconds=round(found.duration_s))),
            "output (MB)": round(found.bytes_per_image * found.planned / 1e6, 2),
            "output (bytes an image)": round(found.bytes_per_image),
        }
        if config.price_per_hour is not None:
            facts["cost"] = round(found.duration_s / 3600 * config.price_per_hour, 2)
    screen.table("Plan and estimate", ("fact", "value"), list(facts.items()))


def spread_slices(slices: Sequence[PlanSlice]) -> Sequence[PlanSlice]:
    """Return up to four slices, spread over the plan, so that a sample does not come from one folder alone."""
    return slices[:: max(1, -(-len(slices) // 4))]
