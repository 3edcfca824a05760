"""``camlake view``: the gallery of the report for all images of an output, served on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseServer
from threading import Thread

from jobs.terminal.console import Screen, main, verb
from pipeline.annotate.stopping import stop_requested
from pipeline.storage.lake.records import refuse_no_output
from schemas.errors import Stopped
from schemas.options.reading import ViewConfig
from schemas.url_secrets import safe_url


def run(config: ViewConfig, screen: Screen) -> None:
    """Serve the page until Ctrl-C or SIGTERM; its URL is said on standard output."""
    refuse_no_output(config.out, config)
    from pipeline.outputs.page.live import LiveCatalog
    from pipeline.outputs.page.server import ViewServer

    screen.say(f"reading {safe_url(config.out)}")
    with (
        ViewServer(LiveCatalog(config), config.host, config.port) as server,
        serving(server),
        suppress(Stopped),
        stop_requested() as asked,
    ):
        screen.result(f"view: {server.url}", url=server.url)
        screen.say(f"shows {safe_url(config.out)} to whoever has this URL; Ctrl-C ends it")
        asked.wait()
    screen.say("view: ended")


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Answer requests in another thread during the block."""
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


ABOUT = "Serve the gallery for all images: search, any threshold, similar pictures."

command = verb(
    ABOUT,
    ViewConfig,
    run,
    "camlake view s3://bucket/labels",
)

if __name__ == "__main__":
    main(command)
