"""The annotate stage: decoded images to all that the network says of them, table by table. Ray runs it; so does a loop.

It never raises for one image: what can't be localized leaves as a row with its reason.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.arrays.maps import quantize
from pipeline.images.resize import ResizePlan
from pipeline.models.localizer import CamRule, Localized, Localizer
from pipeline.models.network import CamNetwork
from pipeline.models.runtime import Runtime
from pipeline.storage.rows import IDENTITY, nest, row_schema
from schemas.errors import ModelError
from schemas.reasons import Reason
from schemas.tables import FeatureType

METHOD = "cam"


@dataclass(frozen=True)
class AnnotateSpec:
    """What the network is and what it is asked for; small enough to travel with every actor."""

    load: Callable[[dict[str, Tensor]], CamNetwork]
    """Makes the network of a state dict."""
    labels: tuple[str, ...]
    image_size: int
    rule: CamRule
    runtime: Runtime
    outputs: tuple[str, ...]
    feature_type: FeatureType
    resize: ResizePlan


class AnnotateStage:
    """Runs the network over decoded tables (DECODED) and returns wide rows (see pipeline.storage.rows)."""

    def __init__(self, spec: AnnotateSpec, state: dict[str, Tensor]) -> None:
        """Load the network once, on the device that was asked for; raises ModelError where CUDA is missing."""
        if spec.runtime.device == "cuda" and not torch.cuda.is_available():
            raise ModelError("--device cuda: this machine has no CUDA device; allowed here: cpu, auto")
        if spec.runtime.device == "cpu":
            torch.set_num_threads(spec.runtime.threads)
        self.spec = spec
        network = spec.load(state)
        self._localizer = Localizer(network, spec.rule, spec.runtime)
        self._labels = np.array(spec.labels, dtype=object)
        self._schema = row_schema(network.channels, spec.feature_type)
        self.busy_s = 0.0
        """Seconds spent in the network and on its results so far."""

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Return one wide row for each row, in order."""
        reasons, details = decoded["reason_code"].to_pylist(), decoded["detail"].to_pylist()
        good = np.array([row for row, reason in enumerate(reasons) if reason is None], np.int64)
        answers: dict[str, Any] = {}
        if len(good):
            started = time.perf_counter()
            found = self._localize(decoded.take(good))
            self.busy_s += time.perf_counter() - started
            for row in good[~found.finite]:
                reasons[row], details[row] = str(Reason.NON_FINITE), "the network gave NaN or infinity for this image"
            answers = self._answers(found)
        decided = [Reason.of(reason) if reason else None for reason in reasons]
        columns = {name: decoded[name] for name in IDENTITY}
        columns |= {
            "decided_at": [datetime.now(UTC)] * len(decided),
            "stage": [str(reason.stage) if reason else None for reason in decided],
            "reason_code": reasons,
            "detail": details,
            "permanent": [reason.permanent if reason else None for reason in decided],
        }
        columns |= {name: _null_where(decoded[name], reasons) for name in ("width_px", "height_px", "format")}
        columns |= _spread(answers, good, reasons, self._schema)
        return pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema)

    def _localize(self, decoded: pa.Table) -> Localized:
        side = self.spec.image_size
        buffers = decoded["pixels"].combine_chunks().buffers()
        pixels = np.frombuffer(buffers[2], np.uint8, count=len(decoded) * side * side * 3)
        sizes = list(zip(decoded["height_px"].to_pylist(), decoded["width_px"].to_pylist(), strict=True))
        covered = [self.spec.resize.covered(*size) for size in sizes]
        classes = [ids or [] for ids in decoded["classes"].to_pylist()]
        return self._localizer(pixels.reshape(-1, side, side, 3).copy(), sizes, covered, classes)

    def _answers(self, found: Localized) -> dict[str, Any]:
        """Return what the network said of the good rows, a column each; boxes and heatmaps nested."""
        n_images = len(found.finite)
        maps, boxes = found.maps, found.boxes
        labels = self._labels[maps.class_id]
        per_map = {"rank": maps.rank, "class_id": maps.class_id, "label": labels}
        n_boxes = np.bincount(maps.image[boxes.map], minlength=n_images)
        answers: dict[str, Any] = {
            "top1_class_id": found.top1_class_id,
            "top1_label": self._labels[found.top1_class_id],
            "top1_prob": found.top1_prob,
            "n_boxes": n_boxes.astype(np.int32),
            "boxes": nest(
                "boxes",
                {name: column[boxes.map] for name, column in per_map.items()}
                | {"class_prob": maps.class_prob[boxes.map], "component": boxes.component}
                | {"threshold": boxes.threshold, "area_frac": boxes.area_frac}
                | {side: boxes.xyxy[:, index] for index, side in enumerate(("xmin", "ymin", "xmax", "ymax"))}
                | {"box_score": [None] * len(boxes.map), "method": [METHOD] * len(boxes.map)},
                n_boxes,
            ),
            "heatmaps": self._heatmaps(found, per_map),
        }
        vectors = found.pooled.astype(self.spec.feature_type).reshape(-1)
        answers["feature"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), found.pooled.shape[1])
        return answers

    def _heatmaps(self, found: Localized, per_map: dict[str, Any]) -> pa.Array:
        """Return the nested column of heatmaps; maps of one shape are quantized together."""
        heat = found.maps.heat
        shapes = np.array([one.shape for one in heat], np.int32).reshape(-1, 2)
        quantized: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(heat)
        low, high = np.empty(len(heat), np.float32), np.empty(len(heat), np.float32)
        for shape in np.unique(shapes, axis=0):
            rows = np.flatnonzero((shapes == shape).all(axis=1))
            values, low[rows], high[rows] = quantize(np.stack([heat[row] for row in rows]))
            for row, value in zip(rows, values, strict=True):
                quantized[row] = value.reshape(-1)
        columns = {**per_map, "heat_h": shapes[:, 0], "heat_w": shapes[:, 1], "heat_min": low, "heat_max": high}
        return nest(
            "heatmaps", {**columns, "heat": quantized}, np.bincount(found.maps.image, minlength=len(found.finite))
        )


def _null_where(column: pa.ChunkedArray, reasons: Sequence[str | None]) -> pa.ChunkedArray:
    return pa.compute.if_else(pa.array([reason is None for reason in reasons]), column, None)


def _spread(
    answers: dict[str, Any], good: NDArray[np.int64], reasons: Sequence[str | None], schema: pa.Schema
) -> dict[str, pa.Array]:
    """Return the answers of the good rows at their places among all rows, null where a row is rejected."""
    place = np.full(len(reasons), -1, np.int64)
    place[good] = np.arange(len(good))
    rejected = np.array([reason is not None for reason in reasons])
    index = pa.array(np.where(rejected, 0, place), mask=rejected)
    names = ["top1_class_id", "top1_label", "top1_prob", "n_boxes", "boxes", "heatmaps", "feature"]
    if not answers:
        return {name: pa.nulls(len(reasons), schema.field(name).type) for name in names}
    columns = {name: answers[name] for name in names}
    arrays = {
        name: value if isinstance(value, pa.Array) else pa.array(value, schema.field(name).type)
        for name, value in columns.items()
    }
    return {name: array.take(index) for name, array in arrays.items()}
