"""Finds the batch size that fits into the memory of a GPU while the work goes on."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from schemas.errors import CamlakeError

_Result = TypeVar("_Result")


class FittingBatches:
    """Works on a batch in parts that fit into the GPU's memory; threads may share one object.

    Where a part does not fit, parts of half its size follow, from then on for every batch. They never grow again: the
    memory that is free changes little during a run, and another failure costs a batch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._most: int | None = None
        self._notes: list[str] = []

    def run(self, images: int, work: Callable[[int, int], _Result]) -> list[_Result]:
        """Return the results of ``work(start, end)`` for consecutive parts of a batch of ``images``, in order.

        Raises CamlakeError where a part of one image does not fit: inputs have one size, so that no other would fit.
        """
        results: list[_Result] = []
        start = 0
        while start < images:
            size = min(images - start, self._most or images)
            try:
                results.append(work(start, start + size))
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise CamlakeError(_too_little(error)) from error
            else:
                start += size
                continue
            self._halve(size)  # Only here has the error let go of the tensors of the failed part.
        return results

    def take_notes(self) -> tuple[str, ...]:
        """Return what the user is to know, and forget it."""
        with self._lock:
            notes, self._notes = tuple(self._notes), []
            return notes

    def _halve(self, size: int) -> None:
        half = size // 2
        with self._lock:
            if self._most is None or half < self._most:
                self._most = half
                self._notes.append(
                    f"{size} images at once don't fit into the GPU's memory: going on with {half} at once"
                    f" (--batch-size {half} begins with them)"
                )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _too_little(error: BaseException) -> str:
    reason = (str(error).strip() or "out of memory").splitlines()[0]
    return (
        f"not one image fits into the GPU's memory: {reason[:200]}; allowed: a smaller --image-size, fewer --scales,"
        " --gpus-per-actor 1, or a GPU that nothing else uses"
    )
