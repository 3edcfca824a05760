"""``camlake runs``: every run of an output, the one in progress, and who holds the output."""

from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.filesystems import connect
from schemas.errors import HeldError
from schemas.options.reading import RunsConfig
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.storage.lake.lease_holder import Holder


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
        _show(holder, screen)


def unlock(config: RunsConfig, screen: Screen, fs: AbstractFileSystem, root: str) -> None:
    """Show who holds the output, and free it; raises HeldError for a holder that may be alive, unless ``force``."""
    from pipeline.storage.lake.layout import new_run_id
    from pipeline.storage.lake.lease import Lease
    from pipeline.storage.lake.lease_holder import newest_holder

    holder = newest_holder(fs, root)
    if holder is None or holder.released:
        screen.result(holder.sentence if holder else f"{safe_url(config.out)}: no run has ever held it", unlocked=False)
        return
    _show(holder, screen)
    if not holder.is_free and not config.force:
        raise HeldError(
            f"{safe_url(config.out)}: {holder.who} may be alive; --force takes the output from it all the same, and it"
            " stops at its next commit"
        )
    Lease.acquire(fs, root, new_run_id(), force=config.force).release()
    screen.result(f"{safe_url(config.out)} is free; the next run goes on where {holder.run_id} stopped", unlocked=True)


def _watch(screen: Screen, fs: AbstractFileSystem, root: str) -> None:
    from pipeline.outputs.runs.run_watch import watch_run

    with screen.status() as show:
        watched = watch_run(fs, root, show)
    if watched is None:
        screen.say("no run is in progress")


def _show(holder: "Holder", screen: Screen) -> None:
    facts = holder.model_dump(mode="json", include={"run_id", "host", "pid", "expires_at", "released"})
    screen.result(holder.sentence, holder=facts | {"free": holder.is_free})


ABOUT = "List the runs of an output, follow the one in progress, and free an output that a dead run holds."

command = verb(
    "runs",
    ABOUT,
    RunsConfig,
    run,
    "camlake runs s3://bucket/labels --watch",
)

if __name__ == "__main__":
    main(command)
