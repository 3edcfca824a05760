"""The decode stage: encoded images to the network's input, table by table. Ray runs it; so does a plain loop.

It never raises for one image: what can't be decoded leaves as a row with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.images.decode import DecodedImage, DecodeLimits, Decoder
from pipeline.images.resize import ResizePlan
from pipeline.storage.rows import IDENTITY
from schemas.errors import RejectedImage
from schemas.tables import PLAN


@dataclass(frozen=True)
class DecodeSpec:
    """How images are decoded and brought to the network's input."""

    limits: DecodeLimits
    resize: ResizePlan


DECODED = pa.schema(
    [
        *[PLAN.field(name) for name in (*IDENTITY, "classes", "reason_code", "detail")],
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("pixels", pa.large_binary()),
    ]
)
"""A decoded input: pixels are S·S·3 bytes of RGB, empty where the row is rejected."""


class DecodeStage:
    """Decodes the encoded bytes of a table (pipeline.graph.source.FETCHED) to the network's input (DECODED)."""

    def __init__(self, spec: DecodeSpec, threads: int = 1) -> None:
        self._resize = spec.resize
        self._decoder = Decoder(spec.limits, threads)

    def __call__(self, fetched: pa.Table) -> pa.Table:
        """Return one row for each row, in order."""
        reasons, details = fetched["reason_code"].to_pylist(), fetched["detail"].to_pylist()
        blobs = fetched["data"].to_pylist()
        present = [row for row, reason in enumerate(reasons) if reason is None]
        side = self._resize.image_size
        pixels = np.empty((len(present), side, side, 3), np.uint8)
        sizes = np.zeros((len(reasons), 2), np.int32)
        formats: list[str | None] = [None] * len(reasons)
        kept: list[int] = []
        results = self._decoder.map([blobs[row] for row in present], self._resized)
        for row, result in zip(present, results, strict=True):
            if isinstance(result, RejectedImage):
                reasons[row], details[row] = str(result.reason), result.detail
                continue
            pixels[len(kept)], sizes[row], formats[row] = result
            kept.append(row)
        columns = {name: fetched[name] for name in (*IDENTITY, "classes")}
        columns |= {"reason_code": reasons, "detail": details, "format": formats}
        columns |= {"width_px": sizes[:, 1], "height_px": sizes[:, 0]}
        columns |= {"pixels": _binary_rows(pixels[: len(kept)], kept, len(reasons))}
        return pa.table({name: columns[name] for name in DECODED.names}, schema=DECODED)

    def _resized(self, image: DecodedImage) -> tuple[NDArray[np.uint8], tuple[int, int], str]:
        return self._resize.apply(image.pixels), image.pixels.shape[:2], image.format


def _binary_rows(values: NDArray[np.uint8], rows: Sequence[int], n_rows: int) -> pa.Array:
    """Return n_rows binaries without copying: row rows[i] holds the bytes of values[i], the others are empty."""
    lengths = np.zeros(n_rows, np.int64)
    lengths[list(rows)] = values[0].size if len(values) else 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), n_rows, buffers)
