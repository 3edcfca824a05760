"""``camlake neighbours``: the nearest neighbours of an image and near duplicates, by the cosine of stored features."""

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.neighbours import NeighboursConfig
from schemas.url_secrets import safe_url

_SHOWN = 20
"""Pairs of near duplicates that are printed."""


def run(config: NeighboursConfig, screen: Screen) -> None:
    """Find the images, print the first, and write them all where the user names a table."""
    refuse_no_output(config.out, config)
    from pathlib import PurePosixPath

    from pipeline.outputs.heads.features import open_features
    from pipeline.outputs.heads.neighbours import near_duplicates, nearest, table_bytes
    from pipeline.storage.filesystems import connect
    from pipeline.storage.lake.whole_objects import write_whole

    source = open_features(config.out, config, config.model)
    if config.of is not None:
        found = nearest(source, config.of, config.count)
        rows = [[one["cosine"], one["uri"]] for one in found.to_pylist()]
        screen.table(f"nearest to {config.of} in {source.where}", ["cosine", "uri"], rows)
    else:
        found = near_duplicates(source, config.least, screen, index=config.index)
        rows = [[one["group"], one["cosine"], one["uri"], one["other_uri"]] for one in found[:_SHOWN].to_pylist()]
        screen.table(
            f"the first near duplicates in {source.where}", ["group", "cosine", "uri", "its near duplicate"], rows
        )
        groups = len(found["group"].unique())
        screen.result(f"{len(found)} pairs in {groups} groups", pairs=len(found), groups=groups)
    if config.table:
        content = table_bytes(found, PurePosixPath(config.table).suffix)
        write_whole(*connect(config.table, config), content)
        screen.result(f"{safe_url(config.table)}: {len(found)} rows", rows=len(found))


ABOUT = "Find the nearest neighbours of an image, or all near duplicates, by the cosine of stored features."

command = verb(
    ABOUT,
    NeighboursConfig,
    run,
    "camlake neighbours s3://bucket/labels --duplicates --table duplicates.parquet",
)

if __name__ == "__main__":
    main(command)
