"""Decoding as in the job's tasks: several processes at once, each with one thread and with different photographs."""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.image_reader import FETCHED

START_S = 300.0
"""The most seconds until all processes have started."""
_together: list[Any] = []
"""In a process of the pool: the barrier at which all processes wait, so that they begin together."""


def fetched_table(photographs: Sequence[Path]) -> pa.Table:
    """Return a FETCHED table of the photographs with their bytes."""
    rows = [{"image_id": path.stem, "uri": str(path), "data": path.read_bytes()} for path in photographs]
    return pa.Table.from_pylist(rows, schema=FETCHED)


def decoded_per_s(spec: DecodeSpec, photographs: Sequence[Path], processes: int, seconds: float) -> float:
    """Return images/s of all processes together; each decodes its part of the photographs repeatedly for ``seconds``.

    There are at least as many photographs as processes. The start of the processes does not count.
    """
    context = multiprocessing.get_context("spawn")
    parts = [photographs[index::processes] for index in range(processes)]
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin_with, initargs=(context.Barrier(processes),)
    ) as pool:
        return sum(pool.map(_decoded_per_s, [spec] * processes, parts, [seconds] * processes))


def _begin_with(barrier: Any) -> None:
    _together.append(barrier)


def _decoded_per_s(spec: DecodeSpec, photographs: Sequence[Path], seconds: float) -> float:
    fetched, stage = fetched_table(photographs), DecodeStage(spec)
    stage(fetched)
    _together[0].wait(START_S)
    started, images = time.perf_counter(), 0
    while (elapsed_s := time.perf_counter() - started) < seconds:
        images += len(stage(fetched))
    return images / elapsed_s
