"""Annotate and evaluate photographs with true boxes; also measure how scaled JPEG decoding changes the scores.

The default is float32, as for published scores; ``--precision bf16`` shows how much the scores lose with bf16.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import cv2

from jobs.benchmark.machine import Figures
from jobs.benchmark.steady_rate import SilentReporter
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.graph.annotate.driver import annotate
from pipeline.outputs import reader as camlake
from pipeline.outputs.evaluate import evaluate
from pipeline.storage.truth.truth import Truth, read_truth
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig, JpegScaling
from schemas.options.config import StorageConfig
from schemas.scores import TITLES
from tests.benchmarks.command import TruthConfig, benchmark

LARGER = 4
"""Factor by which each side of the photographs is enlarged, so that decoding can scale them down again."""
SCALINGS: dict[JpegScaling, str] = {"off": "decoded whole", "auto": "decoded scaled"}


def measure(config: TruthConfig, reporter: Reporter) -> Figures:
    """Return every score of ``camlake annotate`` on the photographs as they are and on the enlarged photographs."""
    if not (config.images and config.truth):
        raise UsageError("reference needs --images and --truth")
    truth = read_truth(config.truth, StorageConfig())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures = _scores(config, config.images, folder / "out", truth, "auto", reporter)
        enlarge(Path(config.images), folder / "enlarged")
        larger = replace(truth, boxes_xyxy=truth.boxes_xyxy * LARGER)
        for scaling, how in SCALINGS.items():
            scores = _scores(config, str(folder / "enlarged"), folder / how, larger, scaling, reporter)
            figures |= {f"sides × {LARGER}, {how}: {metric}": value for metric, value in scores.items()}
    return figures


def _scores(
    config: TruthConfig, images: str, out: Path, truth: Truth, scaling: JpegScaling, reporter: Reporter
) -> Figures:
    job = AnnotateConfig(
        input=images,
        out=str(out),
        model=config.model,
        weights=config.weights or "DEFAULT",
        classes=config.truth,
        precision="fp32" if config.precision == "auto" else config.precision,
        jpeg_scaling=scaling,
        box_rule="paper",
    )
    manifest = annotate(job, SilentReporter())
    reporter.say(f"{manifest.counts.annotated} images annotated")
    with camlake.open(str(out)) as lake:
        scores = evaluate(lake, truth)
    facts: Figures = {"images": manifest.counts.annotated, "precision": job.precision}
    for figure in scores.figures:
        facts[TITLES[figure.metric]] = figure.value
        if figure.threshold is not None:
            facts[f"{TITLES[figure.metric]}: threshold"] = figure.threshold
    return facts


def enlarge(photographs: Path, folder: Path) -> None:
    """Write the photographs, ``LARGER`` times as wide and high, as JPEG files with the same names below ``folder``.

    The files are in a folder with the same name as ``photographs``, because truth files may contain that name.
    """
    for path in photographs.rglob("*"):
        pixels = cv2.imread(str(path)) if path.is_file() else None
        if pixels is not None:
            large = cv2.resize(pixels, None, fx=LARGER, fy=LARGER, interpolation=cv2.INTER_CUBIC)
            target = folder / path.relative_to(photographs.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode(".jpg", large)[1].tobytes())


command = benchmark(
    "reference",
    "Score photographs with true boxes, as they are and enlarged; --precision auto is fp32.",
    TruthConfig,
    measure,
    "--model mobilenet_v2 --images PHOTOS --weights FILE --truth annotations.csv",
)

if __name__ == "__main__":
    main(command)
