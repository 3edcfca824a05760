"""Decoding beside a network on the GPU: what nvJPEG takes is decoded there, everything else on the CPU."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage, Seen, binary_rows, decoded_table, present_rows
from pipeline.images.decode import Jpeg, examine
from pipeline.images.device import check_nvjpeg, decode_jpegs, to_inputs
from pipeline.models.localize.engine import Lane
from schemas.errors import RejectedImage

DEVICE_PIXELS = 2**25
"""Of the pictures and their inputs that are on a device at once: some 180 photographs of 500×375, in about 1 GB."""


class GpuDecodeStage:
    """Decodes JPEGs on a device and leaves their pixels there, all else by ``DecodeStage``, which copies them over.

    On CUDA nvJPEG decodes what is usual: 8-bit gray or YCbCr, baseline or progressive. It can't decode at a smaller
    scale, so nothing here does, and its rounding of colours is its own. The limits of pixels, bytes and scans bound
    what it does; ``timeout_s`` only bounds what the CPU decodes.

    Threads may call it side by side, each on its own stream: what one frees is then never what another one's nvJPEG,
    which knows nothing of streams, writes to. nvJPEG itself takes one batch at a time.
    """

    def __init__(self, spec: DecodeSpec, device: str, threads: int = 1, device_pixels: int = DEVICE_PIXELS) -> None:
        """``device``: "cuda", or "cpu" for tests. ``threads``: images decoded at the same time on the CPU.

        Raises ModelError where ``device`` is "cuda" and nvJPEG does not work.
        """
        self._device_pixels = device_pixels
        self._limits, self._resize, self._device = spec.limits, spec.resize, torch.device(device)
        self._lane: Lane | None = None
        if self._device.type == "cuda":
            check_nvjpeg(self._device)
            self._lane = Lane(self._device)
        self._others = DecodeStage(replace(spec, jpeg_scaling="off"), threads)

    def __call__(self, fetched: pa.Table) -> tuple[pa.Table, Tensor]:
        """Return one row for each row, in order (DECODED, its pixels empty), and the inputs.

        The inputs are (n, S, S, 3) uint8 RGB on the device: of the n rows that are not rejected, in order. On CUDA the
        current stream waits for them.
        """
        with self._own_stream():
            return self._decoded(fetched)

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Let the block's work on CUDA go through the calling thread's own stream, and the caller's wait for it."""
        if self._lane is None:
            yield
            return
        with torch.cuda.stream(self._lane.stream):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._lane.stream)

    def _decoded(self, fetched: pa.Table) -> tuple[pa.Table, Tensor]:
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
        nothing = binary_rows(np.empty((0, 0), np.uint8), [], len(fetched))
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
