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
from pipeline.graph.job import describe, load_model, plan_inputs
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
    done = done_images(fs, root, model.partition, config.retry_rejected)
    with tempfile.TemporaryDirectory(prefix="camlake-dry-run-") as folder:
        local = LocalFileSystem()
        plan = plan_inputs(config, model, done, local, folder, "plan")
        if plan.slices:
            sample = pa.concat_tables(read_plan_slice(local, folder, one) for one in spread_slices(plan.slices))
    with ray_cluster(config.address) as machine:
        compute = plan_compute(config, machine)
    rows = [(name, str(value)) for name, value in config.model_dump().items()]
    screen.table("Resolved configuration", ("option", "value"), rows)
    counts = plan.counts
    facts: dict[str, Any] = {
        "model": model.partition,
        "listed": counts.listed,
        "left out by --limit and --sample": counts.left_out,
        "already done": counts.already_done,
        "to do": counts.planned,
        "compute": describe(compute, config),
    }
    if plan.slices:
        found = estimate(config, model, compute, counts.planned, sample.slice(0, SAMPLE))
        facts |= {
            "measured on": f"{found.sampled} images, {found.rejected} of them rejected",
            "fetching (ms an image)": round(found.fetch_s * 1e3, 2),
            "decoding (ms an image)": round(found.decode_s * 1e3, 2),
            "network, maps, boxes (ms an image)": round(found.network_s * 1e3, 2),
            "images/s": round(found.images_per_s, 1),
            "duration": str(timedelta(seconds=round(found.duration_s))),
            "output (MB)": round(found.output_bytes / 1e6, 1),
        }
    screen.table("Plan and estimate", ("fact", "value"), list(facts.items()))


def spread_slices(slices: Sequence[PlanSlice]) -> Sequence[PlanSlice]:
    """Return up to four slices, spread over the plan, so that a sample does not come from one folder alone."""
    return slices[:: max(1, -(-len(slices) // 4))]
