"""The annotate stage: turns tables of decoded images into tables with classes, boxes, maps and features.

Ray or a plain loop runs it. A single image never makes it raise: an image that can't be localized becomes a row with a
reason.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
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

from pipeline.arrays.calibration import Calibration, uncalibrated
from pipeline.arrays.rounding import rounded
from pipeline.images.resize import ResizePlan
from pipeline.models.localize.box_rules import Boxes
from pipeline.models.localize.feature_maps import FeatureMapCodes
from pipeline.models.localize.foreground import Foreground
from pipeline.models.localize.gpu_memory import FittingBatches
from pipeline.models.localize.localizer import CamRule, Localized, Localizer, Maps
from pipeline.models.localize.runtime import Runtime, resolve_precision
from pipeline.models.localize.views import View
from pipeline.models.networks.network import CamNetwork
from pipeline.storage.lake.rows import IDENTITY, map_columns, nest, row_schema
from schemas.columns import TIMESTAMP
from schemas.errors import ModelError
from schemas.options.annotate import Method
from schemas.options.box_rules import RIGHT_SHARE
from schemas.reasons import Reason
from schemas.tables import FeatureType, network_types

FEATURE_BITS = 11
"""Significant bits of stored features, for a network that computes in bf16 (8 bits) or fp16 (11 bits).

The other bits of a float32 would be noise, and a third of all output bytes of MobileNetV2.
"""


@dataclass(frozen=True)
class AnnotateSpec:
    """How to load the network and what it computes; small, because every actor gets a copy."""

    load: Callable[[dict[str, Tensor]], CamNetwork]
    """Builds the network from a state dict."""
    labels: tuple[str, ...]
    image_size: int
    """S, the side in pixels of the square inputs in a decoded table."""
    rule: CamRule
    runtime: Runtime
    outputs: tuple[str, ...]
    feature_type: FeatureType
    resize: ResizePlan
    multi_label: bool
    """Whether a class's probability is the sigmoid of its logit; otherwise it is the softmax over all classes."""
    calibration: Calibration | None
    """Computes ``box_score``; with None the score is the class's probability times ``right_share``."""
    method: Method = "cam"
    views: tuple[View, ...] | None = None
    """The parts of each picture that the network runs on; None: one view, the whole picture."""
    foreground: Foreground | None = None
    """The direction whose maps are fused with the class maps before boxes are cut; None: no fusion."""
    feature_map_bits: int | None = None
    """Bits of each value of the stored feature maps; None: none are stored."""

    @property
    def right_share(self) -> float:
        """Share of right boxes among the boxes of true classes."""
        return self.foreground.card.right_share if self.foreground else RIGHT_SHARE

    @property
    def every_map_has_a_box(self) -> bool:
        """Whether a map without a positive value has a box too, because maps are scaled to a maximum of 1."""
        return self.foreground is not None or self.rule.boxes.name == "auto"

    @property
    def box_method(self) -> str:
        """The value of the column ``method`` of the boxes."""
        return f"{self.method}*foreground" if self.foreground else self.method


