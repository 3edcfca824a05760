"""The decode stage on a GPU: nvJPEG decodes the JPEGs that it supports, the CPU decodes all other images."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage, Original, binary_rows, decoded_table, present_rows
from pipeline.images.decode import Jpeg, examine
from pipeline.images.nvjpeg import check_nvjpeg, decode_jpegs, ends_are_gray, to_inputs
from pipeline.models.localize.engine import ThreadStream
from schemas.errors import RejectedImage

DEVICE_PIXELS = 2**25
"""Most pixels of pictures and inputs on a device at once: about 180 photographs of 500×375, which take about 1 GB."""


class GpuDecodeStage:
    """Decodes JPEGs on a device and leaves their pixels there; a ``DecodeStage`` decodes all other images.

    On CUDA nvJPEG decodes the usual JPEGs: 8-bit gray or YCbCr in one baseline scan, without wide-gamut colours. nvJPEG
    can't decode at a smaller scale, so this stage decodes no image at a smaller scale. It rounds colours in another way
    than libjpeg. It does not report missing blocks, so a picture that ends in the gray of missing blocks is decoded
    again on the CPU by libjpeg. The limits of pixels, bytes and scans apply to both; ``timeout_s`` applies to the CPU.

    Several threads may use one object at the same time, and each thread has a CUDA stream. nvJPEG ignores streams; with
    a stream for each thread it never writes to memory that another thread has freed. nvJPEG decodes one batch at a
    time.
    """

    def __init__(self, spec: DecodeSpec, device: str, threads: int = 1, device_pixels: int = DEVICE_PIXELS) -> None:
        """``device``: "cuda", or "cpu" in tests; ``threads``: images that the CPU decodes at the same time.

        Raises ModelError, which fails the run, where ``device`` is "cuda" and nvJPEG does not work.
        """
        self._device_pixels = device_pixels
        self._limits, self._resize, self._device = spec.limits, spec.resize, torch.device(device)
        self._stream: ThreadStream | None = None
        if self._device.type == "cuda":
            check_nvjpeg(self._device)
            self._stream = ThreadStream(self._device)
        self._cpu_stage = DecodeStage(replace(spec, jpeg_scaling="off"), threads)

    def __call__(self, fetched: pa.Table) -> tuple[pa.Table, Tensor]:
        """Return one row (DECODED, with empty ``pixels``) for each row of ``fetched``, in order, and the inputs.

        The inputs are (n, S, S, 3) uint8 RGB on the device, for the n rows that are not rejected, in order. On CUDA the
        current stream waits until the inputs are complete.
        """
        with self._on_stream():
            return self._decoded(fetched)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Run the block's CUDA work on a stream of the calling thread; the caller's stream waits for it."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream.stream):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._stream.stream)

    def _decoded(self, fetched: pa.Table) -> tuple[pa.Table, Tensor]:
        present = present_rows(fetched)
        blobs = [fetched["data"][row].as_py() for row in present]
        side = self._resize.image_size
        inputs = torch.empty(len(blobs), side, side, 3, dtype=torch.uint8, device=self._device)
        results: dict[int, Original | RejectedImage] = {}
        for jpegs in _groups(self._usual_jpegs(blobs, results), side, self._device_pixels):
            results |= self._on_device(jpegs, inputs)
        for_cpu = [index for index in range(len(blobs)) if index not in results]
        originals, pixels = self._cpu_stage.decode([blobs[index] for index in for_cpu])
        results |= dict(zip(for_cpu, originals, strict=True))
        good = [index for index, result in sorted(results.items()) if not isinstance(result, RejectedImage)]
        by_cpu = set(for_cpu)
        inputs[[index for index in good if index in by_cpu]] = torch.from_numpy(pixels).to(self._device)
        no_pixels = binary_rows(np.empty((0, 0), np.uint8), [], len(fetched))
        table = decoded_table(fetched, present, [results[index] for index in range(len(blobs))], no_pixels)
        return table, inputs if len(good) == len(blobs) else inputs[good]

    def _usual_jpegs(
        self, blobs: Sequence[bytes | None], results: dict[int, Original | RejectedImage]
    ) -> Iterator[tuple[int, Jpeg]]:
        """Yield index and header of each JPEG for the device; add images that the header rejects to ``results``."""
        for index, blob in enumerate(blobs):
            try:
                jpeg = examine(blob, self._limits) if blob is not None else None
            except RejectedImage as rejected:
                results[index] = RejectedImage(rejected.reason, rejected.detail)
            else:
                if jpeg and jpeg.usual:
                    yield index, jpeg

    def _on_device(self, jpegs: dict[int, Jpeg], inputs: Tensor) -> dict[int, Original]:
        """Decode JPEGs into ``inputs``; return the originals of the complete pictures that have their header's size."""
        pictures = decode_jpegs([jpeg.data for jpeg in jpegs.values()], self._device)
        gray_ends = ends_are_gray(pictures)
        decoded = {
            index: picture
            for (index, jpeg), picture, is_gray in zip(jpegs.items(), pictures, gray_ends, strict=True)
            if picture is not None and not is_gray and tuple(picture.shape[:0:-1]) == jpeg.frame.size_wh
        }
        if decoded:
            orientations = [jpegs[index].exif_orientation for index in decoded]
            inputs[list(decoded)] = to_inputs(list(decoded.values()), orientations, self._resize)
        return {index: (jpegs[index].size_hw, "JPEG") for index in decoded}


def _groups(jpegs: Iterator[tuple[int, Jpeg]], side: int, most_pixels: int) -> Iterator[dict[int, Jpeg]]:
    """Yield groups of JPEGs by index: one JPEG, or several whose pictures and inputs have at most ``most_pixels``."""
    group: dict[int, Jpeg] = {}
    pixels = 0
    for index, jpeg in jpegs:
        jpeg_pixels = math.prod(jpeg.frame.size_wh) + side * side
        if group and pixels + jpeg_pixels > most_pixels:
            yield group
            group, pixels = {}, 0
        group[index] = jpeg
        pixels += jpeg_pixels
    if group:
        yield group
