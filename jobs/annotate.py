"""``camlake annotate``: annotate images with classes, class activation maps, boxes and features.

What happens to an image, and where in ``pipeline/``:

- list: ``storage/inputs/listing.py``
- plan: ``storage/lake/plan/planning.py``
- read: ``annotate/image_reader.py``
- decode: ``annotate/decode_stage.py``
- annotate: ``annotate/annotate_stage.py``, whose maps are a product in ``models/networks/heads.py``
- commit: ``annotate/commit_stage.py``

``graph/annotate/driver.py`` brings them together, on Ray or in ``annotate/local/``.
"""

from jobs.terminal.console import Screen, main, verb
from jobs.terminal.notify import notifying
from pipeline.storage.filesystems import connect
from schemas.options.annotate import AnnotateConfig
from schemas.runs import say_kinds
from schemas.url_secrets import safe_url


def run(config: AnnotateConfig, screen: Screen) -> None:
    """Annotate the inputs that are not done yet.

    Raises RejectedShareError where more inputs were rejected than ``max_rejected`` allows.
    """
    if config.dry_run:
        from jobs.terminal.dry_run import print_estimate

        print_estimate(config, screen)
        return
    from pipeline.graph.annotate.driver import annotate, refuse_rejected_share
    from pipeline.outputs.box_summary import summary_lines

    out = safe_url(config.out)
    with notifying(config.notify, out, screen) as notice:
        manifest = annotate(config, screen)
        counts, summary = manifest.counts, manifest.summary
        result = (
            f"{counts.annotated} images annotated, {counts.boxes} boxes, {sum(counts.refused.values())} rejected, "
            f"{counts.already_done} done before; run {manifest.run_id}"
        )
        notice.finished(manifest, f"camlake annotate into {out}: {result}")
        screen.result(result, **counts.model_dump(), summary=summary.model_dump() if summary else None)
        if counts.refused:
            screen.result(f"rejected: {say_kinds(counts.refused, len(counts.refused))}")
        if summary:
            screen.result(summary.sentence)
        if counts.maps_without_box:
            screen.result(f"{counts.maps_without_box} maps have no positive value, hence no box")
        for line in summary_lines(*connect(config.out, config), manifest):
            screen.result(line)
        screen.result(f"query:   SELECT top1_label, count(*) FROM '{out}/images/**/*.parquet' GROUP BY top1_label")
        refuse_rejected_share(manifest, config)


ABOUT = "Annotate images with classes, class activation maps, boxes and features."

command = verb(
    ABOUT,
    AnnotateConfig,
    run,
    "camlake annotate s3://bucket/photos --out s3://bucket/labels --model resnet50",
)

if __name__ == "__main__":
    main(command)
