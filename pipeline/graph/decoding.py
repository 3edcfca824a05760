"""The decode stage: encoded images to the network's input, table by table. Ray runs it; so does a plain loop.

It never raises for one image: what can't be decoded leaves as a row with its reason.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images.decode import DecodedImage, DecodeLimits, Jpeg, examine
from pipeline.images.decoder import Decoder
from pipeline.images.device import decode_jpegs, to_inputs
from pipeline.images.resize import ResizePlan
from pipeline.storage.rows import IDENTITY
from schemas.config import JpegScaling
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

DEVICE_PIXELS = 2**25
"""Of the pictures and their inputs that are on a device at once: some 180 photographs of 500×375, in about 1 GB."""

Seen = tuple[tuple[int, int], str]
"""(height, width) of the upright original in pixels, and the format."""


class DecodeStage:
    """Decodes the encoded bytes of a table (pipeline.graph.source.FETCHED) to the network's input (DECODED)."""

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
        return decoded_table(fetched, present, results, _binary_rows(pixels, kept, len(fetched)))

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


class GpuDecodeStage:
    """Decodes JPEGs on a device and leaves their pixels there, all else by ``DecodeStage``, which copies them over.

    On CUDA nvJPEG decodes what is usual: 8-bit gray or YCbCr, baseline or progressive. It can't decode at a smaller
    scale, so nothing here does, and its rounding of colours is its own. The limits of pixels, bytes and scans bound
    what it does; ``timeout_s`` only bounds what the CPU decodes.
    """

    def __init__(self, spec: DecodeSpec, device: str, threads: int = 1, device_pixels: int = DEVICE_PIXELS) -> None:
        """``device``: "cuda", or "cpu" for tests. ``threads``: images decoded at the same time on the CPU."""
        self._device_pixels = device_pixels
        self._limits, self._resize, self._device = spec.limits, spec.resize, torch.device(device)
        self._others = DecodeStage(replace(spec, jpeg_scaling="off"), threads)

    def __call__(self, fetched: pa.Table) -> tuple[pa.Table, Tensor]:
        """Return one row for each row, in order (DECODED, its pixels empty), and the inputs.

        The inputs are (n, S, S, 3) uint8 RGB on the device: of the n rows that are not rejected, in order.
        """
        present = present_rows(fetched)
        blobs = [fetched["data"][row].as_py() for row in present]
        side = self._resize.image_size
        inputs = torch.empty(len(blobs), side, side, 3, dtype=torch.uint8, device=self._device)
        results: dict[int, Seen | RejectedImage] = {}
        for jpegs in _groups(self._usual_jpegs(blobs, results), side, self._device_pixels):
            results |= self._on_device(jpegs, blobs, inputs)
        rest = [place for place in range(len(blobs)) if place not in results]
        seen, pixels = self._others.decode([blobs[place] for place in rest])
        results |= dict(zip(rest, seen, strict=True))
        good = [place for place, result in sorted(results.items()) if not isinstance(result, RejectedImage)]
        by_cpu = set(rest)
        inputs[[place for place in good if place in by_cpu]] = torch.from_numpy(pixels).to(self._device)
        nothing = _binary_rows(np.empty((0, 0), np.uint8), [], len(fetched))
        table = decoded_table(fetched, present, [results[place] for place in range(len(blobs))], nothing)
        return table, inputs if len(good) == len(blobs) else inputs[good]

    def _usual_jpegs(
        self, blobs: Sequence[bytes | None], results: dict[int, Seen | RejectedImage]
    ) -> Iterator[tuple[int, Jpeg]]:
        """Yield the JPEGs for the device with their places, and note in ``results`` what a header alone rejects."""
        for place, blob in enumerate(blobs):
            try:
                jpeg = examine(blob, self._limits) if blob is not None else None
            except RejectedImage as rejected:
                results[place] = RejectedImage(rejected.reason, rejected.detail)
            else:
                if jpeg and jpeg.frame.usual:
                    yield place, jpeg

    def _on_device(self, jpegs: dict[int, Jpeg], blobs: Sequence[bytes], inputs: Tensor) -> dict[int, Seen]:
        """Fill the inputs of the JPEGs that the device decodes, to the size of their header, and say what they are."""
        pictures = decode_jpegs([blobs[place] for place in jpegs], self._device)
        decoded = {
            place: picture
            for (place, jpeg), picture in zip(jpegs.items(), pictures, strict=True)
            if picture is not None and tuple(picture.shape[:0:-1]) == jpeg.frame.size_wh
        }
        if decoded:
            turns = [jpegs[place].exif_orientation for place in decoded]
            inputs[list(decoded)] = to_inputs(list(decoded.values()), turns, self._resize)
        return {place: (jpegs[place].size_hw, "JPEG") for place in decoded}


def _groups(jpegs: Iterator[tuple[int, Jpeg]], side: int, most_pixels: int) -> Iterator[dict[int, Jpeg]]:
    """Yield JPEGs by their places, so many at a time that a device's memory can take them and their inputs."""
    group: dict[int, Jpeg] = {}
    pixels = 0
    for place, jpeg in jpegs:
        own = math.prod(jpeg.frame.size_wh) + side * side
        if group and pixels + own > most_pixels:
            yield group
            group, pixels = {}, 0
        group[place] = jpeg
        pixels += own
    if group:
        yield group


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


def _binary_rows(values: NDArray[np.uint8], rows: Sequence[int], n_rows: int) -> pa.Array:
    """Return n_rows binaries without copying: row rows[i] holds the bytes of values[i], the others are empty."""
    lengths = np.zeros(n_rows, np.int64)
    lengths[list(rows)] = values[0].size if len(values) else 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), n_rows, buffers)
