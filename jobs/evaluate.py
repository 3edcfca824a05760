"""``camlake evaluate``: scores an output against known boxes; no network runs again."""

import dataclasses
import json
import posixpath

from jobs.console import Screen, main, verb
from pipeline.images.charts import Line, Panel, chart_png
from pipeline.outputs import reader as camlake
from pipeline.outputs.calibrate import calibrate
from pipeline.outputs.evaluate import evaluate
from pipeline.outputs.truth_join import run_of_model
from pipeline.storage.filesystems import connect, safe_url, store_errors
from pipeline.storage.lake.calibrations import write_calibration
from pipeline.storage.lake.commit import committed_settings
from pipeline.storage.lake.layout import write_whole
from pipeline.storage.truth.class_names import read_class_names
from pipeline.storage.truth.masks import read_masks
from pipeline.storage.truth.truth import read_truth
from schemas.config import StorageConfig
from schemas.errors import UsageError
from schemas.reading import EvaluateConfig
from schemas.scores import CURVE_FILES, TITLES, CurveKind, Scores


def run(config: EvaluateConfig, screen: Screen) -> None:
    """Print the scores and write them as JSON, Markdown and pictures; keep a calibration where asked."""
    names = read_class_names(config.labels, config) if config.labels else None
    truth, masks = read_truth(config.truth, config, names), read_masks(config.truth, config, config.masks)
    with camlake.open(
        config.out, endpoint_url=config.endpoint_url, profile=config.profile, anonymous=config.anonymous
    ) as lake:
        classes = run_of_model(lake, config.model).lineage.classes
        if names and len(names.texts) != classes:
            raise UsageError(
                f"--labels {safe_url(config.labels or '')}: {len(names.texts)} names; allowed: one for each of the"
                f" network's {classes} classes"
            )
        scores = evaluate(lake, truth, model=config.model, convention=config.iou, masks=masks)
        if config.calibrate:
            model, calibration, found = calibrate(lake, truth, model=config.model, convention=config.iou)
            scores = dataclasses.replace(scores, calibration=found)
            fs, root = connect(config.out, config)
            write_calibration(fs, root, model, calibration, committed_settings(fs, root, model) or {})
    rows = scores.rows()
    title = f"{scores.model}: {scores.images} images, {scores.pairs} pairs of image and class, IoU {config.iou}"
    screen.table(title, list(rows[0]), [list(row.values()) for row in rows])
    for note in scores.notes:
        screen.say(f"note: {note}")
    if scores.calibration:
        screen.say(f"calibrated box_score: {scores.calibration.sentence()}")
    folder = config.report or f"{config.out.rstrip('/')}/_reports"
    files = write_scores(scores, folder, config)
    screen.say(f"scores: {', '.join(files)} in {safe_url(folder)}")


def write_scores(scores: Scores, folder: str, storage: StorageConfig) -> list[str]:
    """Write scores.json, scores.md and pictures of the curves there are to ``folder``; return the files' names.

    Raises StoreError where that can't be.
    """
    fs, path = connect(folder, storage)
    files = {"scores.json": json.dumps(scores.document(), indent=1).encode(), "scores.md": scores.markdown().encode()}
    files |= {file: _picture(scores, kind) for kind, file in CURVE_FILES.items() if scores.curves_of(kind)}
    with store_errors(f"--report {safe_url(folder)}"):
        for name, content in files.items():
            write_whole(fs, posixpath.join(path, name), content)
    return list(files)


def _picture(scores: Scores, kind: CurveKind) -> bytes:
    """Return the curves of one kind; those of accuracy are marked where they are highest, which is the figure."""
    lines = []
    for curve in scores.curves_of(kind):
        value = scores.figure(curve.metric).value
        best = max(curve.points, key=lambda point: point[1]) if kind == "accuracy" else None
        lines.append(Line(f"{TITLES[curve.metric]}: {value:.3f}", curve.points, best))
    x_name = "threshold, share of the min–max scaled map" if kind == "accuracy" else "recall of the objects' pixels"
    return chart_png(scores.model, [Panel(x_name, kind, lines)])


ABOUT = "Score the boxes and maps of an output against known boxes."

command = verb(
    "evaluate",
    ABOUT,
    EvaluateConfig,
    run,
    "camlake evaluate s3://bucket/labels --truth truth.csv",
)

if __name__ == "__main__":
    main(command)
