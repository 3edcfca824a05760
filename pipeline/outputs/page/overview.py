"""What the head of a page says: the numbers of an output, its classes, scores and box sizes, and what to know of it."""

from typing import Any

import pyarrow as pa

from pipeline.outputs.box_summary import summarize_boxes
from pipeline.outputs.page.report import Overview
from pipeline.outputs.reader import Lake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.records import committed_files
from schemas.options.config import StorageConfig
from schemas.runs import TOMBSTONES, RunManifest
from schemas.tables import TABLES
from schemas.url_secrets import safe_url

CLASSES_SHOWN = 12
STEPS = 20
"""Columns of the histograms."""


REJECTED_COLUMNS = ["uri", "stage", "reason_code", "detail", "permanent"]
REJECTED_SHOWN = 100
"""Most rejected inputs that a page lists; the table quarantine has all of them."""


def facts(lake: Lake, manifest: RunManifest, out: str, storage: StorageConfig) -> dict[str, Any]:
    """Return the arguments of ``render_page`` that tell of a model's rows, all but the pictures and the scores."""
    model = manifest.model
    return {
        "title": model,
        "counts": counts(lake, manifest),
        "summary": summary(manifest),
        "overview": overview(lake, model),
        "tables": {table: len(lake.relation(table, model)) for table in TABLES},
        "rejected": _rejected(lake, model).to_pylist(),
        "notes": notes(lake, manifest, out, storage),
        "out": safe_url(out),
    }


def _rejected(lake: Lake, model: str) -> pa.Table:
    rows = lake.arrow("quarantine", REJECTED_COLUMNS, model=model)
    return rows.sort_by([("reason_code", "ascending"), ("uri", "ascending")]).slice(0, REJECTED_SHOWN)


def overview(lake: Lake, model: str) -> Overview:
    """Return the classes, scores and sizes of the model's current boxes."""
    of_model = {"model": model}
    by_class = "SELECT label, count(*) AS n FROM boxes WHERE model = $model GROUP BY label ORDER BY n DESC, label"
    classes = lake.sql(by_class, of_model).fetchall()
    ((scored,),) = lake.sql("SELECT count(box_score) > 0 FROM boxes WHERE model = $model", of_model).fetchall()
    return Overview(
        boxes=sum(n for _, n in classes),
        classes=classes[:CLASSES_SHOWN],
        n_classes=len(classes),
        scores=_histogram(lake, "box_score" if scored else "class_prob", model),
        scored=scored,
        areas=_histogram(lake, "area_frac", model),
    )


def _histogram(lake: Lake, column: str, model: str) -> list[int]:
    """Return the numbers of boxes in STEPS equal steps of ``column`` from 0 to 1; a box without a value counts none."""
    query = (
        f"SELECT least(floor({column} * {STEPS}), {STEPS - 1})::INT AS step, count(*) FROM boxes"
        f" WHERE model = $model AND {column} IS NOT NULL GROUP BY step"
    )
    found = dict(lake.sql(query, {"model": model}).fetchall())
    return [found.get(step, 0) for step in range(STEPS)]


def counts(lake: Lake, manifest: RunManifest) -> dict[str, str | float]:
    """Return the numbers of the model's current images and boxes, of its rejected inputs by reason, and the speed."""
    model = manifest.model
    query = "SELECT reason_code, count(*) FROM quarantine WHERE model = $model GROUP BY 1 ORDER BY 2 DESC, 1"
    reasons = lake.sql(query, {"model": model}).fetchall()
    rejected = {reason: inputs for reason, inputs in reasons if reason not in TOMBSTONES}
    by_reason = ", ".join(f"{inputs} {reason}" for reason, inputs in rejected.items())
    found: dict[str, str | float] = {
        "images": len(lake.relation("images", model)),
        "boxes": len(lake.relation("boxes", model)),
        "rejected": f"{sum(rejected.values())}: {by_reason}" if rejected else 0,
    }
    if manifest.ended_at and manifest.counts.annotated:
        seconds = (manifest.ended_at - manifest.started_at).total_seconds()
        found |= {"images/s": round(manifest.counts.annotated / seconds, 1)} if seconds > 0 else {}
    return found


def notes(lake: Lake, manifest: RunManifest, out: str, storage: StorageConfig) -> list[str]:
    """Return what to know before the boxes are used: how useful they are, what would help, and what was skipped.

    The boxes are the model's current ones, of all runs; what was skipped is what the last run's listing found.
    """
    files = committed_files([run for run in lake.runs if run.model == manifest.model])
    boxes = summarize_boxes(*connect(out, storage, anonymous=storage.anonymous), files)
    found = [manifest.counts.skipped_sentence, manifest.counts.duplicates_sentence]
    if boxes:
        found = [boxes.sentence, boxes.advice(manifest.settings.get("foreground", "off") != "off"), *found]
    return [note for note in found if note]


def summary(manifest: RunManifest) -> dict[str, str | float]:
    """Return the facts about the run for the head of the page."""
    lineage = manifest.lineage
    return {
        "input": str(manifest.config["input"]),
        "weights": lineage.weights,
        "run": manifest.run_id,
        "date": manifest.date,
        "status": manifest.status,
        "camlake": lineage.camlake_version,
    }
