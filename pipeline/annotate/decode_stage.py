"""The decode stage: encoded images to the network's input, table by table. Ray runs it; so does a plain loop.

It never raises for one image: what can't be decoded leaves as a row with its reason. Tasks that decode load no torch,
which takes seconds and hundreds of megabytes of every worker.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.crash_isolation import Attempts, CrashIsolation
from pipeline.images.decode import DecodedImage, DecodeLimits
from pipeline.images.decoder import Decoder
from pipeline.images.resize import ResizePlan
from pipeline.storage.lake.rows import IDENTITY
from schemas.annotate import JpegScaling
from schemas.errors import RejectedImage
from schemas.tables import PLAN


@dataclass(frozen=True)
class DecodeSpec:
    """How images are decoded and brought to the network's input."""

    limits: DecodeLimits
    resize: ResizePlan
    jpeg_scaling: JpegScaling = "auto"


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

Seen = tuple[tuple[int, int], str]
"""(height, width) of the upright original in pixels, and the format."""


class DecodeStage:
    """Decodes the encoded bytes of a table (pipeline.annotate.reader.FETCHED) to the network's input (DECODED)."""

    def __init__(self, spec: DecodeSpec, threads: int = 1) -> None:
        """``threads``: images decoded at the same time."""
        self._resize = spec.resize
        least_hw = spec.resize.least_hw if spec.jpeg_scaling == "auto" else None
        self._decoder = Decoder(spec.limits, threads, least_hw)

    def __call__(self, fetched: pa.Table) -> pa.Table:
        """Return one row for each row, in order."""
        present = present_rows(fetched)
        results, pixels = self.decode([fetched["data"][row].as_py() for row in present])
        kept = [row for row, result in zip(present, results, strict=True) if not isinstance(result, RejectedImage)]
        return decoded_table(fetched, present, results, binary_rows(pixels, kept, len(fetched)))

    def decode(self, blobs: Sequence[bytes | None]) -> tuple[list[Seen | RejectedImage], NDArray[np.uint8]]:
        """Return for each blob what it is or why it is rejected, and the (n, S, S, 3) inputs of the others, in order.

        The threads resize into the rows of one array: the batch is copied only where an image is rejected, and must be
        then, because a thread that was left behind may still write to its row.
        """
        side = self._resize.image_size
        inputs = np.empty((len(blobs), side, side, 3), np.uint8)

        def resized(place: int, image: DecodedImage) -> Seen:
            self._resize.apply(image.pixels, image.size_hw, inputs[place])
            return image.size_hw, image.format

        results = self._decoder.map(blobs, resized)
        good = np.array([not isinstance(result, RejectedImage) for result in results], bool)
        return results, inputs if good.all() else inputs[good]


def decode_in_task(spec: DecodeSpec, attempts: Attempts, fetched: pa.Table) -> pa.Table:
    """Return what DecodeStage does of a table; a Ray task's function, which keeps the stage between its calls."""
    return CrashIsolation(attempts).run(fetched, _stage(spec))


@functools.cache
def _stage(spec: DecodeSpec) -> DecodeStage:
    return DecodeStage(spec)


def present_rows(fetched: pa.Table) -> list[int]:
    """Return the rows of a table that are not rejected yet."""
    return np.flatnonzero(fetched["reason_code"].is_null().to_numpy()).tolist()


def decoded_table(
    fetched: pa.Table, present: Sequence[int], results: Sequence[Seen | RejectedImage], pixels: pa.Array
) -> pa.Table:
    """Return the table (DECODED) of a fetched one: ``results`` are those of its rows ``present``."""
    reasons, details = fetched["reason_code"].to_pylist(), fetched["detail"].to_pylist()
    sizes = np.zeros((len(fetched), 2), np.int32)
    formats: list[str | None] = [None] * len(fetched)
    for row, result in zip(present, results, strict=True):
        if isinstance(result, RejectedImage):
            reasons[row], details[row] = str(result.reason), result.detail
        else:
            sizes[row], formats[row] = result
    columns = {name: fetched[name] for name in (*IDENTITY, "classes")}
    columns |= {"reason_code": reasons, "detail": details, "format": formats}
    columns |= {"width_px": sizes[:, 1], "height_px": sizes[:, 0], "pixels": pixels}
    return pa.table({name: columns[name] for name in DECODED.names}, schema=DECODED)


def binary_rows(values: NDArray[np.uint8], rows: Sequence[int], n_rows: int) -> pa.Array:
    """Return n_rows binaries without copying: row rows[i] holds the bytes of values[i], the others are empty."""
    lengths = np.zeros(n_rows, np.int64)
    lengths[list(rows)] = values[0].size if len(values) else 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), n_rows, buffers)
