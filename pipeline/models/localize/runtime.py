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


BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""PyTorch's names for what multiplies bf16 in hardware, two on x86 and one on ARM; without it bf16 is emulated.

One thread of an AMD EPYC with avx512_bf16 runs ResNet-18 1.9 times as fast in bf16 as in fp32, MobileNetV2 3 times.
"""


def resolve_precision(precision: Precision, device: str) -> Precision:
    """Return the number type that ``auto`` stands for on this machine.

    bf16 where ``device`` computes in it natively; else fp16 on CUDA and fp32 on CPU.
    """
    if precision != "auto":
        return precision
    if device == "cpu":
        instructions = torch.cpu.get_capabilities()
        return "bf16" if any(instructions.get(name) for name in BF16_INSTRUCTIONS) else "fp32"
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "fp16" if emulated else "bf16"
