"""Lists the inputs of a run and plans those that are not done yet. This module does not import torch."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import connect, protocol_of, refuse_unwritable
from pipeline.storage.inputs.folders import refuse_missing
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.plan.planning import Plan, make_plan
from pipeline.storage.lake.plan.tombstones import commit_tombstones, images_in_scope
from pipeline.storage.lake.run import OpenRun
from pipeline.storage.truth.class_join import ClassTable
from pipeline.storage.truth.coco import skipped_sentence
from schemas.options.annotate import AnnotateConfig
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url

CPU_BATCH = 32
"""Images of one forward pass on a CPU; larger batches do not fit into the caches."""
IMAGES_PER_SLICE = 128
"""Images that one read task fetches: a block of about 12 MB, measured to be as fast as a plain loop."""
MAX_SLICES = 2_000
"""Most read tasks of a run: each task costs the driver about 15 ms and some memory, so large runs get larger slices.

The cost of a block does not depend on its size: with 128 images in a slice one driver core is enough for about 8,000
images/s (`python -m tests.benchmarks.scale`), and for more with larger slices.
"""


TUNE_FROM = 20_000
"""Least planned images for which trials are worth it: they take about ten seconds and save a tenth of the run."""


def refuse_at_once(config: AnnotateConfig) -> None:
    """Raise InputError for an input that is not there, StoreError for an output on this machine that can't be written.

    Both are looked at before the network is loaded, which may take a minute and a download, and before it is known
    whether another run holds the output. A folder on this machine is listed until its first image is found: some
    10,000 names tell what it holds. Containers and manifests are not read here.
    """
    refuse_missing(config.input, config)
    refuse_unwritable("--out", config.out, config)
    if protocol_of(config.input) == "file":
        listing = list_inputs(config.input, config, out=config.out, how=config.input_options, batch_rows=1)
        if listing.kind == "folder":
            next(listing.batches)


def plan_inputs(
    config: AnnotateConfig,
    partition: str,
    labels: Sequence[str],
    done: Iterable[pa.RecordBatch],
    fs: AbstractFileSystem,
    root: str,
    plan_dir: str,
    rows_per_slice: Callable[[int], int],
) -> Plan:
    """List the inputs, write the inputs that are not done to ``root``/``plan_dir``, and return the plan.

    ``partition``: the value of the ``model`` partition; ``labels``: the names of its classes, for ``--classes``.
    ``done``: the images that the output already has. ``rows_per_slice`` returns, for the number of planned inputs, the
    number of inputs that one read task fetches. The plan has also the images that the input no longer has.
    """
    classes, skipped = _named_classes(config, labels)
    listing = list_inputs(config.input, config, out=config.out, how=config.input_options)
    in_output = images_in_scope(
        *connect(config.out, config),
        partition,
        safe_url(config.input),
        listing.scope,
        in_containers=listing.kind != "folder",
    )
    plan = make_plan(
        listing,
        done,
        fs,
        root,
        plan_dir,
        limit=config.limit,
        sample=config.sample,
        classes=classes,
        rows_per_slice=rows_per_slice,
        in_output=in_output,
        hide_deleted=config.on_deleted == "hide",
    )
    return replace(plan, left_out_of_classes=skipped_sentence(skipped, f"--classes {safe_url(config.classes or '')}"))


def _named_classes(config: AnnotateConfig, labels: Sequence[str]) -> tuple[ClassTable | None, list[str]]:
    """Return the classes that ``--classes`` names, if it is given, and the annotations that can't be used."""
    if not config.classes:
        return None, []
    from pipeline.storage.truth.image_classes import read_classes  # noqa: PLC0415 - imports pandas

    skipped: list[str] = []
    return read_classes(config.classes, config, labels, skipped=skipped), skipped


def images_per_slice(config: AnnotateConfig) -> Callable[[int], int]:
    """Return a function from the number of planned images to the images that one read task fetches: whole batches."""

    def size(n_images: int) -> int:
        batch = config.batch_size or CPU_BATCH  # GPU_BATCH is a multiple, so a GPU's batch has whole slices.
        few = min(round(IMAGES_PER_SLICE / batch), math.ceil(n_images / (8 * batch)))
        return batch * max(1, few, math.ceil(n_images / (MAX_SLICES * batch)))

    return size


def finish_at_once(run: OpenRun, plan: Plan) -> RunManifest:
    """Begin and finish a run that annotates nothing, and return its final manifest; its tombstones are committed."""
    begun = run.begin(plan.counts)
    commit_tombstones(begun, plan.tombstones)
    return begun.finish()
