"""Turns a configuration into the specifications of the stages, the plan of the inputs and the request for a run."""

import functools
import hashlib
from dataclasses import asdict

from pipeline.annotate.annotate_stage import AnnotateSpec
from pipeline.annotate.decode_stage import DecodeSpec
from pipeline.annotate.model import Model
from pipeline.arrays.calibration import Calibration
from pipeline.arrays.feature_codec import packed_bytes
from pipeline.images.decode import DecodeLimits
from pipeline.models import registry
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule
from pipeline.models.localize.methods import METHODS
from pipeline.models.localize.runtime import Runtime
from pipeline.models.localize.views import make_views
from pipeline.models.weights.state_fitting import load_network
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.lineage import software_versions
from pipeline.storage.lake.records import committed_settings
from pipeline.storage.lake.run import RunRequest, shown_config
from schemas.options.annotate import AnnotateConfig
from schemas.options.box_rules import FIRST_BOXES, NO_CUT
from schemas.options.localize import HEAD
from schemas.runs import Lineage, spelled
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
            head=model.head,
        ),
        labels=model.weights.labels,
        image_size=model.resize.image_size,
        rule=CamRule(config.topk, BoxRule(config.box_rule, thresholds, config.min_area, config.min_prob)),
        runtime=runtime,
        outputs=config.outputs,
        feature_type=config.feature_type,
        resize=model.resize,
        multi_label=model.weights.multi_label,
        calibration=calibration,
        method=config.method,
        views=make_views(model.network.preprocessing.image_size, config.tta, config.scales),
        foreground=model.foreground,
        feature_map_bits=config.feature_map_bits if "feature_maps" in config.outputs else None,
    )


def row_bytes(config: AnnotateConfig, model: Model) -> int:
    """Return about how many bytes the rows of one image take in memory, all tables together."""
    cells = model.resize.map_hw[0] * model.resize.map_hw[1]
    boxes = 100 * len(config.threshold) * (4 if config.box_rule == "all-components" else 1)
    cells_of_figure = 200 if model.foreground else 0
    stores_maps = "feature_maps" in config.outputs
    codes = packed_bytes(model.network.channels * cells, config.feature_map_bits) if stores_maps else 0
    return 500 + cells_of_figure + codes + 4 * model.network.channels + config.topk * (cells + 100 + boxes)


def continued(config: AnnotateConfig, model: Model) -> tuple[AnnotateConfig, str]:
    """Return ``config`` with the box options of the output's rows, and a message for the user, empty without a change.

    So an output of an earlier version, which had other defaults, goes on with the options of its rows. An option that
    the user gave stays; ``open_run`` refuses it where the rows have another value.
    """
    fs, root = connect(config.out, config)
    committed = committed_settings(fs, root, model.partition)
    if committed is None:
        return config, ""
    rows = FIRST_BOXES | committed
    names = ("box_rule", "threshold", "min_prob") if config.method != "regress" else ("min_prob",)
    taken = {name: rows[name] for name in names if name in rows and name not in config.model_fields_set}
    if rows["foreground"] == "off" and "foreground" not in config.model_fields_set:
        taken["foreground"] = "off"
    now = config.model_dump(mode="json", include=set(taken))
    others = {name: value for name, value in taken.items() if now[name] != value}
    if not others:
        return config, ""
    if "threshold" in others:
        others["threshold"] = tuple(others["threshold"])
    shown = " ".join(f"--{name.replace('_', '-')} {spelled(rows[name])}" for name in others)
    return config.model_copy(update=others), f"continued with the rule of the rows that are there: {shown}"


def run_request(config: AnnotateConfig, model: Model, *, decided: bool = True) -> RunRequest:
    """Return the request that ``open_run`` takes.

    ``decided``: whether the figure/ground direction of ``model`` and the options that depend on it are known already.
    """
    foreground = model.foreground.digest if model.foreground else "off"
    labels = "digest " + hashlib.sha256("\n".join(model.weights.labels).encode()).hexdigest()[:8]
    classes = "a file of classes" if config.classes else "no classes"
    head = {HEAD: model.head.digest} if model.head else {}
    return RunRequest(
        out=config.out,
        storage=config.storage,
        model=model.partition,
        settings={"foreground": foreground, **config.settings(), **head, "labels": labels, "classes": classes},
        config=shown_config(config),
        lineage=_lineage(config, model),
        calibration=config.calibration,
        wait_s=config.wait_s,
        undecided=frozenset() if decided else frozenset({"foreground", "threshold", "outputs"}),
    )


def _lineage(config: AnnotateConfig, model: Model) -> Lineage:
    software, origin = software_versions(), registry.origin_facts(model.network.name)
    libraries = {name: version for name, version in origin.items() if not name.endswith("_name")}
    return Lineage(
        **{**software, "packages": software["packages"] | libraries},
        model=model.network.name,
        model_digest=model.digest,
        weights=safe_url(model.weights.source),
        weights_sha256=model.weights.sha256,
        parameters=model.network.n_parameters,
        classes=model.network.classes,
        head=model.head.digest if model.head else None,
        backbone=model.backbone,
        foreground=model.foreground.digest if model.foreground else None,
        preprocessing={**asdict(model.network.preprocessing), "resize": config.resize, "map_hw": model.resize.map_hw},
    )
