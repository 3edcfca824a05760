"""``camlake evaluate``: scores the stored boxes and maps of an output against known boxes; no network runs again."""

import dataclasses

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.filesystems import connect, refuse_unwritable
from pipeline.storage.lake.records import refuse_no_output
from schemas.errors import UsageError
from schemas.options.reading import EvaluateConfig
from schemas.url_secrets import safe_url


def run(config: EvaluateConfig, screen: Screen) -> None:
    """Print the scores and write them as JSON, Markdown and pictures; with ``--calibrate`` also fit ``box_score``.

    Raises UsageError where ``--labels`` does not have one name for each class of the network.
    """
    refuse_no_output(config.out, config)
    if config.report:
        refuse_unwritable("--report", config.report, config)
    from pipeline.models.localize.foreground import foreground_of
    from pipeline.outputs.calibrate import calibrate
    from pipeline.outputs.evaluate import evaluate
    from pipeline.outputs.evaluate_foreground import foreground_notes
    from pipeline.outputs.reader import open_lake
    from pipeline.outputs.score_files import write_scores
    from pipeline.storage.lake.calibrations import write_calibration
    from pipeline.storage.lake.layout import LakePaths
    from pipeline.storage.lake.query import damage_said
    from pipeline.storage.lake.records import committed_settings
    from pipeline.storage.lake.whole_objects import read_whole
    from pipeline.storage.truth.class_names import read_class_names
    from pipeline.storage.truth.masks import read_masks
    from pipeline.storage.truth.truth import read_truth

    names = read_class_names(config.labels, config) if config.labels else None
    truth, masks = read_truth(config.truth, config, names), read_masks(config.truth, config, config.masks)
    fs, root = connect(config.out, config)
    with damage_said(safe_url(config.out)), open_lake(config.out, config) as lake:
        run = lake.run_of(config.model)
        classes = run.lineage.classes
        if names and len(names.texts) != classes:
            raise UsageError(
                f"--labels {safe_url(config.labels or '')}: {len(names.texts)} names; allowed: one for each of the"
                f" network's {classes} classes"
            )
        scores = evaluate(lake, truth, model=config.model, convention=config.iou, masks=masks)
        kept = read_whole(fs, LakePaths(root).foreground_file(run.model))
        if kept is not None:
            foreground = foreground_of(kept, f"the figure/ground direction of {safe_url(config.out)}")
            said = foreground_notes(lake, truth, foreground, model=config.model, convention=config.iou)
            scores = dataclasses.replace(scores, notes=(*scores.notes, *said))
        if config.calibrate:
            model, calibration, found = calibrate(lake, truth, model=config.model, convention=config.iou)
            scores = dataclasses.replace(scores, calibration=found)
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


ABOUT = "Score the boxes and maps of an output against known boxes."

command = verb(
    ABOUT,
    EvaluateConfig,
    run,
    "camlake evaluate s3://bucket/labels --truth truth.csv",
)

if __name__ == "__main__":
    main(command)
