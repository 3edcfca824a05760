"""``camlake publish``: registers an output's files as a table of an Iceberg catalog."""

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.publish import PublishConfig


def run(config: PublishConfig, screen: Screen) -> None:
    """Bring the Iceberg table up to date and print its new snapshots."""
    refuse_no_output(config.out, config, reads_only=False)
    from pipeline.outputs.publish.iceberg import publish

    done = publish(config, screen.say)
    for one in done:
        screen.result(
            f"{config.table}: {one.rows} rows after run {one.run_id}; {one.added} files added, {one.removed} removed",
            table=config.table,
            run_id=one.run_id,
            rows=one.rows,
            added=one.added,
            removed=one.removed,
        )
    if not done:
        screen.result(f"{config.table}: nothing to do, the table has the current rows", table=config.table)


ABOUT = "Register the files as an Iceberg table; each later run becomes one snapshot."

command = verb(
    ABOUT,
    PublishConfig,
    run,
    "camlake publish s3://bucket/labels --catalog prod --table labels.boxes",
)

if __name__ == "__main__":
    main(command)
