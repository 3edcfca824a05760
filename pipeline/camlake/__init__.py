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
    import pyarrow as pa

    from pipeline.annotate.reporter import ProgressKind
    from pipeline.outputs.feature_rows import HeadMap
    from pipeline.outputs.picture import draw
    from pipeline.outputs.reader import CURRENT_ROWS_SQL, Lake, feature_map, heatmap, open  # noqa: A004

__all__ = [
    "CURRENT_ROWS_SQL",
    "CamlakeError",
    "HeadMap",
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
    "draw",
    "feature_map",
    "heatmap",
    "near_duplicates",
    "neighbours",
    "open",
]

_OF_THE_READER = ("CURRENT_ROWS_SQL", "Lake", "feature_map", "heatmap", "open")
_LATER = dict.fromkeys(_OF_THE_READER, "pipeline.outputs.reader") | {
    "HeadMap": "pipeline.outputs.feature_rows",
    "draw": "pipeline.outputs.picture",
}
"""The modules of names that are imported when they are first used: DuckDB, pandas and OpenCV take a second."""


def annotate(*, progress: "ProgressKind" = "auto", **options: Any) -> "Lake":
    """Annotate every listed input that is not done yet, and return the opened output with the rows of the model.

    ``options`` are those of ``camlake annotate --help``, named as in a YAML job file: ``input``, ``out``, ``model``,
    ``topk`` and so on. ``lake.runs[-1]`` is the manifest of this run. ``progress``: ``"bar"`` shows lines and a bar,
    ``"plain"`` lines on standard error, ``"log"`` sends them to the logger ``camlake`` at level INFO; ``"auto"`` is a
    bar on a terminal and in a notebook, else the logger. Raises UsageError for options that can't be meant, and
    RejectedShareError, after all work is done, where more inputs than ``max_rejected`` allows were rejected; any other
    CamlakeError ends the run. Ctrl-C raises Stopped, a KeyboardInterrupt, when the work that was begun is committed.

    >>> with camlake.annotate(input="photos/", out="new/", model="camlake_demo", topk=2, progress="log") as lake:
    ...     lake.runs[-1].counts.annotated, len(lake.arrow("heatmaps"))
    (1, 2)
    """
    # Ray and PyTorch take seconds to import, and whoever only reads an output needs neither.
    from pipeline.annotate.reporter import reporter_for  # noqa: PLC0415
    from pipeline.graph.annotate.driver import annotate as annotate_inputs  # noqa: PLC0415
    from pipeline.graph.annotate.driver import refuse_rejected_share  # noqa: PLC0415
    from pipeline.outputs.reader import open_lake  # noqa: PLC0415
    from schemas.options.annotate import AnnotateConfig  # noqa: PLC0415

    if progress not in ("auto", "bar", "plain", "log"):
        raise UsageError(f"progress {progress!r}: allowed: 'auto', 'bar', 'plain', 'log'")
    config = AnnotateConfig.resolve(options)
    if config.dry_run:
        raise UsageError("dry_run: allowed only on the command line, which prints the estimate")
    if config.notify:
        raise UsageError("notify: allowed only on the command line; here the manifest or the exception comes back")
    reporter = reporter_for(progress, "camlake")
    manifest = annotate_inputs(config, reporter)
    if manifest.summary:
        reporter.say(manifest.summary.sentence)
    refuse_rejected_share(manifest, config)
    # ``anonymous`` is meant for the input alone.
    return open_lake(config.out, config.storage.model_copy(update={"anonymous": False}), manifest.model)


def neighbours(out: str, of: str, count: int = 10, **options: Any) -> "pa.Table":
    """Return the ``count`` images of the output ``out`` nearest to the image ``of`` by the cosine of their features.

    ``of`` is a uri, its end after a /, or an image_id; ``options`` are the other options of `camlake neighbours`:
    ``model`` and those of the store. The Arrow table has the columns image_id, uri and cosine, nearest first.
    """
    from pipeline.outputs.heads.features import open_features  # noqa: PLC0415 - imports DuckDB
    from pipeline.outputs.heads.neighbours import nearest  # noqa: PLC0415
    from schemas.options.neighbours import NeighboursConfig  # noqa: PLC0415

    config = NeighboursConfig.resolve({"out": out, "of": of, "count": count, **options})
    return nearest(open_features(out, config, config.model), of, count)


def near_duplicates(out: str, least: float = 0.95, **options: Any) -> "pa.Table":
    """Return all pairs of images of the output ``out`` whose features have a cosine of at least ``least``.

    The Arrow table has image_id, uri, other_id, other_uri, cosine, and group: images that are connected through pairs
    have the same one. Up to a million images, with ``index=True`` more (extra ``index``; may miss some pairs); beyond a
    GiB the vectors lie in a file. Other ``options`` as in ``neighbours``.
    """
    from pipeline.annotate.reporter import reporter_for  # noqa: PLC0415
    from pipeline.outputs.heads.features import open_features  # noqa: PLC0415 - imports DuckDB
    from pipeline.outputs.heads.neighbours import near_duplicates as find  # noqa: PLC0415
    from schemas.options.neighbours import NeighboursConfig  # noqa: PLC0415

    config = NeighboursConfig.resolve({"out": out, "duplicates": True, "least": least, **options})
    return find(open_features(out, config, config.model), least, reporter_for("log", "camlake"), index=config.index)


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
