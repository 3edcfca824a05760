"""Boxes are in pixels of the upright original: those in shares of the image's sides are refused."""

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UsageError


def refuse_fractions(boxes: NDArray[np.float64], where: str) -> None:
    """Raise UsageError, which begins with ``where``, where all coordinates of boxes (R, 4) lie between 0 and 1.

    A row of NaN is no box. Whole numbers alone are pixels: a box of one pixel is 0, 0, 1, 1.
    """
    known = boxes[np.isfinite(boxes)]
    if known.size and ((known >= 0) & (known <= 1)).all() and (known % 1 != 0).any():
        raise UsageError(
            f"{where}: all coordinates lie between 0 and 1, like {boxes[np.isfinite(boxes).all(axis=1)][0].tolist()};"
            " allowed: pixels of the upright original, so multiply x by its width and y by its height"
        )
