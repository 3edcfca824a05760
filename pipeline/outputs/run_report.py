"""Collects the content of an output's page: the newest run, scores, pictures and rejected inputs."""

import io

from pipeline.outputs.box_summary import summarize_boxes
from pipeline.outputs.evaluate import evaluate
from pipeline.outputs.gallery import picture_views
from pipeline.outputs.reader import Lake, open_lake
from pipeline.outputs.report import write_report
from pipeline.outputs.truth_join import run_of_model
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.records import committed_files
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.truth import read_truth
from schemas.errors import StoreError
from schemas.options.reading import ReportConfig
from schemas.runs import TOMBSTONES, RunManifest
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
    said = truth.skipped_sentence("the truth") if truth else ""
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
            summary(manifest) | _counts(lake, model),
            evaluate(lake, truth, model=model).rows() if truth else [],
            picture_views(lake, config.out, config, model, config.pictures, truth),
            {table: len(lake.relation(table, model)) for table in TABLES},
            lake.arrow("quarantine", REJECTED_COLUMNS, model=model).slice(0, REJECTED_SHOWN).to_pylist(),
            out=safe_url(config.out),
            notes=[*_notes(lake, manifest, config), *([said] if said else [])],
        )
    with store_errors(f"--page {safe_url(page)}"):
        write_whole(fs, path, document.getvalue())
    return page


def _counts(lake: Lake, model: str) -> dict[str, str | float]:
    """Return the numbers of the model's current images and boxes, and of its rejected inputs by reason."""
    query = "SELECT reason_code, count(*) FROM quarantine WHERE model = $model GROUP BY 1 ORDER BY 2 DESC, 1"
    reasons = lake.sql(query, {"model": model}).fetchall()
    rejected = {reason: inputs for reason, inputs in reasons if reason not in TOMBSTONES}
    by_reason = ", ".join(f"{inputs} {reason}" for reason, inputs in rejected.items())
    return {
        "images": len(lake.relation("images", model)),
        "boxes": len(lake.relation("boxes", model)),
        "rejected": f"{sum(rejected.values())}: {by_reason}" if rejected else 0,
    }


def _notes(lake: Lake, manifest: RunManifest, config: ReportConfig) -> list[str]:
    """Return what to know before the boxes are used: how useful they are, what would help, and what was skipped.

    The boxes are the model's current ones, of all runs; what was skipped is what the last run's listing found.
    """
    files = committed_files([run for run in lake.runs if run.model == manifest.model])
    fs, root = connect(config.out, config)
    boxes = summarize_boxes(fs, root, files)
    notes = [manifest.counts.skipped_sentence]
    if boxes:
        notes = [boxes.sentence, boxes.advice(manifest.settings.get("foreground", "off") != "off"), *notes]
    return [note for note in notes if note]


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
