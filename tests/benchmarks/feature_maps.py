"""Measure the table feature_maps: its fidelity for heads fitted later, its bytes, and the speed of localize.

Photographs with truth are annotated once. Heads for groups of classes and for single classes are fitted on the labels
of half of the photographs; localize makes their maps and boxes on the other half from the stored tables. The true maps
come from the network's own float32 feature maps of the same pixels. The speed of localize is that on a copy of the
tables with many images, planning and commits included; that of annotate excludes its start.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from numpy.typing import NDArray

from jobs.benchmark.machine import Figures, spread
from jobs.localize import localize
from jobs.terminal.console import Screen, main
from pipeline import camlake
from pipeline.annotate.model import load_model
from pipeline.annotate.reporter import Advance, Reporter
from pipeline.arrays.metrics import paired_iou
from pipeline.graph.annotate.driver import annotate
from pipeline.images.decode import DecodeLimits, decode
from pipeline.images.resize import map_to_image_xyxy
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.weights.head_file import Head, head_bytes
from pipeline.outputs.heads.features import open_features
from pipeline.outputs.heads.head_jobs import fit
from pipeline.storage.truth.image_labels import read_image_labels
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig, option
from schemas.options.localize import LocalizeConfig
from tests.benchmarks.command import TruthConfig, benchmark, resolved_precision
from tests.benchmarks.label_free import in_first_half
from tests.benchmarks.multiplied import multiply

GROUPS = {"animal": range(398), "dog": range(151, 269), "insect": range(300, 327), "thing": range(398, 1000)}
"""Groups of the classes of ImageNet-1k, by their indices."""
RULE = {"box_rule": "paper", "threshold": 0.2, "foreground": "off"}
_BATCH = 16


class FeatureMapsConfig(TruthConfig):
    """The options of the measurement."""

    bits: int = option(3, "bits of a value", "Options", ge=2, le=4)
    copies: int = option(16_384, "images of the tables on which localize is timed; 0: not timed", "Options", ge=0)


class TimedReporter:
    """A reporter that keeps when how many images were done, and how much CPU time they had taken."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.done: list[tuple[float, float, int]] = []

    def say(self, text: str, **facts: Any) -> None:
        """Report a step."""
        self._reporter.say(text, **facts)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Keep the progress of the block."""

        def advance(done: int, rejected: int = 0) -> None:
            self.done.append((time.perf_counter(), cpu_seconds(), done))

        yield advance

    @property
    def rates(self) -> tuple[float, float]:
        """Images a second, and images a CPU second, between the first table that was done and the last one."""
        (start, cpu_start, first), (end, cpu_end, last) = self.done[0], self.done[-1]
        return (last - first) / (end - start), (last - first) / (cpu_end - cpu_start)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that it started and that live."""
    here = psutil.Process()
    times = [one.cpu_times() for one in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def measure(config: FeatureMapsConfig, screen: Screen) -> Figures:
    """Return fidelity and bytes on the photographs, and with ``copies`` the speeds."""
    if not (config.images and config.truth and config.weights):
        raise UsageError("feature_maps needs --images, --truth and --weights")
    with TemporaryDirectory() as folder:
        out = Path(folder) / "labels"
        job = annotate_config(config, config.images, out, precision="fp32", jpeg_scaling="off")
        manifest = annotate(job, screen)
        size = sum(file.size_bytes for file in manifest.files if file.table == "feature_maps")
        figures: Figures = {
            "images": manifest.counts.annotated,
            "bits": config.bits,
            "feature_maps: bytes an image": round(size / manifest.counts.annotated, 1),
        }
        head = fitted_head(config, out, Path(folder), screen)
        figures |= fidelity(job, head, out, Path(folder), screen)
        if config.copies:
            one = replace(
                head,
                card=replace(head.card, classes=head.card.classes[:1]),
                weight=head.weight[:1],
                bias=head.bias[:1],
                threshold=head.threshold[:1],
            )
            (Path(folder) / "one.safetensors").write_bytes(head_bytes(one))
            figures |= speeds(config, Path(folder), screen)
    return figures


def annotate_config(config: FeatureMapsConfig, images: str, out: Path, **options: Any) -> AnnotateConfig:
    """Return the configuration of annotate with feature maps."""
    values = {"input": images, "out": str(out), "model": config.model, "weights": config.weights, "engine": "local"}
    values |= {"precision": resolved_precision(config), "outputs": "boxes,heatmaps,features,feature_maps,foreground"}
    values |= options
    bits = {"feature_map_bits": config.bits} if "feature_maps" in values["outputs"] else {}
    return AnnotateConfig.resolve(values | bits)


def fitted_head(config: FeatureMapsConfig, out: Path, folder: Path, screen: Screen) -> Head:
    """Return a head for the groups and the classes of which half of the photographs has two images or more."""
    truth = pd.read_csv(str(config.truth), dtype=str, keep_default_na=False)
    labels: dict[str, set[str]] = {}
    for row in truth.itertuples():
        ids = [int(part) for part in row.imagenet_classes.split(";") if part]
        found = labels.setdefault(Path(row.file).name, set())
        found |= {name for name, group in GROUPS.items() if any(one in group for one in ids)} | {row.class_name}
    rows = [(file, ";".join(sorted(found))) for file, found in labels.items() if in_first_half(file)]
    pd.DataFrame(rows, columns=["file", "label"]).to_csv(folder / "labels.csv", index=False)
    read = read_image_labels(str(folder / "labels.csv"), StorageConfig())
    head = fit(open_features(str(out), StorageConfig(), None), read, "logistic", screen)
    (folder / "head.safetensors").write_bytes(head_bytes(head))
    return head


@torch.no_grad()
def fidelity(job: AnnotateConfig, head: Head, out: Path, folder: Path, screen: Screen) -> Figures:
    """Return how well maps and boxes from the tables agree with those of the network on the other half."""
    options = {"labels": str(out), "out": str(folder / "heads"), "head": str(folder / "head.safetensors"), **RULE}
    localize(LocalizeConfig.resolve({**options, "topk": len(head.card.classes)}), screen)
    model = load_model(job)
    with camlake.open(str(folder / "heads")) as lake:
        images = lake.pandas("images")
        heatmaps = {(row["image_id"], row["class_id"]): row for row in lake.arrow("heatmaps").to_pylist()}
        boxes = {(row["image_id"], row["class_id"]): row for row in lake.arrow("boxes").to_pylist()}
    with camlake.open(str(out)) as lake:
        stored = {row["image_id"]: row["feature"] for row in lake.arrow("features").to_pylist()}
    images = images[[not in_first_half(uri.rpartition("/")[2]) for uri in images["uri"]]]
    alike, overlap, ranks, off = [], [], [], 0.0
    for start in range(0, len(images), _BATCH):
        part = images.iloc[start : start + _BATCH]
        inputs = [model.resize.apply(pixels_of(uri)) for uri in part["uri"]]
        features = model.network.eval().features(torch.from_numpy(np.stack(inputs))).numpy()
        for row, maps in zip(part.itertuples(), features, strict=True):
            off = max(off, float(np.abs(maps.mean((1, 2)) - stored[row.image_id]).max()))
            true = np.einsum("ck,khw->chw", head.weight, maps)
            for class_id, one in enumerate(true):
                found = heatmaps[row.image_id, class_id]
                ranks.append(found["rank"])
                alike.append(np.corrcoef(camlake.heatmap(found).ravel(), one.ravel())[0, 1])
                overlap.append(box_iou(one, boxes.get((row.image_id, class_id)), row.height_px, row.width_px))
    rank, boxed = np.array(ranks), np.array(overlap)
    figures: Figures = {"images of the other half": len(images), "heads": len(head.card.classes)}
    figures["largest difference of pooled vectors"] = off
    for name, own in (("all heads", rank >= 0), ("the most probable head", rank == 0)):
        known = boxed[own & ~np.isnan(boxed)]
        figures |= {
            f"{name}: correlation of maps, median": float(np.median(np.array(alike)[own])),
            f"{name}: correlation of maps, 5th percentile": float(np.quantile(np.array(alike)[own], 0.05)),
            f"{name}: IoU of boxes, median": float(np.median(known)),
            f"{name}: IoU of boxes, 5th percentile": float(np.quantile(known, 0.05)),
            f"{name}: pairs with a box on either side": len(known),
        }
    return figures


def pixels_of(uri: str) -> NDArray[np.uint8]:
    """Return the pixels of a photograph, decoded as annotate decodes it."""
    limits = DecodeLimits(max_pixels=10**8, max_bytes=10**8, timeout_s=30)
    return decode(Path(uri.removeprefix("file://")).read_bytes(), limits).pixels


def box_iou(true: NDArray[np.float32], found: dict[str, Any] | None, height: int, width: int) -> float:
    """Return the IoU of the box of the true map and the stored one; 0 where one is missing, NaN where both are."""
    cut = BoxRule("paper", (float(RULE["threshold"]),), 0.0).cut(torch.from_numpy(true[None].astype(np.float32)))
    if not len(cut.boxes_xyxy) or found is None:
        return 0.0 if len(cut.boxes_xyxy) or found is not None else np.nan
    box = map_to_image_xyxy(cut.boxes_xyxy.numpy(), true.shape, (height, width))
    other = np.array([[found[side] for side in ("xmin", "ymin", "xmax", "ymax")]])
    return float(paired_iou(box, other)[0])


def speeds(config: FeatureMapsConfig, folder: Path, screen: Screen) -> Figures:
    """Return images/s of annotate with and without feature maps, and of localize, in turns."""
    photographs = sorted(Path(str(config.images)).iterdir())
    many = folder / "many"
    many.mkdir()
    for number in range(config.count):
        source = photographs[number % len(photographs)]
        (many / f"{number:06d}{source.suffix}").symlink_to(source.resolve())
    big = folder / "big"
    multiply(folder / "labels", big, config.copies)
    names = ("annotate", "annotate without", "localize", "unfused")
    rates: dict[str, list[float]] = {name: [] for name in names}
    by_cpu: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(config.repeats):
        for name, with_maps in (("annotate", True), ("annotate without", False)):
            out = folder / f"many-{name}-{repeat}"
            rate, cpu_rate = annotate_rates(config, many, out, with_maps, screen)
            rates[name].append(rate)
            by_cpu[name].append(cpu_rate)
        for name, foreground in (("localize", "auto"), ("unfused", "off")):
            values = {"labels": str(big), "out": str(folder / f"{name}-{repeat}"), "foreground": foreground}
            started, cpu_started = time.perf_counter(), time.process_time()
            localize(LocalizeConfig.resolve({**values, "head": str(folder / "one.safetensors")}), screen)
            rates[name].append(config.copies / (time.perf_counter() - started))
            by_cpu[name].append(config.copies / (time.process_time() - cpu_started))
        screen.say(f"images/s: {', '.join(f'{name} {values[-1]:.1f}' for name, values in rates.items())}")
    medians, cpu = ({name: float(np.median(values)) for name, values in of.items()} for of in (rates, by_cpu))
    return {
        "precision of annotate": resolved_precision(config),
        "annotate with feature_maps: images/s": spread(rates["annotate"]),
        "annotate without feature_maps: images/s": spread(rates["annotate without"]),
        "localize one head, fused with figure/ground maps: images/s": spread(rates["localize"]),
        "localize one head, not fused: images/s": spread(rates["unfused"]),
        "localize against annotate, fused": medians["localize"] / medians["annotate"],
        "localize against annotate, not fused": medians["unfused"] / medians["annotate"],
        "added time of annotate": medians["annotate without"] / medians["annotate"] - 1,
        "annotate with feature_maps: images a CPU second": spread(by_cpu["annotate"]),
        "localize one head, fused: images a CPU second": spread(by_cpu["localize"]),
        "localize one head, not fused: images a CPU second": spread(by_cpu["unfused"]),
        "localize against annotate by CPU time, fused": cpu["localize"] / cpu["annotate"],
        "localize against annotate by CPU time, not fused": cpu["unfused"] / cpu["annotate"],
        "added CPU time of annotate": cpu["annotate without"] / cpu["annotate"] - 1,
    }


def annotate_rates(
    config: FeatureMapsConfig, images: Path, out: Path, with_maps: bool, screen: Screen
) -> tuple[float, float]:
    """Return images/s and images a CPU second of annotate without its start, with or without feature maps."""
    options: dict[str, Any] = {"outputs": "boxes,heatmaps,features,foreground"}
    job = annotate_config(config, str(images), out, **({} if with_maps else options))
    timed = TimedReporter(screen)
    annotate(job, timed)
    return timed.rates


command = benchmark(
    "feature_maps",
    "Measure feature_maps: fidelity for heads fitted later, bytes, and the speed of localize against annotate.",
    FeatureMapsConfig,
    measure,
    "--model mobilenet_v2 --images PHOTOS --weights FILE --truth annotations.csv",
)

if __name__ == "__main__":
    main(command)
