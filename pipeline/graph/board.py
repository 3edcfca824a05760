"""The board: where the processes of a training say how far they are, and the driver reads it while they learn."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import ray

from pipeline.graph.progress import answer, beside_driver, following
from pipeline.graph.training_files import Epoch

_News = tuple[int, int, list[Epoch]]
"""Images, those of them that were rejected, and new epochs."""


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

    def read(self, known: int) -> _News:
        """Return images and rejected so far, and the epochs after the first ``known``."""
        return self._images, self._rejected, self._epochs[known:]


def start_board() -> Any:
    """Return a board beside the driver, so that the training outlives every other machine."""
    return beside_driver(Board)


def following_board(
    board: Any, advance: Callable[[int, int], None], tell: Callable[[Epoch], None]
) -> AbstractContextManager[None]:
    """Pass on twice a second what the board says, each epoch once, and once more when the body has ended well."""
    told = 0

    def read() -> _News:
        news: _News = answer(board.read, told)
        return news

    def show(news: _News) -> None:
        nonlocal told
        images, rejected, epochs = news
        for epoch in epochs:
            told += 1
            tell(epoch)
        advance(images + rejected, rejected)

    return following(read, show)
