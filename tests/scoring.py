"""Outputs for the tests of evaluation, which the real code commits, and functions that run the job on them."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from jobs.evaluate import run
from jobs.terminal.console import Screen
from pipeline.outputs import reader as camlake
from pipeline.outputs.evaluate import evaluate
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import Committer, finish_run, start_run
from pipeline.storage.lake.lease import Lease
from pipeline.storage.truth.truth import read_truth
from schemas.options.config import StorageConfig
from schemas.options.reading import EvaluateConfig
from schemas.scores import Scores
from schemas.tables import network_types, written_schemas
from tests.fake_lake import CHANNELS, DATE, MODEL, START, image_id, manifest_of, version

LABELS = ["rest", "ring", "star", "cat", "dog", "owl", "a|b<c>", "x", "y", "z"]
STORAGE = StorageConfig()
TRUTH = """file,label,class_id,xmin,ymin,xmax,ymax
x/a.jpg,ring,1,35,35,55,55
b.jpg,star,2,0,0,50,100
c.jpg,cat or dog,3;4,0,0,50,50
d.jpg,owl,5,15,15,85,85
missing.jpg,owl,5,15,15,85,85
"""

BUMP = np.zeros((10, 10), np.uint8)
BUMP[4, 4] = 255
"""A map whose level set at threshold t, on 100×100 pixels, is the square of half-side 10·(1 - t) around (45, 45)."""
LEFT = np.zeros((10, 10), np.uint8)
LEFT[:, :5] = 255
"""A map whose level set at threshold t reaches from the left edge to x = 55 - 10·t."""
TWO = np.zeros((10, 10), np.uint8)
TWO[:4, :4] = TWO[5:] = 255
"""A map with two components: the smaller is [0, 0, 45 - 10·t, 45 - 10·t], the larger is the lower half."""


@dataclass
class Output:
    """The rows of an output; ``write`` commits them as a run."""

    rows: dict[Any, list[dict[str, Any]]] = field(
        default_factory=lambda: {"images": [], "boxes": [], "heatmaps": [], "quarantine": []}
    )
    settings: dict[str, Any] = field(
        default_factory=lambda: {"outputs": ["boxes", "heatmaps"], "topk": 5, "threshold": [0.2]}
    )

    def image(self, uri: str, top1: int, width: int = 100, height: int = 100) -> None:
        top = {"top1_class_id": top1, "top1_label": LABELS[top1], "top1_prob": 0.5, "n_boxes": 0, "annotated_at": START}
        shape = {"width_px": width, "height_px": height, "format": "JPEG"}
        self.rows["images"].append(version(uri, "v1") | top | shape)

    def answer(
        self, uri: str, rank: int, class_id: int, heat: np.ndarray, *boxes: tuple, threshold: float = 0.2
    ) -> None:
        kind = {"image_id": image_id(uri), "rank": rank, "class_id": class_id, "label": LABELS[class_id]}
        shape = {"heat_h": heat.shape[0], "heat_w": heat.shape[1], "heat_min": -1.0, "heat_max": 3.0}
        self.rows["heatmaps"].append(kind | shape | {"heat": heat.flatten().tolist()})
        for component, box in enumerate(boxes):
            edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) | {"area_frac": 0.1}
            cut = {"class_prob": 0.5, "component": component, "threshold": threshold, "method": "cam", "uri": uri}
            self.rows["boxes"].append(kind | edges | cut)

    def write(self, out: str, model: str = MODEL, hour: int = 6, storage: StorageConfig = STORAGE) -> str:
        """Commit the rows of the tables that the settings name, as a run that starts at ``hour``; return ``out``."""
        fs, root = connect(out, storage)
        run_id = f"20261123T{hour:02d}0000-abcdef"
        schemas = written_schemas(self.settings["outputs"], network_types(CHANNELS, "float32"))
        manifest = manifest_of(run_id, model, planned=len(self.rows["images"]))
        manifest = manifest.model_copy(update={"settings": self.settings})
        rows = {
            table: pa.Table.from_pylist([row | {"run_id": run_id} for row in self.rows[table]], schema=schema)
            for table, schema in schemas.items()
        }
        with Lease.acquire(fs, root, run_id) as lease:
            start_run(fs, root, manifest)
            Committer(out, storage, run_id, model, DATE, lease.generation, schemas).commit("000000", rows)
            finish_run(fs, root, manifest, lease.generation)
        return out


def example() -> Output:
    """Return an output of four images.

    The first is right by its first class, the second by its third class. Of the third image's two fitting classes the
    better-ranked one is wrong. The fourth image has no map.
    """
    output = Output()
    output.image("s3://b/x/a.jpg", 1)
    output.answer("s3://b/x/a.jpg", 0, 1, BUMP, (35, 35, 55, 55), (0, 0, 9, 9))
    output.image("s3://b/x/b.jpg", 9)
    output.answer("s3://b/x/b.jpg", 0, 9, TWO, (0, 0, 50, 100))
    output.answer("s3://b/x/b.jpg", 2, 2, LEFT, (0, 0, 40, 100))
    output.image("s3://b/x/c.jpg", 8)
    output.answer("s3://b/x/c.jpg", 1, 4, TWO, (50, 50, 100, 100), (0, 0, 50, 50))
    output.answer("s3://b/x/c.jpg", 7, 3, LEFT, (0, 0, 50, 50))
    output.image("s3://b/x/d.jpg", 9)
    output.answer("s3://b/x/d.jpg", 0, 9, BUMP, (15, 15, 85, 85))
    return output


def one_map(heat: np.ndarray) -> Output:
    output = Output()
    output.image("a.jpg", 1)
    output.answer("a.jpg", 0, 1, heat, (0, 0, 50, 100))
    return output


def score(output: Output, folder: Path, truth: str = TRUTH, **options: Any) -> Scores:
    (folder / "truth.csv").write_text(truth)
    with camlake.open(output.write(str(folder / "out")), model="*") as lake:
        return evaluate(lake, read_truth(str(folder / "truth.csv"), STORAGE), **options)


def job(folder: Path, **options: Any) -> str:
    """Run the job and return what it printed."""
    (folder / "truth.csv").write_text(TRUTH)
    screen = Screen()
    screen.out = Console(file=io.StringIO(), width=200)
    values = {"out": str(folder / "out"), "truth": str(folder / "truth.csv"), **options}
    run(EvaluateConfig.resolve(values), screen)
    return screen.out.file.getvalue()


def scores_of_job(folder: Path, truth: str, **options: Any) -> dict[str, Any]:
    """Run the job and return the scores.json that it wrote."""
    job(folder, truth=truth, **options)
    document: dict[str, Any] = json.loads((folder / "out/_reports/scores.json").read_text())
    return document


def figure_of(document: dict[str, Any], metric: str) -> dict[str, Any]:
    found: dict[str, Any] = next(figure for figure in document["figures"] if figure["metric"] == metric)
    return found
