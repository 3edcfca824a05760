"""Nearest neighbours and near duplicates among vectors by their cosine, exact, in blocks.

N vectors of K values. The cosine of a vector of zeros with any other is 0.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 2048
"""Rows of each side of a product: 16 MB of cosines, and 10 MB a side with 1,280 values."""

ROUNDING = 2e-6
"""Of a cosine in float32: that of a vector with itself may be 0.999999."""


def units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``vectors`` (N, K) divided by their lengths; a vector of zeros stays one."""
    lengths = np.sqrt(np.einsum("nk,nk->n", vectors, vectors, dtype=np.float64))
    found: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    return found


def close_pairs(
    rows: NDArray[np.float32], least: float, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Yield the pairs i < j of ``rows`` (N, K), which are units, with a cosine of at least ``least``, block by block.

    Each part has i (P,), j (P,) and the cosines (P,), ordered by i, then j; P is often 0. ``rows`` may be a memory map:
    two blocks of it are read at a time. ``advance`` gets how many rows are compared with all that follow them.
    """
    for start in range(0, len(rows), BLOCK_ROWS):
        here = np.ascontiguousarray(rows[start : start + BLOCK_ROWS])
        for other in range(start, len(rows), BLOCK_ROWS):
            there = here if other == start else np.ascontiguousarray(rows[other : other + BLOCK_ROWS])
            cosines = here @ there.T
            i, j = np.nonzero(cosines >= least - ROUNDING)
            later = j + other > i + start
            i, j = i[later], j[later]
            yield i + start, j + other, cosines[i, j].clip(-1, 1)
        if advance is not None:
            advance(min(start + BLOCK_ROWS, len(rows)))


def groups(n_rows: int, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N,): the least row that each row is connected with through the pairs ``i``, ``j``; itself without one."""
    root = np.arange(n_rows)
    while True:
        least = np.minimum(root[i], root[j])
        before = root.copy()
        np.minimum.at(root, i, least)
        np.minimum.at(root, j, least)
        root = root[root]
        if np.array_equal(root, before):
            return root
