"""Processes that begin a measurement at the same time, so that they slow each other down as those of a job do."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

START_S = 300.0
"""The most seconds until all processes are ready."""
_together: list[Any] = []
"""In a process of the pool: the barrier at which all processes wait."""


def run_together(work: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """Return ``work`` of each tuple of arguments, each in a new process; ``work`` calls ``wait_for_all`` when ready."""
    context, processes = multiprocessing.get_context("spawn"), len(arguments)
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, initializer=_together.append, initargs=(barrier,)) as pool:
        return list(pool.map(work, *zip(*arguments, strict=True)))


def wait_for_all() -> None:
    """Return when all processes of ``run_together`` are ready; at once in any other process."""
    for barrier in _together:
        barrier.wait(START_S)
