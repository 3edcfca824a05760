"""``camlake demo``: renders pictures with known boxes, annotates, scores and shows them; no internet, no GPU."""

import time
from pathlib import Path

from jobs.terminal.console import Screen, main, verb
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import JobConfig, StorageConfig, option
from schemas.options.reading import ReportConfig

BROKEN = 2
"""Number of damaged files among the pictures, so that quarantine has rows."""
SHEET_PICTURES = 6
"""Number of pictures in ``sheet.jpg``, in two columns."""


class DemoConfig(JobConfig):
    """The options of ``camlake demo``."""

    folder: str = option("camlake-demo", "where pictures, tables and the page go", "Options")
    images: int = option(120, "pictures to render, beside two broken files", "Options", ge=10, le=10_000)
    seed: int = option(0, "seed of the pictures", "Options", ge=0)


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


def render(config: DemoConfig, folder: Path, screen: Screen) -> Path:
    """Render the pictures into ``folder`` unless it has them, and return the path of the file of true boxes.

    Raises UsageError where ``folder`` holds another demo or files of another kind.
    """
    from pipeline.images.synthetic.scenes import write_corpus

    marker, wanted = folder / "demo.txt", f"images={config.images} seed={config.seed}\n"
    truth = folder / "pictures" / "truth.csv"
    if marker.exists() and marker.read_text() != wanted:
        other = marker.read_text().strip()
        raise UsageError(f"--folder {config.folder!r} holds another demo ({other}); name a new one")
    if marker.exists() and truth.exists():
        return truth
    if not marker.exists() and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--folder {config.folder!r} is not empty and holds no demo; name a new one")
    screen.say(f"rendering {config.images} pictures and {BROKEN} broken files into {folder / 'pictures'}")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(wanted)
    unfinished = folder / "pictures.unfinished"
    write_corpus(unfinished, config.images, config.seed, broken=BROKEN)
    unfinished.rename(folder / "pictures")
    return truth


ABOUT = "Render pictures with known boxes, annotate them, score the boxes and write a page."

command = verb(
    "demo",
    ABOUT,
    DemoConfig,
    run,
    "camlake demo",
)

if __name__ == "__main__":
    main(command)
