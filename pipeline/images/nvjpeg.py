"""JPEGs decoded and resized on a device: by nvJPEG on CUDA; on CPU, where this is tested, by the same calls.

nvJPEG writes on a stream of torchvision's own, into memory of the caller's current stream: what that stream still works
on there must be done before, and after a failure what nvJPEG still writes.
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
"""Of the picture that shows whether nvJPEG works."""


def check_nvjpeg(device: torch.device) -> None:
    """Decode one small JPEG on the device; raises ModelError where nvJPEG is missing or gives another picture.

    Without this its failure would look like that of every single file, and all of them would go to the CPU.
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
    """Return each JPEG as a (3, H, W) uint8 RGB tensor on the device, as stored; None for one that it refuses.

    torchvision refuses a whole batch for one file, so the halves of such a batch are tried, and theirs in turn.
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


def to_inputs(pictures: Sequence[Tensor], exif_orientations: Sequence[int], plan: ResizePlan) -> Tensor:
    """Return the network's inputs, (n, S, S, 3) uint8 RGB, of n >= 1 stored (3, H, W) uint8 pictures on one device.

    The same as ``plan.apply(upright(picture, orientation))`` of each, within the one grey level that OpenCV's
    fixed-point weights make. All pictures are resized at once: laid end to end, each output pixel
    gathers its four neighbours there. A picture that is to be turned has its rows and columns walked in another order.
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
    """Where the S rows (or columns) of the inputs lie in n upright pictures, all tensors (n, S).

    Half-pixel centres, clamped to the picture, as ``cv2.resize`` takes them.
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
