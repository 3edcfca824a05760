"""How a network runs on its device: number type, compilation, threads and batch size."""

from dataclasses import dataclass
from typing import Literal

import torch

from schemas.config import Precision


@dataclass(frozen=True)
class Runtime:
    """What the results don't depend on, but for rounding; speed does."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    """As for resolve_precision, which the device's own machine calls."""
    compile: bool
    """Whether the trunk runs through torch.compile."""
    threads: int
    """Threads of one network on CPU."""
    batch_size: int
    """Images a forward pass."""


def resolve_precision(precision: Precision, device: str) -> Precision:
    """Return the number type that ``auto`` stands for: fp32 on CPU; on CUDA bf16, or fp16 where the card lacks it."""
    if precision != "auto":
        return precision
    if device == "cpu":
        return "fp32"
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "fp16" if emulated else "bf16"
