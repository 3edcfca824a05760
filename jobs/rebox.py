"""``camlake rebox``: cuts new boxes from the stored maps of an output, without network, GPU and images."""

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.filesystems import connect, refuse_unwritable
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.rebox import ReboxConfig
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url


def run(config: ReboxConfig, screen: Screen) -> None:
    """Cut the boxes of all images that the new output lacks, and print how many there are."""
    refuse_no_output(config.labels, config)
    refuse_unwritable("--out", config.out, config)
    from pipeline.outputs.box_summary import summary_lines

    manifest = rebox(config, screen)
    counts = manifest.counts
    screen.result(
        f"{counts.boxes} boxes of {counts.annotated} images, {counts.rejected} rejections carried over, "
        f"{counts.already_done} done before; run {manifest.run_id}",
        **counts.model_dump(),
    )
    for line in summary_lines(*connect(config.out, config), manifest):
        screen.result(line)
    screen.result(f"query:   SELECT label, count(*) FROM '{safe_url(config.out)}/boxes/**/*.parquet' GROUP BY label")


def rebox(config: ReboxConfig, screen: Screen) -> RunManifest:
    """Cut and commit the boxes, and return the run's manifest."""
    from pipeline.outputs.rebox import open_rebox

    with open_rebox(config, screen.say) as opened:
        counts = opened.run.manifest.counts
        screen.say(f"run {opened.run.manifest.run_id}", run_id=opened.run.manifest.run_id)
        screen.say(f"{counts.listed} inputs in {opened.source.url}, {counts.already_done} done, {counts.planned} to do")
        if opened.left_out_of_classes:
            screen.say(opened.left_out_of_classes)
        if opened.source.says_without_figures:
            screen.say(opened.source.says_without_figures)
        if opened.run.calibration is None:
            screen.say(f"no calibration of this rule: box_score is class_prob × {opened.source.right_share:g}")
        with screen.progress("reboxing", counts.planned) as advance:
            lines = opened.cut(advance)
        for line in lines:
            screen.say(line)
        return opened.run.finish()


ABOUT = "Cut new boxes from an output's stored maps, without network, GPU and images."

command = verb(
    ABOUT,
    ReboxConfig,
    run,
    "camlake rebox s3://bucket/labels --out s3://bucket/labels-30 --threshold 0.3",
)

if __name__ == "__main__":
    main(command)
