"""``camlake compact``: merges the small files of an output and drops the rows that no longer count."""

from datetime import UTC, datetime, timedelta

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.compact import CompactConfig, seconds_of
from schemas.url_secrets import safe_url


def run(config: CompactConfig, screen: Screen) -> None:
    """Compact the output and print what was done to each model's rows."""
    refuse_no_output(config.out, config, reads_only=False)
    from pipeline.storage.lake.compaction.compact import Wanted, compact
    from pipeline.storage.lake.compaction.dropped import Expiry

    age = config.expire_older_than
    before = datetime.now(UTC) - timedelta(seconds=seconds_of(age)) if age is not None else None
    wanted = Wanted(config.file_mb * 10**6, config.grace_s, Expiry(frozenset(config.expire_model), before))
    done = compact(*connect(config.out, config), wanted, screen.say, config.wait_s)
    for one in done:
        if one.waits_until:
            screen.result(
                f"{one.model}: left as it is; the files that an earlier compaction replaced go with the first run after"
                f" {one.waits_until:%Y-%m-%d %H:%M:%S} UTC",
                model=one.model,
                waits_until=one.waits_until.isoformat(),
            )
            continue
        screen.result(
            f"{one.model}: {one.files_before} files of {one.bytes_before / 1e6:.1f} MB are {one.files_after} of"
            f" {one.bytes_after / 1e6:.1f} MB; rows of {one.dropped} images and rejects were dropped",
            model=one.model,
            files_before=one.files_before,
            files_after=one.files_after,
            bytes_before=one.bytes_before,
            bytes_after=one.bytes_after,
            dropped=one.dropped,
        )
    if any(one.replaced for one in done) and config.grace_s:
        screen.result(f"the replaced files go with the first run on {safe_url(config.out)} after {config.grace}")


ABOUT = "Merge small files and drop superseded rows; replaced files go after a grace period."

command = verb(
    ABOUT,
    CompactConfig,
    run,
    "camlake compact s3://bucket/labels --expire-older-than 365d",
)

if __name__ == "__main__":
    main(command)
