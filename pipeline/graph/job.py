"""From a configuration to a job: the inputs planned, the stages specified."""

import functools
from collections.abc import Iterable

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration
from pipeline.graph.annotating import AnnotateSpec
from pipeline.graph.decoding import DecodeSpec
from pipeline.graph.model import Model
from pipeline.graph.opened import OpenRun
from pipeline.graph.resources import Compute, images_per_commit, images_per_slice
from pipeline.graph.source import ImageReader
from pipeline.graph.stream import Job
from pipeline.images.decode import DecodeLimits
from pipeline.models.box_rules import BoxRule
from pipeline.models.loading import load_network
from pipeline.models.localizer import CamRule
from pipeline.models.methods import METHODS
from pipeline.models.runtime import resolve_precision
from pipeline.models.views import make_views
from pipeline.storage.classes import read_classes
from pipeline.storage.commit import Committer
from pipeline.storage.listing import list_inputs
from pipeline.storage.planning import Plan, make_plan
from schemas.annotate import AnnotateConfig
from schemas.box_rules import NO_CUT
from schemas.config import StorageConfig
from schemas.tables import OPTIONAL_TABLES, TABLES, table_schema


def decode_spec(config: AnnotateConfig, model: Model) -> DecodeSpec:
    """Return how images are decoded."""
    limits = DecodeLimits(config.max_pixels, config.max_bytes, config.decode_timeout_s)
    return DecodeSpec(limits, model.resize, config.jpeg_scaling)


def annotate_spec(
    config: AnnotateConfig, model: Model, compute: Compute, calibration: Calibration | None = None
) -> AnnotateSpec:
    """Return what the network is asked for."""
    thresholds = NO_CUT if config.method == "regress" else config.threshold
    return AnnotateSpec(
        load=functools.partial(
            load_network,
            model.network.name,
            image_size=model.network.preprocessing.image_size,
            preprocessing=model.network.preprocessing,
            exact_maps=METHODS[config.method].exact,
        ),
        labels=model.weights.labels,
        image_size=model.resize.image_size,
        rule=CamRule(config.topk, BoxRule(config.box_rule, thresholds, config.min_area)),
        runtime=compute.runtime,
        outputs=config.outputs,
        feature_type=config.feature_type,
        resize=model.resize,
        multi_label=model.weights.multi_label,
        calibration=calibration,
        method=config.method,
        views=make_views(model.network.preprocessing.image_size, config.tta, config.scales),
    )


def storage_of(config: AnnotateConfig) -> StorageConfig:
    """Return the part of a configuration that every worker needs."""
    return StorageConfig(**{name: getattr(config, name) for name in StorageConfig.model_fields})


def row_bytes(config: AnnotateConfig, model: Model) -> int:
    """Return about how many bytes an image's rows take in memory."""
    cells = model.resize.map_hw[0] * model.resize.map_hw[1]
    boxes = 100 * len(config.threshold) * (4 if config.box_rule == "all-components" else 1)
    return 500 + 4 * model.network.channels + config.topk * (cells + 100 + boxes)


def make_job(config: AnnotateConfig, model: Model, run: OpenRun, compute: Compute, n_images: int) -> Job:
    """Return what travels to the workers."""
    storage = storage_of(config)
    tables = [table for table in TABLES if table not in OPTIONAL_TABLES or table in config.outputs]
    committer = Committer(
        out=config.out,
        storage=storage,
        run_id=run.manifest.run_id,
        model=run.manifest.model,
        date=run.manifest.date,
        generation=run.generation,
        schemas={table: table_schema(table, model.network.channels, config.feature_type) for table in tables},
    )
    return Job(
        reader=ImageReader(storage, config.out, config.max_bytes),
        images_per_commit=images_per_commit(config, n_images, compute.actors[1], row_bytes(config, model)),
        decode=decode_spec(config, model),
        annotate=annotate_spec(config, model, compute, run.calibration),
        committer=committer,
        compute=compute,
    )


def plan_inputs(
    config: AnnotateConfig,
    model: Model,
    done: Iterable[pa.RecordBatch],
    fs: AbstractFileSystem,
    root: str,
    plan_dir: str,
) -> Plan:
    """List the inputs and write down, under ``root``/``plan_dir``, those that are not done."""
    return make_plan(
        list_inputs(config.input, config, out=config.out),
        done,
        fs,
        root,
        plan_dir,
        limit=config.limit,
        sample=config.sample,
        classes=read_classes(config.classes, config, model.weights.labels) if config.classes else None,
        rows_per_slice=images_per_slice(config),
    )


def describe(compute: Compute) -> str:
    """Say in one line what was chosen and why: actors, threads, device, number type, batch size, place of decoding."""
    actors = "–".join(map(str, dict.fromkeys(compute.actors))) + (" actor" if compute.actors == (1, 1) else " actors")
    runtime = compute.runtime
    threads = f" of {runtime.threads} threads" if runtime.threads > 1 else ""
    precision = resolve_precision(runtime.precision, runtime.device)
    compiled = "compiled, " if runtime.compile else ""
    return (
        f"{actors}{threads} on {runtime.device}, {precision}, {compiled}batches of {runtime.batch_size}, "
        f"decoding {compute.decode} ({compute.why})"
    )
