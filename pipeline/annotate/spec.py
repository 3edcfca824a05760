"""Turns a configuration into what the stages and the run need: specifications, the plan, the request for a run."""

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.annotate.annotate_stage import AnnotateSpec
from pipeline.annotate.decode_stage import DecodeSpec
from pipeline.annotate.model import Model
from pipeline.arrays.calibration import Calibration
from pipeline.images.decode import DecodeLimits
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule
from pipeline.models.localize.methods import METHODS
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.views import make_views
from pipeline.models.weights.state_fitting import load_network
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.lineage import software_versions
from pipeline.storage.lake.planning import Plan, make_plan
from pipeline.storage.lake.run import RunRequest, shown_config
from pipeline.storage.truth.image_classes import read_classes
from schemas.annotate import AnnotateConfig
from schemas.box_rules import NO_CUT
from schemas.runs import Lineage
from schemas.url_secrets import safe_url


def decode_spec(config: AnnotateConfig, model: Model) -> DecodeSpec:
    """Return the specification of the decode stage."""
    limits = DecodeLimits(config.max_pixels, config.max_bytes, config.decode_timeout_s)
    return DecodeSpec(limits, model.resize, config.jpeg_scaling, config.alpha)


def annotate_spec(
    config: AnnotateConfig, model: Model, runtime: Runtime, calibration: Calibration | None = None
) -> AnnotateSpec:
    """Return the specification of the annotate stage."""
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
        runtime=runtime,
        outputs=config.outputs,
        feature_type=config.feature_type,
        resize=model.resize,
        multi_label=model.weights.multi_label,
        calibration=calibration,
        method=config.method,
        views=make_views(model.network.preprocessing.image_size, config.tta, config.scales),
    )


def row_bytes(config: AnnotateConfig, model: Model) -> int:
    """Return about how many bytes the rows of one image take in memory, in all tables together."""
    cells = model.resize.map_hw[0] * model.resize.map_hw[1]
    boxes = 100 * len(config.threshold) * (4 if config.box_rule == "all-components" else 1)
    return 500 + 4 * model.network.channels + config.topk * (cells + 100 + boxes)


def plan_inputs(
    config: AnnotateConfig,
    model: Model,
    done: Iterable[pa.RecordBatch],
    fs: AbstractFileSystem,
    root: str,
    plan_dir: str,
    rows_per_slice: Callable[[int], int],
) -> Plan:
    """List the inputs, write the inputs that are not done to ``root``/``plan_dir``, and return the plan.

    ``done``: the images that the output holds already. ``rows_per_slice``: from the number of planned inputs to the
    number that one read task fetches.
    """
    return make_plan(
        list_inputs(config.input, config, out=config.out, how=config.input_options),
        done,
        fs,
        root,
        plan_dir,
        limit=config.limit,
        sample=config.sample,
        classes=read_classes(config.classes, config, model.weights.labels) if config.classes else None,
        rows_per_slice=rows_per_slice,
    )


def run_request(config: AnnotateConfig, model: Model) -> RunRequest:
    """Return the request that ``open_run`` takes."""
    labels = "digest " + hashlib.sha256("\n".join(model.weights.labels).encode()).hexdigest()[:8]
    classes = "a file of classes" if config.classes else "no classes"
    return RunRequest(
        out=config.out,
        storage=config.storage,
        model=model.partition,
        settings=config.settings() | {"labels": labels, "classes": classes},
        config=shown_config(config),
        lineage=_lineage(config, model),
        calibration=config.calibration,
    )


def _lineage(config: AnnotateConfig, model: Model) -> Lineage:
    return Lineage(
        **software_versions(),
        model=model.network.name,
        model_digest=model.digest,
        weights=safe_url(model.weights.source),
        weights_sha256=model.weights.sha256,
        parameters=model.network.n_parameters,
        classes=model.network.classes,
        preprocessing={**asdict(model.network.preprocessing), "resize": config.resize, "map_hw": model.resize.map_hw},
    )
