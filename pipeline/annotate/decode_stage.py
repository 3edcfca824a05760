"""The decode stage: turns tables of encoded images into tables of the network's inputs.

Ray or a plain loop runs it. A single image never makes it raise: an image that can't be decoded becomes a row with a
reason. This module does not import torch, which would cost every decoding worker seconds and hundreds of megabytes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.crash_isolation import Attempts, CrashIsolation
from pipeline.images.decode import DecodedImage, DecodeLimits
from pipeline.images.decode_pool import DecodePool
from pipeline.images.resize import ResizePlan
from pipeline.storage.lake.rows import IDENTITY
from schemas.errors import RejectedImage
from schemas.options.annotate import Alpha, JpegScaling
from schemas.tables import PLAN


@dataclass(frozen=True)
class DecodeSpec:
    """How images are decoded and resized to the network's input."""

    limits: DecodeLimits
    resize: ResizePlan
    jpeg_scaling: JpegScaling = "auto"
    alpha: Alpha = "white"
    """How transparent pixels are converted; see ``rgb8``."""


DECODED = pa.schema(
    [
        *[PLAN.field(name) for name in (*IDENTITY, "classes", "reason_code", "detail")],
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("pixels", pa.large_binary()),
    ]
)
"""The schema of decoded images: ``pixels`` has S·S·3 bytes of RGB, and no bytes where the row is rejected."""

Original = tuple[tuple[int, int], str]
"""(height, width) in pixels of an upright original, and the name of its format."""


class DecodeStage:
    """Decodes tables of encoded images (pipeline.annotate.image_reader.FETCHED) to the network's inputs (DECODED)."""

    def __init__(self, spec: DecodeSpec, threads: int = 1) -> None:
        """``threads``: the number of images that are decoded at the same time."""
        self._resize = spec.resize
        least_hw = spec.resize.least_hw if spec.jpeg_scaling == "auto" else None
        self._decoder = DecodePool(spec.limits, threads, least_hw, spec.alpha)

    def __call__(self, fetched: pa.Table) -> pa.Table:
        """Return one row (DECODED) for each row of ``fetched`` (FETCHED), in order."""
        present = present_rows(fetched)
        results, pixels = self.decode([fetched["data"][row].as_py() for row in present])
        kept = [row for row, result in zip(present, results, strict=True) if not isinstance(result, RejectedImage)]
        return decoded_table(fetched, present, results, binary_rows(pixels, kept, len(fetched)))

    def decode(self, blobs: Sequence[bytes | None]) -> tuple[list[Original | RejectedImage], NDArray[np.uint8]]:
        """Return the original or the rejection of each blob, and the inputs (n, S, S, 3) uint8 of the n good blobs.

        The threads resize into the rows of one array. If an image is rejected, the good rows are copied, because a
        thread that ran out of time may still write to its row.
        """
        side = self._resize.image_size
        inputs = np.empty((len(blobs), side, side, 3), np.uint8)

        def resized(index: int, image: DecodedImage) -> Original:
            self._resize.apply(image.pixels, image.size_hw, inputs[index])
            return image.size_hw, image.format

        results = self._decoder.map(blobs, resized)
        good = np.array([not isinstance(result, RejectedImage) for result in results], bool)
        return results, inputs if good.all() else inputs[good]


def decode_in_task(spec: DecodeSpec, attempts: Attempts, fetched: pa.Table) -> pa.Table:
    """Return the decoded table of ``fetched``; Ray tasks call this function, and a process keeps its DecodeStage."""
    return CrashIsolation(attempts).run(fetched, _stage(spec))


@functools.cache
def _stage(spec: DecodeSpec) -> DecodeStage:
    return DecodeStage(spec)


def present_rows(fetched: pa.Table) -> list[int]:
    """Return the indices of the rows of a table that are not rejected."""
    return np.flatnonzero(fetched["reason_code"].is_null().to_numpy()).tolist()


def decoded_table(
    fetched: pa.Table, present: Sequence[int], results: Sequence[Original | RejectedImage], pixels: pa.Array
) -> pa.Table:
    """Return a fetched table as a decoded one (DECODED); ``results`` belong to the rows ``present``."""
    reasons, details = fetched["reason_code"].to_pylist(), fetched["detail"].to_pylist()
    sizes = np.zeros((len(fetched), 2), np.int32)
    formats: list[str | None] = [None] * len(fetched)
    for row, result in zip(present, results, strict=True):
        if isinstance(result, RejectedImage):
            reasons[row], details[row] = result.reason, result.detail
        else:
            sizes[row], formats[row] = result
    columns = {name: fetched[name] for name in (*IDENTITY, "classes")}
    columns |= {"reason_code": reasons, "detail": details, "format": formats}
    columns |= {"width_px": sizes[:, 1], "height_px": sizes[:, 0], "pixels": pixels}
    return pa.table({name: columns[name] for name in DECODED.names}, schema=DECODED)


def binary_rows(values: NDArray[np.uint8], rows: Sequence[int], n_rows: int) -> pa.Array:
    """Return n_rows binaries without a copy: row rows[i] has the bytes of values[i], all other rows are empty."""
    lengths = np.zeros(n_rows, np.int64)
    lengths[list(rows)] = values[0].size if len(values) else 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), n_rows, buffers)
