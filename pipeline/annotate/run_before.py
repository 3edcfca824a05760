"""Finds the run of an output whose network a new run would use, without loading the network.

So a run that has nothing to do ends before it imports torch. This module does not import it.
"""

import hashlib
from typing import Any

from pipeline.storage.filesystems import connect, read_url
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lineage import software_versions
from pipeline.storage.lake.records import load_runs
from pipeline.storage.lake.run import RunRequest, shown_config
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import LeaseConfig
from schemas.options.network_names import WEIGHTS_SUFFIXES, names_weights, reference_of
from schemas.runs import RunManifest

_FREE = {
    *LeaseConfig.model_fields,
    *(
        "input",
        "input_kind",
        "uri_column",
        "image_column",
        "id_column",
        "out",
        "limit",
        "sample",
        "on_deleted",
        "max_pixels",
        "max_bytes",
        "decode_timeout_s",
        "max_rejected",
    ),
    *("retry_rejected", "images_per_commit", "device", "precision", "compile", "batch_size", "actors"),
    *("gpus_per_actor", "decode", "engine", "address", "notify", "metrics", "dry_run", "cluster", "prices"),
}
"""Options that a later run may change without touching the partition of its rows."""
_CONTINUED = ("box_rule", "threshold", "min_prob", "foreground")
"""Options that a later run takes from the rows, unless the user gives them."""


def run_before(config: AnnotateConfig) -> RunManifest | None:
    """Return the newest run with rows whose partition a run of ``config`` has; None where only the network can tell.

    The run was made by this version of the software, from the same weights and with the same options.
    """
    given = config.model_fields_set
    if config.labels or config.head or config.classes or config.calibration or {"foreground", "dry_run"} & given:
        return None
    shown, software = shown_config(config), software_versions()
    fs, root = connect(config.out, config)
    for run in reversed(load_runs(fs, root)):
        made_by = run.lineage.model_dump(include=set(software))
        if run.files and made_by == software and _same(config, shown, run) and _same_weights(config, run):
            kept = run.settings["foreground"] == "off" or fs.exists(LakePaths(root).foreground_file(run.model))
            return run if kept else None
    return None


def request_like(run: RunManifest, config: AnnotateConfig) -> RunRequest:
    """Return the request for another run with the settings of ``run``."""
    free = {name: value for name, value in shown_config(config).items() if name in _FREE}
    kept = {name: value for name, value in run.config.items() if name != "resolved"}
    return RunRequest(
        out=config.out,
        storage=config.storage,
        model=run.model,
        settings=run.settings,
        config=kept | free,
        lineage=run.lineage,
        wait_s=config.wait_s,
    )


def _same(config: AnnotateConfig, shown: dict[str, Any], run: RunManifest) -> bool:
    compared = set(shown) - _FREE - {name for name in _CONTINUED if name not in config.model_fields_set}
    then = dict(run.config)
    if "topk" not in config.model_fields_set and then.get("topk") == run.lineage.classes < config.topk:
        then["topk"] = config.topk  # By default a network of few classes has fewer.
    now, then = ({name: _plain(name, values.get(name)) for name in compared} for values in (shown, then))
    return now == then and run.settings.get("classes") == "no classes"


def _plain(name: str, value: Any) -> Any:
    """Return an option's value; ``outputs`` without the table that a run adds to the user's."""
    return set(value or ()) - {"foreground"} if name == "outputs" else value


def _same_weights(config: AnnotateConfig, run: RunManifest) -> bool:
    """Return whether the weights are those of ``run``; a name means one file in each version of torchvision.

    Names of timm's weights mean what the installed timm takes them for, and the user's own code may have changed.
    """
    if config.model and reference_of(config.model):
        return False
    if names_weights(config.weights):
        return True
    is_file = config.weights.lower().endswith(WEIGHTS_SUFFIXES)
    return is_file and hashlib.sha256(read_url(config.weights, config)).hexdigest() == run.lineage.weights_sha256
