"""Decodes and resizes JPEGs on a device: on CUDA by nvJPEG; on CPU, for tests, by the same calls of torchvision.

nvJPEG writes on a stream of torchvision's own, into memory that belongs to the caller's current stream. So the caller's
stream is waited for before nvJPEG starts, and after a failure the whole device is.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import decode_jpeg

from pipeline.images.pixels import TURNS, upright_hw
from pipeline.images.resize import PAD_GRAY, ResizePlan
from schemas.errors import ModelError

_GRAY = 128
"""Value of all three colours where all coefficients of a block are 0."""


def check_nvjpeg(device: torch.device) -> None:
    """Decode one small JPEG on the device; raises ModelError where nvJPEG is missing or gives another picture.

    Without this check a missing nvJPEG would look like a fault of every single file, and the CPU would decode them all.
    """
    picture = np.full((16, 16, 3), _GRAY, np.uint8)
    encoded = torch.from_numpy(cv2.imencode(".jpg", picture)[1].reshape(-1))
    try:
        (decoded,) = decode_jpeg([encoded], mode="RGB", device=device)
        apart = decoded.cpu().int() - _GRAY
    except (RuntimeError, AttributeError) as error:  # of a build without nvJPEG, a missing library or device
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"--decode gpu: nvJPEG fails here: {reason}; allowed here: auto, local, remote") from error
    if apart.shape != (3, 16, 16) or apart.abs().max() > 2:
        raise ModelError("--decode gpu: nvJPEG decodes a gray picture wrongly here; allowed here: auto, local, remote")


def decode_jpegs(blobs: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """Return each JPEG as a (3, H, W) uint8 RGB tensor on the device, not turned upright; None for a refused one.

    torchvision refuses a whole batch for one bad file; then the two halves of the batch are tried, and so on.
    """
    if not blobs:
        return []
    encoded = [torch.frombuffer(bytearray(blob), dtype=torch.uint8) for blob in blobs]
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    try:
        pictures: list[Tensor | None] = decode_jpeg(encoded, mode="RGB", device=device)
    except RuntimeError:  # a file's fault, or too little memory for so many at once
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # Raises where it is the device that fails.
        half = len(blobs) // 2
        return decode_jpegs(blobs[:half], device) + decode_jpegs(blobs[half:], device) if half else [None]
    return pictures


def ends_are_gray(pictures: Sequence[Tensor | None]) -> list[bool]:
    """Return for each (3, H, W) picture whether its last pixel has the gray of a missing block; False for None.

    In a JPEG of one scan the blocks that are missing come last, and decoders leave them gray.
    """
    last = [picture[:, -1, -1] for picture in pictures if picture is not None]
    gray = iter(((torch.stack(last).int() - _GRAY).abs().amax(1) <= 1).tolist() if last else [])
    return [picture is not None and next(gray) for picture in pictures]


def to_inputs(pictures: Sequence[Tensor], exif_orientations: Sequence[int], plan: ResizePlan) -> Tensor:
    """Return the network's inputs, (n, S, S, 3) uint8 RGB, of n >= 1 stored (3, H, W) uint8 pictures on one device.

    The result equals ``plan.apply(upright(picture, orientation))`` of each picture, within one grey level, which comes
    from OpenCV's fixed-point weights. All pictures are resized at once: they are concatenated, and each output pixel
    gathers its four neighbours from there. To turn a picture, its rows and columns are read in another order.
    """
    flat = torch.cat([picture.reshape(-1) for picture in pictures])
    stored_hw = np.array([picture.shape[1:] for picture in pictures])
    upright = np.array([upright_hw((h, w), turn) for (h, w), turn in zip(stored_hw, exif_orientations, strict=True)])
    placed = np.array([plan.input_hw(*size) for size in upright.tolist()])
    transposed, flip_rows, flip_cols = np.array([TURNS[turn] for turn in exif_orientations]).T
    area, width = stored_hw.prod(axis=1), stored_hw[:, 1]
    side, device = plan.image_size, flat.device
    row_step, col_step = np.where(transposed, 1, width), np.where(transposed, width, 1)
    rows = _Axis(upright[:, 0], placed[:, 0], flip_rows, row_step, side, device)
    cols = _Axis(upright[:, 1], placed[:, 1], flip_cols, col_step, side, device)
    inside = rows.inside[:, :, None] & cols.inside[:, None, :]
    inputs = flat.new_empty(len(pictures), side, side, 3)
    first = 3 * (np.cumsum(area) - area)
    for channel in range(3):
        plane = torch.from_numpy(first + channel * area).to(device)[:, None]
        above, below = (_between_columns(flat, plane + offset, cols) for offset in (rows.low, rows.high))
        mixed = torch.lerp(above, below, rows.weight[:, :, None]).round_().to(torch.uint8)
        inputs[..., channel] = torch.where(inside, mixed, PAD_GRAY)
    return inputs


class _Axis:
    """The positions of the inputs' S rows (or columns) in n upright pictures, as tensors (n, S).

    Pixel centres lie at halves and are clamped to the picture, as in ``cv2.resize``.
    """

    def __init__(
        self,
        picture_px: NDArray[np.int64],
        placed_px: NDArray[np.int64],
        flip: NDArray[np.bool_],
        step: NDArray[np.int64],
        side: int,
        device: torch.device,
    ) -> None:
        """Each (n,): length of the axis in the picture and in the input, whether it is flipped, bytes between steps."""
        output, last = np.arange(side), picture_px[:, None] - 1
        at = ((output + 0.5) * (picture_px / placed_px)[:, None] - 0.5).clip(0, last)
        at = np.where(flip[:, None], last - at, at)
        low = np.floor(at).astype(np.int64)
        self.low = torch.from_numpy(low * step[:, None]).to(device)
        """Bytes from the plane's start to the nearer row."""
        self.high = torch.from_numpy(np.minimum(low + 1, last) * step[:, None]).to(device)
        self.weight = torch.from_numpy((at - low).astype(np.float32)).to(device)
        """Of ``high``, in [0, 1)."""
        self.inside = torch.from_numpy(output < placed_px[:, None]).to(device)
        """False where the input is padding."""


def _between_columns(flat: Tensor, row: Tensor, cols: _Axis) -> Tensor:
    """Return (n, S, S) float32: the rows that begin at ``row`` (n, S), linear between two columns each."""
    left, right = (flat[row[:, :, None] + offset[:, None, :]].float() for offset in (cols.low, cols.high))
    return torch.lerp(left, right, cols.weight[:, None, :])