class BusyClock:
    """Measures how long at least one thread was working; a thread works inside a ``with`` block of the clock."""

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
        """Return the busy seconds since the last call, or since the start."""
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
    """Runs the network on decoded tables (DECODED) and returns wide rows (see pipeline.storage.lake.rows).

    Several threads may use one object at the same time.
    """

    def __init__(self, spec: AnnotateSpec, state: dict[str, Tensor]) -> None:
        """Load the network with the weights ``state`` on the device of ``spec``; compile it if ``spec`` asks for it.

        Raises ModelError, which fails the run, where CUDA is missing or the network can't be compiled.
        """
        if spec.runtime.device == "cuda" and not torch.cuda.is_available():
            raise ModelError("--device cuda: this machine has no CUDA device; allowed here: cpu, auto")
        if spec.runtime.device == "cpu":
            torch.set_num_threads(spec.runtime.threads)
        self.spec = spec
        network = spec.load(state)
        self._localizer = Localizer(
            network,
            spec.rule,
            spec.runtime,
            multi_label=spec.multi_label,
            method=spec.method,
            views=spec.views,
            foreground=spec.foreground,
            feature_map_bits=spec.feature_map_bits,
        )
        with suppress(torch.OutOfMemoryError):  # The first batch finds the size that fits.
            self._localizer.warm_up()
        self._exact_features = resolve_precision(spec.runtime.precision, spec.runtime.device) == "fp32"
        self._labels = pa.array(spec.labels, pa.string())
        self._schema = row_schema(network_types(network.channels, spec.feature_type))
        self.busy = BusyClock()
        """Runs while the network runs and while its results are copied to main memory."""
        self.memory = FittingBatches()

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Return one wide row for each row of ``decoded``, in order, from one batch.

        Raises torch.OutOfMemoryError where the batch does not fit into the GPU's memory.
        """
        return self._annotate(decoded, None)

    def annotate(self, decoded: pa.Table, pixels: Tensor | None = None) -> pa.Table:
        """Return one wide row for each row of ``decoded``, in order; an image with NaN or infinity is NON_FINITE.

        ``pixels``: (B, S, S, 3) uint8 on the network's device, the inputs of the B rows that are not rejected; None
        where the column ``pixels`` of ``decoded`` holds the inputs. Rows that don't fit into the GPU's memory together
        are annotated in parts; raises CamlakeError where one image does not fit.
        """
        accepted = _combined(decoded["reason_code"]).is_null().to_numpy(zero_copy_only=False)
        before = np.concatenate([[0], np.cumsum(accepted)]).tolist()

        def part(start: int, end: int) -> pa.Table:
            own = None if pixels is None else pixels[before[start] : before[end]]
            return self._annotate(decoded.slice(start, end - start), own)

        parts = self.memory.run(len(decoded), part)
        return pa.concat_tables(parts) if parts else self._annotate(decoded, pixels)

    def _annotate(self, decoded: pa.Table, pixels: Tensor | None) -> pa.Table:
        reasons, details = _combined(decoded["reason_code"]), _combined(decoded["detail"])
        good = np.flatnonzero(reasons.is_null())
        results: dict[str, pa.Array] = {}
        if len(good):
            with self.busy:
                localized = self.localize(decoded if len(good) == len(decoded) else decoded.take(good), pixels)
            results = self._results(localized)
            non_finite = np.zeros(len(decoded), bool)
            non_finite[good[~localized.finite]] = True
            reasons = pc.if_else(non_finite, Reason.NON_FINITE, reasons)
            details = pc.if_else(non_finite, "the network gave NaN or infinity for this image", details)
        columns = {name: decoded[name] for name in IDENTITY}
        columns |= {"decided_at": pa.repeat(pa.scalar(datetime.now(UTC), TIMESTAMP), len(decoded))}
        columns |= {"reason_code": reasons, "detail": details}
        accepted = reasons.is_null()
        columns |= {name: pc.if_else(accepted, decoded[name], None) for name in ("width_px", "height_px", "format")}
        columns |= self._spread(results, good, accepted)
        missing = (one for one in self._schema if one.name not in columns)
        columns |= {one.name: pa.nulls(len(decoded), one.type) for one in missing}
        return pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema)

    def localize(self, decoded: pa.Table, pixels: Tensor | None = None) -> Localized:
        """Return the network's results for decoded images, none of them rejected; ``pixels`` as for ``annotate``."""
        inputs = [pixels] if pixels is not None else input_pixels(decoded["pixels"], self.spec.image_size)
        sizes_hw = np.stack([decoded[name].to_numpy() for name in ("height_px", "width_px")], axis=1).astype(np.int64)
        classes = decoded["classes"]
        named = None if classes.null_count == len(classes) else [ids or [] for ids in classes.to_pylist()]
        return self._localizer(inputs, sizes_hw, self.spec.resize.valid_hw(sizes_hw), named)

    def _results(self, localized: Localized) -> dict[str, pa.Array]:
        """Return the columns of the wide rows of localized images; boxes and heatmaps have a list for each image."""
        maps, boxes = localized.maps, localized.boxes
        per_map = {
            "rank": pa.array(maps.rank),
            "class_id": pa.array(maps.class_id),
            "label": self._labels.take(pa.array(maps.class_id)),
        }
        n_images = len(localized.finite)
        n_boxes = np.bincount(maps.image[boxes.map], minlength=n_images)
        n_maps = np.bincount(maps.image, minlength=n_images)
        features = localized.pooled if self._exact_features else rounded(localized.pooled, FEATURE_BITS)
        vectors = pa.array(features.astype(self.spec.feature_type, copy=False).reshape(-1))
        return {
            "top1_class_id": pa.array(localized.top1_class_id),
            "top1_label": self._labels.take(pa.array(localized.top1_class_id)),
            "top1_prob": pa.array(localized.top1_prob),
            "n_boxes": pa.array(n_boxes.astype(np.int32)),
            "boxes": nest("boxes", self._box_columns(maps, boxes, per_map), n_boxes),
            "heatmaps": nest("heatmaps", per_map | map_columns("heat", maps.heat, maps.valid_hw), n_maps),
            "feature": pa.FixedSizeListArray.from_arrays(vectors, features.shape[1]),
            **(map_columns("fg", localized.figure.maps, localized.figure.valid_hw) if localized.figure else {}),
            **(_stored_codes(localized.codes, features.shape[1]) if localized.codes else {}),
        }

    def _box_columns(self, maps: Maps, boxes: Boxes, per_map: dict[str, pa.Array]) -> dict[str, Any]:
        map_row = pa.array(boxes.map)
        columns: dict[str, Any] = {name: column.take(map_row) for name, column in per_map.items()}
        columns |= {"class_prob": maps.class_prob[boxes.map], "component": boxes.component}
        columns |= {"threshold": boxes.threshold, "area_frac": boxes.area_frac}
        columns |= {side: boxes.xyxy[:, index] for index, side in enumerate(("xmin", "ymin", "xmax", "ymax"))}
        calibration = self.spec.calibration
        scores = calibration.scores(columns) if calibration else uncalibrated(columns, self.spec.right_share)
        return columns | {"box_score": scores, "method": pa.repeat(self.spec.box_method, len(map_row))}

    def _spread(self, results: dict[str, pa.Array], good: NDArray[np.int64], accepted: pa.Array) -> dict[str, pa.Array]:
        """Return ``results``, which has the rows numbered ``good``, for all rows, with null for rejected rows."""
        if not results or not accepted.false_count:
            return results
        position = np.zeros(len(accepted), np.int64)
        position[good] = np.arange(len(good))
        index = pc.if_else(accepted, position, None)
        return {name: array.take(index) for name, array in results.items()}


