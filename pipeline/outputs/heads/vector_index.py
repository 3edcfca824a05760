"""Near duplicates among many vectors by an index of their neighbours: approximate, where all pairs would take days."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays.nearest import BLOCK_ROWS, ROUNDING
from schemas.errors import UsageError

NEAREST = 32
"""Neighbours that are looked up for each vector. A group of more near duplicates is still connected, through others."""


def indexed_pairs(
    rows: NDArray[np.float32], least: float, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Yield pairs i < j of ``rows`` (N, K), which are units, as ``close_pairs`` does, but not surely all of them.

    A pair is found where the index names one of the two among the ``NEAREST`` of the other; its cosine is exact. No
    pair comes twice. The index has 2 bytes a value in memory. Raises UsageError where usearch is not installed.
    """
    try:
        from usearch.index import Index  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise UsageError("--index: needs usearch; pip install 'camlake[index]'") from error
    index: Any = Index(ndim=rows.shape[1], metric="cos", dtype="bf16")
    for start in range(0, len(rows), BLOCK_ROWS):
        here = np.ascontiguousarray(rows[start : start + BLOCK_ROWS])
        index.add(np.arange(start, start + len(here), dtype=np.uint64), here)
    seen = np.empty(0, np.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        here = np.ascontiguousarray(rows[start : start + BLOCK_ROWS])
        found = index.search(here, min(NEAREST + 1, len(rows)))
        own = np.arange(start, start + len(here))
        keys = np.atleast_2d(found.keys)  # For a single row usearch returns its matches alone, without their number.
        counts: NDArray[np.uint64] = np.atleast_1d(np.asarray(getattr(found, "counts", keys.shape[1])))
        filled = np.arange(keys.shape[1]) < counts[:, None]
        one, other = np.nonzero(filled)
        i, j = own[one], keys[one, other].astype(np.int64)
        pairs = np.setdiff1d((np.minimum(i, j) * len(rows) + np.maximum(i, j))[i != j], seen)
        i, j = pairs // len(rows), pairs % len(rows)
        cosines = np.einsum("nk,nk->n", rows[i], rows[j])
        close = cosines >= least - ROUNDING
        seen = np.union1d(seen, pairs[close])
        yield i[close], j[close], cosines[close].clip(-1, 1)
        if advance is not None:
            advance(start + len(here))
