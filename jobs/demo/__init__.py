"""``camlake demo``: renders pictures with known boxes, annotates, scores and shows them; no internet, no GPU."""

import time
from pathlib import Path

from jobs.demo.demo_pictures import DemoConfig, render
from jobs.terminal.console import Screen, verb
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.options.reading import ReportConfig

SHEET_PICTURES = 6
"""Number of pictures in ``sheet.jpg``, in two columns."""


def run(config: DemoConfig, screen: Screen) -> None:
    """Render the pictures, annotate them, score the boxes and write the page.

    The last three lines name the files that were written, the page and a command that queries the tables.
    """
    import cv2

    from pipeline.graph.annotate.driver import annotate
    from pipeline.models.networks.demo_network import DEMO
    from pipeline.outputs.drawing import contact_sheet
    from pipeline.outputs.evaluate import evaluate
    from pipeline.outputs.page.picture_views import picture_views
    from pipeline.outputs.page.run_report import report
    from pipeline.outputs.reader import open_lake
    from pipeline.outputs.score_files import write_scores
    from pipeline.storage.truth.truth import read_truth

    started = time.monotonic()
    folder = Path(config.folder)
    truth = render(config, folder, screen)
    out, pictures, storage = str(folder / "labels"), str(folder / "pictures" / "images"), StorageConfig()
    annotate(AnnotateConfig(input=pictures, out=out, model=DEMO, classes=str(truth), max_rejected=1.0), screen)
    with open_lake(out, storage) as lake:
        true_boxes = read_truth(str(truth), storage)
        scores = evaluate(lake, true_boxes)
        rows_of = {table: len(lake.relation(table)) for table in ("images", "boxes", "quarantine")}
        views = picture_views(lake, out, storage, scores.model, SHEET_PICTURES, true_boxes)
    sheet = contact_sheet(views, columns=2, width_px=960)
    cv2.imwrite(str(folder / "sheet.jpg"), sheet[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    rows = scores.rows()
    screen.table(f"{scores.model} on {scores.images} pictures", list(rows[0]), [list(row.values()) for row in rows])
    write_scores(scores, f"{out}/_reports", storage)
    page = report(ReportConfig(out=out, truth=str(truth), page=str(folder / "report.html")))
    screen.say(f"done in {time.monotonic() - started:.0f} s")
    screen.result(
        f"written: {out} (Parquet: {rows_of['images']} images, {rows_of['boxes']} boxes, "
        f"{rows_of['quarantine']} rejected)",
        out=out,
    )
    screen.result(f"look:    {page}", page=page)
    screen.result(
        f"query:   .venv/bin/python -c \"import camlake; print(camlake.open('{out}')"
        ".sql('SELECT label, count(*) AS boxes, avg(area_frac) AS area FROM boxes WHERE rank = 0 GROUP BY label'))\""
    )


ABOUT = "Render pictures with known boxes, annotate them, score the boxes and write a page."

command = verb(
    ABOUT,
    DemoConfig,
    run,
    "camlake demo",
)
