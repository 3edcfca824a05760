"""``camlake report``: one self-contained HTML page of an output: a gallery, maps, boxes, scores, rejects."""

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.lake.records import refuse_no_output
from schemas.options.reading import ReportConfig
from schemas.url_secrets import safe_url


def run(config: ReportConfig, screen: Screen) -> None:
    """Write the page and print its URL."""
    refuse_no_output(config.out, config)
    from pipeline.outputs.page.run_report import report

    page = report(config)
    screen.result(f"report: {safe_url(page)}", page=safe_url(page))


ABOUT = "Write one HTML page: pictures to sort and filter, maps, boxes at any threshold, scores, rejects."

command = verb(
    ABOUT,
    ReportConfig,
    run,
    "camlake report out --truth truth.csv",
)

if __name__ == "__main__":
    main(command)
