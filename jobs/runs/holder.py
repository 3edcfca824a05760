"""Who holds an output: shown, and freed with ``--unlock``."""

from typing import TYPE_CHECKING

from fsspec import AbstractFileSystem

from jobs.terminal.console import Screen
from schemas.errors import HeldError
from schemas.options.reading import RunsConfig
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.storage.lake.lease_holder import Holder


def unlock(config: RunsConfig, screen: Screen, fs: AbstractFileSystem, root: str) -> None:
    """Show who holds the output, and free it; raises HeldError for a holder that may be alive, unless ``force``."""
    from pipeline.storage.lake.layout import new_run_id
    from pipeline.storage.lake.lease import Lease
    from pipeline.storage.lake.lease_holder import newest_holder

    holder = newest_holder(fs, root)
    if holder is None or holder.released:
        screen.result(holder.sentence if holder else f"{safe_url(config.out)}: no run has ever held it", unlocked=False)
        return
    show_holder(holder, screen)
    if not holder.is_free and not config.force:
        raise HeldError(
            f"{safe_url(config.out)}: {holder.who} may be alive; --force takes the output from it all the same, and it"
            " stops at its next commit"
        )
    Lease.acquire(fs, root, new_run_id(), force=config.force).release()
    screen.result(f"{safe_url(config.out)} is free; the next run goes on where {holder.run_id} stopped", unlocked=True)


def show_holder(holder: "Holder", screen: Screen) -> None:
    """Print what is known of ``holder``."""
    facts = holder.model_dump(mode="json", include={"run_id", "host", "pid", "expires_at", "released"})
    screen.result(holder.sentence, holder=facts | {"free": holder.is_free})
