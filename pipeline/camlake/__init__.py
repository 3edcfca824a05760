"""camlake for Python: ``import camlake``, whatever way it is installed.

``camlake.annotate(input="photos/", out="labels/")`` runs the job, ``camlake.open("labels/")`` reads its tables, and
every failure is a ``camlake.CamlakeError``. The folder lies inside ``pipeline``, so ``from pipeline import camlake``
gives the same names.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .own_packages import use_own

use_own("pipeline", "schemas")

from schemas.errors import (  # noqa: E402 - only now is it certain whose ``schemas`` is meant
    CamlakeError,
    HeldError,
    InputError,
    LeaseError,
    ModelError,
    RejectedImage,
    RejectedShareError,
    Stopped,
    StoreError,
    UsageError,
)

if TYPE_CHECKING:
    from pipeline.outputs.reader import CURRENT_ROWS_SQL, Lake, feature_map, heatmap, open  # noqa: A004
    from schemas.runs import RunManifest

__all__ = [
    "CURRENT_ROWS_SQL",
    "CamlakeError",
    "HeldError",
    "InputError",
    "Lake",
    "LeaseError",
    "ModelError",
    "RejectedImage",
    "RejectedShareError",
    "Stopped",
    "StoreError",
    "UsageError",
    "annotate",
    "feature_map",
    "heatmap",
    "open",
]

_OF_THE_READER = {"CURRENT_ROWS_SQL", "Lake", "feature_map", "heatmap", "open"}
"""Names that are imported when they are first used: DuckDB and pandas take a second, and ``--help`` needs neither."""


def annotate(**options: Any) -> "RunManifest":
    """Annotate every listed input that is not done yet, and return the manifest of the run.

    ``options`` are those of ``camlake annotate --help``, named as in a YAML job file: ``input``, ``out``, ``model``,
    ``topk`` and so on. The steps of the run go to the logger ``camlake`` at level INFO. Raises UsageError for options
    that can't be meant, and RejectedShareError, after all work is done, where more inputs than ``max_rejected`` allows
    were rejected; any other CamlakeError ends the run. Ctrl-C raises Stopped, a KeyboardInterrupt, when the work that
    was begun is committed.
    """
    # Ray and PyTorch take seconds to import, and whoever only reads an output needs neither.
    from pipeline.annotate.reporter import LogReporter  # noqa: PLC0415
    from pipeline.graph.annotate.driver import annotate as annotate_inputs  # noqa: PLC0415
    from pipeline.graph.annotate.driver import refuse_rejected_share  # noqa: PLC0415
    from schemas.options.annotate import AnnotateConfig  # noqa: PLC0415

    config = AnnotateConfig.resolve(options)
    if config.dry_run:
        raise UsageError("dry_run: allowed only on the command line, which prints the estimate")
    if config.notify:
        raise UsageError("notify: allowed only on the command line; here the manifest or the exception comes back")
    reporter = LogReporter("camlake")
    manifest = annotate_inputs(config, reporter)
    if manifest.summary:
        reporter.say(manifest.summary.sentence)
    refuse_rejected_share(manifest, config)
    return manifest


def __getattr__(name: str) -> Any:
    if name in _OF_THE_READER:
        return getattr(importlib.import_module("pipeline.outputs.reader"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
