"""Decoding as in the job's tasks: several processes at once, each with one thread and with different photographs."""

import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from jobs.benchmark.together import run_together, wait_for_all
from pipeline.annotate.decode_stage import DecodeSpec, DecodeStage
from pipeline.annotate.image_reader import FETCHED


def fetched_table(photographs: Sequence[Path]) -> pa.Table:
    """Return a FETCHED table of the photographs with their bytes."""
    rows = [{"image_id": path.stem, "uri": str(path), "data": path.read_bytes()} for path in photographs]
    return pa.Table.from_pylist(rows, schema=FETCHED)


def decoded_per_s(spec: DecodeSpec, photographs: Sequence[Path], processes: int, seconds: float) -> float:
    """Return images/s of all processes together; each decodes its part of the photographs repeatedly for ``seconds``.

    There are at least as many photographs as processes. The start of the processes does not count.
    """
    parts = [photographs[index::processes] for index in range(processes)]
    return sum(run_together(_decoded_per_s, [(spec, part, seconds) for part in parts]))


def _decoded_per_s(spec: DecodeSpec, photographs: Sequence[Path], seconds: float) -> float:
    fetched, stage = fetched_table(photographs), DecodeStage(spec)
    stage(fetched)
    wait_for_all()
    started, images = time.perf_counter(), 0
    while (elapsed_s := time.perf_counter() - started) < seconds:
        images += len(stage(fetched))
    return images / elapsed_s
