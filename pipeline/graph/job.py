"""From a configuration to a job: the network resolved, the run opened under its lease, the stages specified."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.arrays.calibration import Calibration
from pipeline.graph.annotating import AnnotateSpec
from pipeline.graph.decoding import DecodeSpec
from pipeline.graph.resources import Compute, images_per_commit, images_per_slice
from pipeline.graph.source import ImageReader
from pipeline.graph.stream import Job
from pipeline.images.decode import DecodeLimits
from pipeline.images.resize import ResizePlan
from pipeline.models.box_rules import BoxRule
from pipeline.models.loading import load_network
from pipeline.models.localizer import CamRule
from pipeline.models.methods import METHODS, NO_BOX_HEAD
from pipeline.models.network import CamNetwork
from pipeline.models.runtime import resolve_precision
from pipeline.models.views import ViewPlan, make_views, plan_views
from pipeline.models.weights import Weights, load_weights, model_digest
from pipeline.storage import lineage
from pipeline.storage.calibrations import calibration_in, read_calibration
from pipeline.storage.classes import read_classes
from pipeline.storage.commit import Committer, committed_settings, finish_run, remove_leftovers, start_run
from pipeline.storage.filesystems import connect, read_url, safe_url
from pipeline.storage.lake import new_run_id
from pipeline.storage.lease import Lease
from pipeline.storage.listing import list_inputs
from pipeline.storage.planning import Plan, make_plan
from schemas.annotate import FIRST_LOCALIZATION, AnnotateConfig
from schemas.box_rules import NO_CUT
from schemas.config import StorageConfig
from schemas.errors import ModelError, UsageError
from schemas.rebox import MAPS_OF
from schemas.runs import Counts, Lineage, RunManifest, spelled
from schemas.tables import OPTIONAL_TABLES, TABLES, table_schema

GREATEST_SIDE_PX = 4096
"""Of the square in which a picture travels to the network: 48 MiB."""


@dataclass(frozen=True)
class Model:
    """A network with its weights, resolved once, on the driver."""

    network: CamNetwork
    weights: Weights
    digest: str
    resize: ResizePlan

    @property
    def partition(self) -> str:
        """Return the value of the ``model`` partition."""
        return f"{self.network.name}-{self.digest[:8]}"


def load_model(config: AnnotateConfig) -> Model:
    """Return the network that ``config`` names; raises ModelError where it or its weights can't be used."""
    read, exact_maps = functools.partial(read_url, storage=config), METHODS[config.method].exact
    weights = load_weights(config.model, config.weights, config.labels, read, exact_maps=exact_maps)
    name = weights.architecture.name
    network = load_network(
        name, weights.state, config.image_size, preprocessing=weights.preprocessing, exact_maps=exact_maps
    )
    if config.method == "regress" and network.box_head is None:
        raise ModelError(NO_BOX_HEAD)
    if config.topk > network.classes:
        raise UsageError(f"--topk {config.topk}: allowed: up to the {network.classes} classes of {name}")
    views = _views(config, network)
    resize = ResizePlan(config.resize, views.side_px, views.canvas_hw)
    digest = model_digest(name, weights.sha256, network.preprocessing, config.resize)
    return Model(network, weights, digest, resize)


def _views(config: AnnotateConfig, network: CamNetwork) -> ViewPlan:
    """Return the views of each picture; raises ModelError or UsageError for sides that are too small or too large."""
    views = make_views(network.preprocessing.image_size, config.tta, config.scales)
    shown = f"--scales {','.join(f'{scale:g}' for scale in config.scales)} --tta {config.tta}"
    try:
        plan = plan_views(views, functools.partial(METHODS[config.method].map_hw, network))
    except RuntimeError as error:
        least = min(view.side_px for view in views)
        raise ModelError(f"{shown}: {least} pixels are too small for {network.name}; give larger scales") from error
    if plan.side_px > GREATEST_SIDE_PX:
        raise UsageError(f"{shown}: inputs of {plan.side_px} pixels a side; allowed: up to {GREATEST_SIDE_PX}")
    return plan


@dataclass(frozen=True)
class OpenRun:
    """A run that holds its output's lease; it counts from ``begin`` on."""

    fs: AbstractFileSystem
    root: str
    manifest: RunManifest
    generation: int
    calibration: Calibration | None
    """Of the box scores."""

    def begin(self, counts: Counts, compute: Compute | None) -> Self:
        """Write lineage and manifest, with what was planned and how it will run, and return the begun run."""
        config = self.manifest.config | ({"resolved": asdict(compute)} if compute else {})
        manifest = self.manifest.model_copy(update={"counts": counts, "config": config})
        start_run(self.fs, self.root, manifest)
        return replace(self, manifest=manifest)

    def finish(self) -> RunManifest:
        """Write the run's account and return it; raises StoreError where it does not add up."""
        return finish_run(self.fs, self.root, self.manifest, self.generation)


