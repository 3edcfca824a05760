"""``camlake runs``: every run of an output, the one in progress, and who holds the output."""

from fsspec import AbstractFileSystem

from jobs.runs.holder import show_holder, unlock
from jobs.terminal.console import Screen, verb
from pipeline.storage.filesystems import connect
from schemas.options.reading import RunsConfig
from schemas.url_secrets import safe_url


def run(config: RunsConfig, screen: Screen) -> None:
    """List the runs; with ``watch`` follow the one in progress first, with ``unlock`` free the output."""
    from pipeline.outputs.runs.run_list import COLUMNS, list_runs, table_of

    fs, root = connect(config.out, config)
    if config.unlock:
        unlock(config, screen, fs, root)
        return
    if config.watch:
        _watch(screen, fs, root)
    rows, holder = list_runs(fs, root)
    shown = rows[-config.last :] if config.last else rows
    if screen.json:
        for row in shown:
            screen.result(f"run {row.run.run_id}: {row.state}", **row.facts)
    else:
        screen.table(safe_url(config.out), COLUMNS, table_of(shown))
    if holder:
        show_holder(holder, screen)


def _watch(screen: Screen, fs: AbstractFileSystem, root: str) -> None:
    from pipeline.outputs.runs.run_watch import watch_run

    with screen.status() as show:
        watched = watch_run(fs, root, show)
    if watched is None:
        screen.say("no run is in progress")


ABOUT = "List the runs of an output, follow the one in progress, and free an output that a dead run holds."

command = verb(
    ABOUT,
    RunsConfig,
    run,
    "camlake runs s3://bucket/labels --watch",
)
