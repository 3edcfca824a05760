"""The scores of a set of photographs with true boxes: annotate, then evaluate.

In float32, because published scores are; with ``--precision bf16`` the same scores show what that costs.
"""

import tempfile
from pathlib import Path

from jobs.annotate import annotate
from jobs.console import Screen
from jobs.suites.common import Figures, Watch
from pipeline import camlake
from pipeline.evaluation import evaluate
from pipeline.storage.truth import read_truth
from schemas.annotate import AnnotateConfig
from schemas.benchmark import BenchmarkConfig
from schemas.config import StorageConfig
from schemas.errors import UsageError


def measure(config: BenchmarkConfig, screen: Screen) -> Figures:
    """Return every score of the output that ``camlake annotate`` makes of the photographs."""
    if not (config.images and config.truth):
        raise UsageError("the suite reference needs --images and --truth")
    with tempfile.TemporaryDirectory() as temporary:
        out = str(Path(temporary, "out"))
        job = AnnotateConfig(
            input=config.images,
            out=out,
            model=config.model,
            weights=config.weights or "DEFAULT",
            classes=config.truth,
            precision="fp32" if config.precision == "auto" else config.precision,
        )
        manifest = annotate(job, Watch())
        screen.say(f"{manifest.counts.annotated} images annotated")
        with camlake.open(out) as lake:
            scores = evaluate(lake, read_truth(config.truth, StorageConfig()))
    facts = {"images": manifest.counts.annotated, "precision": job.precision}
    return facts | {str(row["metric"]): row["value"] for row in scores.rows()}
