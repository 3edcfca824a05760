"""How a network runs on its device: number type, compilation, threads and batch size."""

from dataclasses import dataclass
from typing import Literal

import torch

from schemas.options.config import Precision


@dataclass(frozen=True)
class Runtime:
    """Settings that change the speed; the results depend on them by rounding alone."""

    device: Literal["cpu", "cuda"]
    precision: Precision
    """``auto`` is resolved by ``resolve_precision`` on the machine that has the device."""
    compile: bool
    """Whether the trunk runs through torch.compile."""
    threads: int
    """CPU threads that one network uses."""
    batch_size: int
    """Images a forward pass."""


BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""PyTorch's names for instructions that multiply bf16 numbers, two on x86 and one on ARM; without them it is emulated.

One thread of an AMD EPYC with avx512_bf16 runs ResNet-18 1.9 times as fast in bf16 as in fp32, MobileNetV2 3 times.
"""


def resolve_precision(precision: Precision, device: str) -> Precision:
    """Return ``precision``, or for ``auto`` the best number type on this machine's ``device`` ("cpu" or "cuda").

    That is bf16 where the device computes in it natively; otherwise fp16 on CUDA and fp32 on CPU.
    """
    if precision != "auto":
        return precision
    if device == "cpu":
        instructions = torch.cpu.get_capabilities()
        return "bf16" if any(instructions.get(name) for name in BF16_INSTRUCTIONS) else "fp32"
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "fp16" if emulated else "bf16"
