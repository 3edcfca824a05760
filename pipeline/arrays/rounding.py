"""Float32 values with fewer significant bits, which compress: what is left out was noise."""

import numpy as np
from numpy.typing import NDArray

FLOAT32_BITS = 24
"""Significant bits of a float32."""


def rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return the values rounded to ``bits`` significant bits, 1 to 23, to nearest with ties away from zero.

    The relative error is at most 2 ** -bits, except for subnormal numbers. Infinities and NaN stay what they are; what
    is nearer to the next power of two than float32 goes becomes infinite.
    """
    dropped = FLOAT32_BITS - bits
    raised = values.view(np.uint32) + np.uint32(1 << (dropped - 1))
    return np.where(np.isfinite(values), (raised & np.uint32(-(1 << dropped) & 0xFFFFFFFF)).view(np.float32), values)
