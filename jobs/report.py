"""``camlake report``: one self-contained HTML page of an output: pictures, maps, boxes, scores, rejects."""

import io

from jobs.console import Screen, main, verb
from pipeline.outputs import reader as camlake
from pipeline.outputs.evaluate import evaluate
from pipeline.outputs.gallery import picture_views
from pipeline.outputs.reader import Lake
from pipeline.outputs.report import write_report
from pipeline.storage.filesystems import connect, safe_url, store_errors
from pipeline.storage.lake.layout import write_whole
from pipeline.storage.truth.truth import read_truth
from schemas.errors import StoreError, UsageError
from schemas.reading import ReportConfig
from schemas.runs import RunManifest
from schemas.tables import TABLES

REJECTED_COLUMNS = ["uri", "stage", "reason_code", "detail", "permanent"]
REJECTED_SHOWN = 100
"""Rejected inputs that the page lists; the table has them all."""


def run(config: ReportConfig, screen: Screen) -> None:
    """Write the page and say where it is."""
    page = report(config)
    screen.result(f"report: {safe_url(page)}", page=safe_url(page))


def report(config: ReportConfig) -> str:
    """Write the page of one model's rows and return where."""
    page = config.page or f"{config.out.rstrip('/')}/_reports/report.html"
    truth = read_truth(config.truth, config) if config.truth else None
    with camlake.open(
        config.out, endpoint_url=config.endpoint_url, profile=config.profile, anonymous=config.anonymous
    ) as lake:
        manifest = newest_run(lake, config)
        model = manifest.model
        fs, path = connect(page, config)
        document = io.BytesIO()
        write_report(
            document,
            f"camlake: {model}",
            summary(manifest),
            evaluate(lake, truth, model=model).rows() if truth else [],
            picture_views(lake, config.out, config, model, config.pictures, truth),
            {table: len(lake.relation(table, model)) for table in TABLES},
            lake.arrow("quarantine", REJECTED_COLUMNS, model=model).slice(0, REJECTED_SHOWN).to_pylist(),
            out=safe_url(config.out),
        )
    with store_errors(f"--page {safe_url(page)}"):
        write_whole(fs, path, document.getvalue())
    return page


def newest_run(lake: Lake, config: ReportConfig) -> RunManifest:
    """Return the newest run with rows of the wanted model; raises UsageError where there is none."""
    runs = [run for run in lake.runs if run.files and config.model in (None, run.model)]
    if not runs:
        if not lake.models:
            raise StoreError(f"{safe_url(config.out)} has no committed rows yet")
        raise UsageError(f"--model {config.model}: {safe_url(config.out)} has {', '.join(lake.models)}")
    return runs[-1]


def summary(manifest: RunManifest) -> dict[str, str | float]:
    """Return the facts of the run that head the page."""
    lineage = manifest.lineage
    return {
        "model": manifest.model,
        "weights": lineage.weights,
        "run": manifest.run_id,
        "date": manifest.date,
        "status": manifest.status,
        "camlake": lineage.camlake_version,
        "input": str(manifest.config["input"]),
    }


ABOUT = "Write one self-contained HTML page with pictures, heatmaps, boxes, scores and rejects."

command = verb(
    "report",
    ABOUT,
    ReportConfig,
    run,
    "camlake report out --truth truth.csv",
)

if __name__ == "__main__":
    main(command)
