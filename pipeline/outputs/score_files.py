"""Writes the files of an evaluation: scores as JSON and Markdown, curves as PNG."""

import json
import posixpath

from pipeline.images.charts import Line, Panel, chart_png
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.store_failures import store_errors
from schemas.options.config import StorageConfig
from schemas.scores import CURVE_FILES, TITLES, CurveKind, Scores
from schemas.url_secrets import safe_url


def write_scores(scores: Scores, folder: str, storage: StorageConfig) -> list[str]:
    """Write scores.json, scores.md and a picture of each kind of curve to ``folder``; return the names of the files.

    ``folder`` is any fsspec URL. Raises StoreError where the folder can't be written.
    """
    fs, path = connect(folder, storage)
    files = {"scores.json": json.dumps(scores.document(), indent=1).encode(), "scores.md": scores.markdown().encode()}
    files |= {file: _picture(scores, kind) for kind, file in CURVE_FILES.items() if scores.curves_of(kind)}
    with store_errors(f"--report {safe_url(folder)}"):
        for name, content in files.items():
            write_whole(fs, posixpath.join(path, name), content)
    return list(files)


def _picture(scores: Scores, kind: CurveKind) -> bytes:
    """Return the curves of one kind as a PNG; a mark shows the highest point of an accuracy curve, its figure."""
    lines = []
    for curve in scores.curves_of(kind):
        value = scores.figure(curve.metric).value
        best = max(curve.points, key=lambda point: point[1]) if kind == "accuracy" else None
        lines.append(Line(f"{TITLES[curve.metric]}: {value:.3f}", curve.points, best))
    x_name = "threshold, share of the min–max scaled map" if kind == "accuracy" else "recall of the objects' pixels"
    return chart_png(scores.model, [Panel(x_name, kind, lines)])
