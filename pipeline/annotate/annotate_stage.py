"""The annotate stage: decoded images to all that the network says of them, table by table. Ray runs it; so does a loop.

It never raises for one image: what can't be localized leaves as a row with its reason.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.arrays.calibration import Calibration
from pipeline.arrays.maps import quantize
from pipeline.arrays.rounding import rounded
from pipeline.images.resize import ResizePlan
from pipeline.models.localize.box_rules import Boxes
from pipeline.models.localize.localizer import CamRule, Localized, Localizer, Maps
from pipeline.models.localize.runtime import Runtime, resolve_precision
from pipeline.models.localize.views import View
from pipeline.models.networks.network import CamNetwork
from pipeline.storage.lake.rows import IDENTITY, nest, row_schema
from schemas.annotate import Method
from schemas.errors import ModelError
from schemas.reasons import Reason
from schemas.tables import TIMESTAMP, FeatureType

_ANSWERS = ("top1_class_id", "top1_label", "top1_prob", "n_boxes", "boxes", "heatmaps", "feature")
"""Columns of a wide row that the network fills."""

FEATURE_BITS = 11
"""Significant bits of the features of a network that ran in bf16 or fp16, which have 8 and 11 themselves.

The rest of a float32 would be noise, and a third of the whole output for MobileNet v2.
"""


@dataclass(frozen=True)
class AnnotateSpec:
    """What the network is and what it is asked for; small enough to travel with every actor."""

    load: Callable[[dict[str, Tensor]], CamNetwork]
    """Makes the network of a state dict."""
    labels: tuple[str, ...]
    image_size: int
    """Side of the square in which pictures arrive."""
    rule: CamRule
    runtime: Runtime
    outputs: tuple[str, ...]
    feature_type: FeatureType
    resize: ResizePlan
    multi_label: bool
    """Whether each class has a probability of its own."""
    calibration: Calibration | None
    """What makes ``box_score``; null without."""
    method: Method = "cam"
    """How maps are made."""
    views: tuple[View, ...] | None = None
    """What the network sees of each picture; None: the whole, once."""


class BusyClock:
    """Measures how long at least one thread was at work, which each says with ``with``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work = 0
        self._since_s = self._sum_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._count()
            self._at_work += 1

    def __exit__(self, *failure: object) -> None:
        with self._lock:
            self._count()
            self._at_work -= 1

    def lap_s(self) -> float:
        """Return the busy seconds since the last lap."""
        with self._lock:
            self._count()
            lap_s, self._sum_s = self._sum_s, 0.0
            return lap_s

    def _count(self) -> None:
        now_s = time.perf_counter()
        if self._at_work:
            self._sum_s += now_s - self._since_s
        self._since_s = now_s