def _combined(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; ``combine_chunks`` copies even a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def input_pixels(column: pa.ChunkedArray, side: int) -> list[Tensor]:
    """Return the inputs in a column of large binaries: (n, S, S, 3) uint8 for each chunk, without a copy."""
    return [_pixels_of(chunk, side) for chunk in column.chunks if len(chunk)]


def _pixels_of(binaries: pa.LargeBinaryArray, side: int) -> Tensor:
    offsets = np.frombuffer(binaries.buffers()[1], np.int64)[binaries.offset :][: len(binaries) + 1]
    start, end = offsets[[0, -1]].tolist()
    values = pa.Array.from_buffers(pa.uint8(), end - start, [None, binaries.buffers()[2]], offset=start)
    return from_dlpack(values).view(-1, side, side, 3)


def _stored_codes(codes: FeatureMapCodes, channels: int) -> dict[str, Any]:
    """Return the columns of the table feature_maps."""
    images, n_bytes = codes.packed.shape
    offsets = pa.py_buffer(np.arange(images + 1, dtype=np.int64) * n_bytes)
    data = pa.py_buffer(np.ascontiguousarray(codes.packed))
    numbers = {"map_h": codes.map_hw[0], "map_w": codes.map_hw[1], "channels": channels, "bits": codes.bits}
    columns: dict[str, Any] = {name: pa.repeat(pa.scalar(one, pa.int32()), images) for name, one in numbers.items()}
    return columns | {"codes": pa.Array.from_buffers(pa.large_binary(), images, [None, offsets, data])}
