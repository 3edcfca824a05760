"""``camlake view``: the gallery of the report for all images of an output, served on this machine."""

from jobs.terminal.console import Screen, main, verb
from schemas.options.reading import ViewConfig
from schemas.url_secrets import safe_url


def run(config: ViewConfig, screen: Screen) -> None:
    """Serve the page until Ctrl-C; the first line is its URL."""
    from pipeline.outputs.page.live import LiveCatalog
    from pipeline.outputs.page.server import ViewServer

    with ViewServer(LiveCatalog(config), config.host, config.port) as server:
        screen.result(f"view: {server.url}", url=server.url)
        screen.say(f"shows {safe_url(config.out)} to whoever has this URL; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            screen.say("view: ended")


ABOUT = "Serve the gallery for all images: search, any threshold, similar pictures."

command = verb(
    "view",
    ABOUT,
    ViewConfig,
    run,
    "camlake view s3://bucket/labels",
)

if __name__ == "__main__":
    main(command)
