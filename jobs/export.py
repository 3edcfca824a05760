"""``camlake export``: writes an output's boxes as COCO, YOLO, VOC and other datasets."""

from jobs.terminal.console import Screen, main, verb
from pipeline.outputs.export.export_formats import format_names
from pipeline.storage.filesystems import refuse_unwritable
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.config import required
from schemas.options.export import ExportConfig
from schemas.url_secrets import safe_url


class ExportOptions(ExportConfig):
    """The options of ``camlake export``, with the formats that there are."""

    to: str = required(f"format: {', '.join(format_names())}", flag=True)


def run(config: ExportConfig, screen: Screen) -> None:
    """Write the dataset and say what it holds; raises RejectedShareError where too many pictures can't be read."""
    refuse_no_output(config.out, config)
    refuse_unwritable("DEST", config.dest, config)
    from pipeline.outputs.export.export_output import open_export, refuse_left_out
    from pipeline.outputs.export.export_pictures import LEFT_OUT
    from pipeline.outputs.export.writer import image_mode
    from pipeline.outputs.reader import open_lake
    from pipeline.storage.lake.query import damage_said

    image_mode(config.to, config)  # Wrong options are said before the output is read.
    with damage_said(safe_url(config.out)), open_lake(config.out, config) as lake:
        opened = open_export(lake, config, screen.say)
        screen.say(
            f"{opened.boxes} boxes of {len(opened.job.classes.chosen)} classes in {opened.images} images;"
            f" pictures: {opened.job.images}"
        )
        for note in opened.notes:
            screen.say(f"note: {note}")
        with screen.progress("exporting", opened.images) as advance:
            log = opened.run(advance)
    if opened.without_mask:
        screen.say(f"{opened.without_mask} boxes have no mask: no stored map, or no pixel's centre inside")
    if log.count:
        screen.say(
            f"{log.count} pictures are left out, such as {log.examples[0]}; all are in {LEFT_OUT}",
            left_out=log.count,
        )
    if log.turned:
        screen.say(
            f"{log.turned} pictures are stored turned: their readers must apply the EXIF orientation, because boxes"
            " are of the upright picture"
        )
    written = ", ".join(f"{name} {one.images} images, {one.boxes} boxes" for name, one in opened.written.items())
    screen.result(
        f"{config.to} in {opened.dest.url}: {written}",
        dest=opened.dest.url,
        splits={name: one._asdict() for name, one in opened.written.items()},
    )
    refuse_left_out(opened, log)


ABOUT = "Write the boxes as a dataset: COCO, YOLO, VOC, Hugging Face, Label Studio, CVAT, WebDataset or CSV."

command = verb(
    ABOUT,
    ExportOptions,
    run,
    "camlake export s3://bucket/labels dataset --to yolo --min-score 0.5 --split train=.8,val=.2",
)

if __name__ == "__main__":
    main(command)
