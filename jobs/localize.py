"""``camlake localize``: maps and boxes of a head's classes from stored feature maps, without network and images."""

from collections.abc import Sequence
from contextlib import ExitStack

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.filesystems import connect, refuse_unwritable
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.localize import LocalizeConfig
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url


def run(config: LocalizeConfig, screen: Screen) -> None:
    """Localize the classes of the head on all images that the new output lacks, and print how many there are."""
    refuse_no_output(config.labels, config)
    refuse_unwritable("--out", config.out, config)
    from pipeline.outputs.box_summary import summary_lines

    manifest = localize(config, screen)
    counts = manifest.counts
    screen.result(
        f"{counts.boxes} boxes of {counts.annotated} images, {counts.rejected} rejections carried over, "
        f"{counts.already_done} done before; run {manifest.run_id}",
        **counts.model_dump(),
    )
    for line in summary_lines(*connect(config.out, config), manifest):
        screen.result(line)
    out = safe_url(config.out)
    screen.result(f"query:   SELECT uri, top1_prob FROM '{out}/images/**/*.parquet' ORDER BY top1_prob DESC")


def localize(config: LocalizeConfig, screen: Screen) -> RunManifest:
    """Make and commit maps and boxes, and return the run's manifest."""
    from pipeline.graph.ray_environment import asks_for_cluster
    from pipeline.outputs.heads.localize import open_localize

    on_ray = config.engine == "ray" or (config.engine == "auto" and asks_for_cluster(config.address))
    with ExitStack() as stack:

        def prepare(works: Sequence[object]) -> None:
            if works and on_ray:
                from pipeline.graph.cluster import ray_cluster

                screen.say("connecting to Ray" if asks_for_cluster(config.address) else "starting Ray")
                stack.enter_context(ray_cluster(config.address))

        opened = stack.enter_context(open_localize(config, screen.say, prepare))
        counts, classes = opened.run.manifest.counts, opened.head.card.classes
        screen.say(f"run {opened.run.manifest.run_id}", run_id=opened.run.manifest.run_id)
        screen.say(f"{counts.listed} inputs in {opened.source.url}, {counts.already_done} done, {counts.planned} to do")
        screen.say(f"{len(classes)} classes of {opened.head.card.model}, as {opened.run.manifest.model}")
        if opened.source.says_without_figures:
            screen.say(opened.source.says_without_figures)
        if opened.run.calibration is None:
            screen.say(
                f"no calibration of this head: box_score is class_prob × {opened.source.right_share:g}, an assumption"
            )
        with screen.progress("localizing", counts.planned) as advance:
            if opened.works and on_ray:
                from pipeline.graph.localize_on_ray import work_on_ray

                work_on_ray(opened, screen.say, advance)
            else:
                opened.work(advance)
        return opened.run.finish()


ABOUT = "Map and box the classes of a head on an output's stored feature maps, without network and images."

command = verb(
    ABOUT,
    LocalizeConfig,
    run,
    "camlake localize s3://bucket/labels --head mirror-in-lake.safetensors --out s3://bucket/mirrors",
)

if __name__ == "__main__":
    main(command)
