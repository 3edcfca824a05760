"""Collects the content of an output's page: the newest run, scores, pictures and rejected inputs."""

import io

from pipeline.outputs.evaluate import evaluate
from pipeline.outputs.gallery import picture_views
from pipeline.outputs.reader import open_lake
from pipeline.outputs.report import write_report
from pipeline.outputs.truth_join import run_of_model
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.truth import read_truth
from schemas.errors import StoreError
from schemas.options.reading import ReportConfig
from schemas.runs import RunManifest
from schemas.tables import TABLES
from schemas.url_secrets import safe_url

REJECTED_COLUMNS = ["uri", "stage", "reason_code", "detail", "permanent"]
REJECTED_SHOWN = 100
"""Most rejected inputs that the page lists; the table quarantine has all of them."""


def report(config: ReportConfig) -> str:
    """Write the page of one model's rows (the newest run's by default), and return the URL of the page.

    Raises StoreError where the output has no rows or the page can't be written, and UsageError for an unknown model.
    """
    page = config.page or f"{config.out.rstrip('/')}/_reports/report.html"
    truth = read_truth(config.truth, config) if config.truth else None
    with open_lake(config.out, config) as lake:
        if not lake.models:
            raise StoreError(f"{safe_url(config.out)} has no committed rows yet")
        manifest = run_of_model(lake, config.model)
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


def summary(manifest: RunManifest) -> dict[str, str | float]:
    """Return the facts about the run for the head of the page."""
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
