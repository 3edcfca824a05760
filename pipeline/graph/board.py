"""The board: where the processes of a training say how far they are, and the driver reads it while they learn."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.graph.progress import POLL_S
from pipeline.graph.training_files import Epoch


@ray.remote(num_cpus=0)
class Board:
    """Where the processes report to the driver; takes no CPU of the plan."""

    def __init__(self) -> None:
        self._images = self._rejected = 0
        self._epochs: list[Epoch] = []

    def add(self, images: int, rejected: int) -> None:
        """Count a batch."""
        self._images += images
        self._rejected += rejected

    def tell(self, epoch: Epoch) -> None:
        """Note a finished epoch."""
        self._epochs.append(epoch)

    def read(self, known: int) -> tuple[int, int, list[Epoch]]:
        """Return images and rejected so far, and the epochs after the first ``known``."""
        return self._images, self._rejected, self._epochs[known:]


@contextmanager
def following(board: Any, advance: Callable[[int, int], None], tell: Callable[[Epoch], None]) -> Iterator[None]:
    """Pass on twice a second what the board says, and once more at the end."""
    stop = threading.Event()
    told = 0

    def read() -> None:
        nonlocal told
        images, rejected, epochs = ray.get(board.read.remote(told))
        for epoch in epochs:
            told += 1
            tell(epoch)
        advance(images + rejected, rejected)

    def poll() -> None:
        while not stop.wait(POLL_S):
            try:
                read()
            except ray.exceptions.RayError:
                return  # The cluster is going away; the training reports why.

    thread = threading.Thread(target=poll, name="camlake-progress", daemon=True)
    thread.start()
    try:
        yield
        stop.set()
        thread.join(timeout=10)
        read()
    finally:
        stop.set()