@contextmanager
def open_run(config: AnnotateConfig, model: Model) -> Iterator[OpenRun]:
    """Take the output's lease and remove what dead runs left; the caller lists, plans and begins.

    Raises LeaseError where another run is at work, UsageError where the output's rows of this model were made with
    other settings, and as ``find_calibration`` does.
    """
    fs, root = connect(config.out, config)
    started_at = datetime.now(UTC)
    run_id = new_run_id()
    with Lease.acquire(fs, root, run_id) as lease:
        remove_leftovers(fs, root)
        settings = refuse_other_settings(config, model, fs, root)
        calibration = find_calibration(config, model, settings, fs, root)
        manifest = RunManifest(
            run_id=run_id,
            status="running",
            model=model.partition,
            date=f"{started_at:%Y-%m-%d}",
            started_at=started_at,
            config=shown_config(config),
            settings=settings,
            lineage=_lineage(config, model),
        )
        yield OpenRun(fs, root, manifest, lease.generation, calibration)


def _settings(config: AnnotateConfig, model: Model) -> dict[str, Any]:
    labels = "digest " + hashlib.sha256("\n".join(model.weights.labels).encode()).hexdigest()[:8]
    return config.settings() | {"labels": labels, "classes": "a file of classes" if config.classes else "no classes"}


def refuse_other_settings(config: AnnotateConfig, model: Model, fs: AbstractFileSystem, root: str) -> dict[str, Any]:
    """Return the settings that shape the rows; raises UsageError where the output's rows of this model have others."""
    settings = _settings(config, model)
    found = committed_settings(fs, root, model.partition)
    committed = FIRST_LOCALIZATION | found if found else {}
    if MAPS_OF in committed:
        raise UsageError(
            f"--out {safe_url(config.out)}: has boxes that camlake rebox cut from the maps of {committed[MAPS_OF]}; "
            "annotate there and rebox again, or use another --out"
        )
    for name, value in settings.items():
        if name in committed and committed[name] != value:
            raise UsageError(
                f"--{name.replace('_', '-')}: the rows of this model in {safe_url(config.out)} were made with "
                f"{spelled(committed[name])}, not {spelled(value)}; use the same, or another --out"
            )
    return settings


def find_calibration(
    config: AnnotateConfig, model: Model, settings: Mapping[str, Any], fs: AbstractFileSystem, root: str
) -> Calibration | None:
    """Return the calibration of the box scores, ``--calibration``'s or the output's own; None where it has none.

    Raises UsageError where ``--calibration`` has none for boxes made as ``settings`` say, and StoreError where either
    can't be read or was fitted on other maps.
    """
    if config.calibration:
        return calibration_in(config.calibration, config, model.partition, settings)
    return read_calibration(fs, root, model.partition, settings)


def shown_config(config: AnnotateConfig) -> dict[str, Any]:
    """Return the resolved configuration without secrets that stand in URLs."""
    values = config.model_dump(mode="json")
    return {name: safe_url(value) if isinstance(value, str) else value for name, value in values.items()}


def _lineage(config: AnnotateConfig, model: Model) -> Lineage:
    return Lineage(
        camlake_version=lineage.camlake_version(),
        code_version=lineage.code_version(),
        python_version=lineage.python_version(),
        packages=lineage.package_versions(),
        model=model.network.name,
        model_digest=model.digest,
        weights=safe_url(model.weights.source),
        weights_sha256=model.weights.sha256,
        parameters=model.network.n_parameters,
        classes=model.network.classes,
        preprocessing={**asdict(model.network.preprocessing), "resize": config.resize, "map_hw": model.resize.map_hw},
    )


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
    actors = "–".join(map(str, dict.fromkeys(compute.actors)))
    runtime = compute.runtime
    threads = f" of {runtime.threads} threads" if runtime.threads > 1 else ""
    precision = resolve_precision(runtime.precision, runtime.device)
    compiled = "compiled, " if runtime.compile else ""
    return (
        f"{actors} actors{threads} on {runtime.device}, {precision}, {compiled}batches of {runtime.batch_size}, "
        f"decoding {compute.decode} ({compute.why})"
    )
