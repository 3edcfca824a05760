"""Collects the content of an output's page: the newest run, scores, pictures and rejected inputs."""

from collections.abc import Mapping

from pipeline.outputs.evaluate import evaluate
from pipeline.outputs.export.plans import add_plans
from pipeline.outputs.page.overview import facts
from pipeline.outputs.page.page_entries import entries_of
from pipeline.outputs.page.page_pictures import read_pictures, webp
from pipeline.outputs.page.report import Gallery, render_page
from pipeline.outputs.page.rules import cutting_rule
from pipeline.outputs.page.sample import sample
from pipeline.outputs.reader import Lake, open_lake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.query import damage_said
from pipeline.storage.lake.whole_objects import write_whole
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.truth import Truth, read_truth
from schemas.errors import RejectedImage, StoreError
from schemas.options.reading import ReportConfig
from schemas.runs import RunManifest
from schemas.url_secrets import safe_url

PAGE_BYTES = 4_000_000
"""Bytes of all pictures of a page, before base64, where that leaves each one enough."""
LEAST_BYTES, MOST_BYTES = 13_000, 60_000
"""Bytes that each picture may have, however many or few there are."""
SIDES_PX = ((60, 960), (150, 640), (501, 480))
"""Numbers of pictures, and the longest side up to each number."""


def report(config: ReportConfig) -> str:
    """Write the page of one model's rows (the newest run's by default), and return the URL of the page.

    Raises StoreError where the output has no rows or the page can't be written, and UsageError for an unknown model.
    """
    page = config.page or f"{config.out.rstrip('/')}/_reports/report.html"
    truth = read_truth(config.truth, config) if config.truth else None
    said = truth.skipped_sentence("the truth") if truth else ""
    with damage_said(safe_url(config.out)), open_lake(config.out, config) as lake:
        if not lake.models:
            raise StoreError(f"{safe_url(config.out)} has no committed rows yet")
        manifest = lake.run_of(config.model)
        model = manifest.model
        fs, path = connect(page, config)
        gallery, unread = _gallery(lake, manifest, config, truth)
        shown = facts(lake, manifest, config.out, config)
        shown["notes"] += [*([said] if said else []), *unread]
        scores = evaluate(lake, truth, model=model).rows() if truth else []
        content = render_page(**shown, gallery=gallery, scores=scores)
    with store_errors(f"--page {safe_url(page)}"):
        write_whole(fs, path, content)
    return page


def _gallery(
    lake: Lake, manifest: RunManifest, config: ReportConfig, truth: Truth | None
) -> tuple[Gallery | None, list[str]]:
    """Return the pictures of the page, None where there are none, and a sentence on those that can't be read."""
    ids = sample(lake, manifest.model, config.pictures)
    if not ids:
        return None, []
    entries = entries_of(lake.connection(), manifest.model, ids, truth)
    add_plans(lake, config.out, config)
    side_px = next(side for most, side in SIDES_PX if len(ids) <= most)
    most_bytes = min(max(PAGE_BYTES // len(ids), LEAST_BYTES), MOST_BYTES)
    read = dict(
        read_pictures(
            lake.connection(),
            manifest.model,
            ids,
            config.storage,
            side_px,
            lambda picture: webp(picture.pixels, side_px, most_bytes),
        )
    )
    pictures = {one: data for one, data in read.items() if isinstance(data, bytes)}
    labels = sorted({entry["classes"][box["class"]]["label"] for entry in entries for box in entry["boxes"]})
    rule = cutting_rule(manifest, config.out, config)
    uris = {entry["id"]: entry["uri"] for entry in entries}
    return Gallery(entries, rule, labels, len(entries), pictures), _unread(read, uris)


def _unread(read: Mapping[str, bytes | RejectedImage], uris: Mapping[str, str]) -> list[str]:
    """Return one sentence on the pictures that can't be read, or none."""
    lost = {one: reason for one, reason in read.items() if isinstance(reason, RejectedImage)}
    if not lost:
        return []
    first, reason = next(iter(sorted(lost.items())))
    return [
        f"{len(lost)} of {len(read)} pictures can't be read any more and are shown without, such as"
        f" {safe_url(uris[first])} ({reason.detail})"
    ]
