"""Rounds float32 values to fewer significant bits, so that files compress better."""

import numpy as np
from numpy.typing import NDArray

FLOAT32_BITS = 24
"""Significant bits of a float32."""


def rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return the values rounded to ``bits`` significant bits, 1 to 23, to nearest with ties away from zero.

    The relative error is at most 2 ** -bits, except for subnormal numbers. Infinities and NaN are returned
    unchanged; a value that rounds up beyond the range of float32 becomes infinite.
    """
    dropped = FLOAT32_BITS - bits
    raised = values.view(np.uint32) + np.uint32(1 << (dropped - 1))
    return np.where(np.isfinite(values), (raised & np.uint32(-(1 << dropped) & 0xFFFFFFFF)).view(np.float32), values)
