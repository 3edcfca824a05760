"""Quantizes class activation maps to bytes, which are stored with the minimum and the maximum of each map."""

import numpy as np
from numpy.typing import NDArray

LEVELS = 255
"""The stored byte of a map's maximum; 0 is the byte of its minimum."""


def quantize(maps: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return maps (N, h, w) as uint8 with their minima (N,) and maxima (N,): M = min + q / 255 · (max - min).

    The error of a value is at most (max - min) / 510. A constant map becomes all zeros, with an equal minimum and
    maximum. The maps must be finite.
    """
    low = maps.min(axis=(1, 2), initial=np.inf).astype(np.float32)
    high = maps.max(axis=(1, 2), initial=-np.inf).astype(np.float32)
    span = np.where(high > low, high - low, 1)[:, None, None]
    return np.rint((maps - low[:, None, None]) / span * LEVELS).astype(np.uint8), low, high


def dequantize(
    quantized: NDArray[np.uint8], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return maps (N, h, w) float32 from the result of ``quantize``; a constant map comes back exactly."""
    span = (high - low)[:, None, None]
    return (low[:, None, None] + quantized.astype(np.float32) / LEVELS * span).astype(np.float32)