class AnnotateStage:
    """Runs the network over decoded tables (DECODED) and returns wide rows (see pipeline.storage.lake.rows).

    Threads may call it side by side.
    """

    def __init__(self, spec: AnnotateSpec, state: dict[str, Tensor]) -> None:
        """Load the network once, on the device that was asked for, and compile it where asked.

        Raises ModelError where CUDA is missing or the network can't be compiled.
        """
        if spec.runtime.device == "cuda" and not torch.cuda.is_available():
            raise ModelError("--device cuda: this machine has no CUDA device; allowed here: cpu, auto")
        if spec.runtime.device == "cpu":
            torch.set_num_threads(spec.runtime.threads)
        self.spec = spec
        network = spec.load(state)
        self._localizer = Localizer(
            network, spec.rule, spec.runtime, multi_label=spec.multi_label, method=spec.method, views=spec.views
        )
        self._localizer.warm_up()
        self._exact_features = resolve_precision(spec.runtime.precision, spec.runtime.device) == "fp32"
        self._labels = pa.array(spec.labels, pa.string())
        self._schema = row_schema(network.channels, spec.feature_type)
        self.busy = BusyClock()
        """Runs while the network and its results are worked on."""

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Return one wide row for each row, in order."""
        return self.annotate(decoded)

    def annotate(self, decoded: pa.Table, pixels: Tensor | None = None) -> pa.Table:
        """Return one wide row for each row of ``decoded``, in order.

        ``pixels``: (B, S, S, 3) uint8 of the rows that are not rejected, on the network's device, in the place of the
        column's.
        """
        reasons, details = _combined(decoded["reason_code"]), _combined(decoded["detail"])
        good = np.flatnonzero(reasons.is_null())
        answers: dict[str, pa.Array] = {}
        if len(good):
            with self.busy:
                found = self._localize(decoded if len(good) == len(decoded) else decoded.take(good), pixels)
            answers = self._answers(found)
            lost = np.zeros(len(decoded), bool)
            lost[good[~found.finite]] = True
            reasons = pc.if_else(lost, str(Reason.NON_FINITE), reasons)
            details = pc.if_else(lost, "the network gave NaN or infinity for this image", details)
        stages, permanent = _kinds(reasons)
        columns = {name: decoded[name] for name in IDENTITY}
        columns |= {"decided_at": pa.repeat(pa.scalar(datetime.now(UTC), TIMESTAMP), len(decoded))}
        columns |= {"stage": stages, "reason_code": reasons, "detail": details, "permanent": permanent}
        accepted = reasons.is_null()
        columns |= {name: pc.if_else(accepted, decoded[name], None) for name in ("width_px", "height_px", "format")}
        columns |= self._spread(answers, good, accepted)
        return pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema)

    def _localize(self, decoded: pa.Table, pixels: Tensor | None) -> Localized:
        inputs = _pixels(decoded["pixels"], self.spec.image_size) if pixels is None else pixels
        sizes_hw = np.stack([decoded[name].to_numpy() for name in ("height_px", "width_px")], axis=1).astype(np.int64)
        covered = self.spec.resize.covered(sizes_hw)
        classes = decoded["classes"]
        named = None if classes.null_count == len(classes) else [ids or [] for ids in classes.to_pylist()]
        return self._localizer(inputs, sizes_hw, covered, named)

    def _answers(self, found: Localized) -> dict[str, pa.Array]:
        """Return what the network said of the good rows, a column each; boxes and heatmaps nested."""
        per_map = {
            "rank": pa.array(found.maps.rank),
            "class_id": pa.array(found.maps.class_id),
            "label": self._labels.take(pa.array(found.maps.class_id)),
        }
        n_images = len(found.finite)
        n_boxes = np.bincount(found.maps.image[found.boxes.map], minlength=n_images)
        n_maps = np.bincount(found.maps.image, minlength=n_images)
        features = found.pooled if self._exact_features else rounded(found.pooled, FEATURE_BITS)
        vectors = pa.array(features.astype(self.spec.feature_type, copy=False).reshape(-1))
        return {
            "top1_class_id": pa.array(found.top1_class_id),
            "top1_label": self._labels.take(pa.array(found.top1_class_id)),
            "top1_prob": pa.array(found.top1_prob),
            "n_boxes": pa.array(n_boxes.astype(np.int32)),
            "boxes": nest("boxes", self._box_columns(found.maps, found.boxes, per_map), n_boxes),
            "heatmaps": nest("heatmaps", per_map | _heat_columns(found.maps), n_maps),
            "feature": pa.FixedSizeListArray.from_arrays(vectors, found.pooled.shape[1]),
        }

    def _box_columns(self, maps: Maps, boxes: Boxes, per_map: dict[str, pa.Array]) -> dict[str, Any]:
        own_map = pa.array(boxes.map)
        columns: dict[str, Any] = {name: column.take(own_map) for name, column in per_map.items()}
        columns |= {"class_prob": maps.class_prob[boxes.map], "component": boxes.component}
        columns |= {"threshold": boxes.threshold, "area_frac": boxes.area_frac}
        columns |= {side: boxes.xyxy[:, index] for index, side in enumerate(("xmin", "ymin", "xmax", "ymax"))}
        calibration = self.spec.calibration
        scores = calibration.scores(columns) if calibration else pa.nulls(len(own_map), pa.float32())
        return columns | {"box_score": scores, "method": pa.repeat(self.spec.method, len(own_map))}

    def _spread(self, answers: dict[str, pa.Array], good: NDArray[np.int64], accepted: pa.Array) -> dict[str, pa.Array]:
        """Return the answers of the good rows at their places among all rows, null where a row is rejected."""
        if not answers:
            return {name: pa.nulls(len(accepted), self._schema.field(name).type) for name in _ANSWERS}
        if not accepted.false_count:
            return answers
        place = np.zeros(len(accepted), np.int64)
        place[good] = np.arange(len(good))
        index = pc.if_else(accepted, place, None)
        return {name: array.take(index) for name, array in answers.items()}


def _combined(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; ``combine_chunks`` copies even a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _pixels(column: pa.ChunkedArray, side: int) -> Tensor:
    """Return the (n, S, S, 3) uint8 of a column of large binaries, in its own memory where that is one piece."""
    binaries = _combined(column)
    offsets = np.frombuffer(binaries.buffers()[1], np.int64)[binaries.offset :][: len(binaries) + 1]
    start, end = offsets[[0, -1]].tolist()
    values = pa.Array.from_buffers(pa.uint8(), end - start, [None, binaries.buffers()[2]], offset=start)
    return from_dlpack(values).view(-1, side, side, 3)


def _kinds(reasons: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the stage and the permanence of each reason code, null for null."""
    codes = reasons.dictionary_encode()
    kinds = [Reason.of(code) for code in codes.dictionary.to_pylist()]
    stages = pa.array([str(kind.stage) for kind in kinds], pa.string())
    permanent = pa.array([kind.permanent for kind in kinds], pa.bool_())
    return stages.take(codes.indices), permanent.take(codes.indices)


def _heat_columns(maps: Maps) -> dict[str, Any]:
    """Return the columns of the quantized maps, each of the cells that its picture covers."""
    rows, columns = maps.covered[:, :1, None], maps.covered[:, 1:, None]
    height, width = maps.heat.shape[1:]
    inside = (np.arange(height)[:, None] < rows) & (np.arange(width) < columns)
    lowest = np.where(inside, maps.heat, np.inf).min(axis=(1, 2), keepdims=True)
    quantized, low, high = quantize(np.where(inside, maps.heat, lowest).astype(np.float32))
    offsets = np.concatenate([[0], np.cumsum(maps.covered.prod(axis=1))])
    return {
        "heat_h": maps.covered[:, 0],
        "heat_w": maps.covered[:, 1],
        "heat_min": low,
        "heat_max": high,
        "heat": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(quantized[inside])),
    }
