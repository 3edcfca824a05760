"""The board: where the processes of a training say how far they are, and the driver reads it while they learn."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from pipeline.graph.progress import answer, beside_driver, following
from pipeline.graph.train.checkpoints import Epoch
from schemas.errors import CamlakeError

_News = tuple[int, int, list[Epoch]]
"""Images, those of them that were rejected, and new epochs."""


@ray.remote(num_cpus=0)
class TrainProgressActor:
    """Where the processes report to the driver; takes no CPU of the plan."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[int, int]] = {}
        self._epochs: list[Epoch] = []
        self._before: int | None = None
        self._processes: list[Any] = []

    def join(self, process: Any) -> None:
        """Note the handle of a process that learns, so that the driver can end it."""
        self._processes.append(process)

    def processes(self) -> list[Any]:
        """Return the handles of all processes there were so far."""
        return self._processes

    def begin(self, history: list[Epoch]) -> None:
        """Go on after these epochs, which those that were done when the training started lead.

        Processes that died may have counted a part of the next epoch, which is done again, and may have written an
        epoch without a word about it.
        """
        self._before = len(history) if self._before is None else self._before
        self._epochs = history[self._before :]
        self._counts = {epoch: counts for epoch, counts in self._counts.items() if epoch <= len(history)}

    def add(self, epoch: int, images: int, rejected: int) -> None:
        """Count a batch of an epoch, which is a number from 1."""
        images_so_far, rejected_so_far = self._counts.get(epoch, (0, 0))
        self._counts[epoch] = images_so_far + images, rejected_so_far + rejected

    def tell(self, epoch: Epoch) -> None:
        """Note a finished epoch."""
        self._epochs.append(epoch)

    def done(self) -> int | None:
        """Return how many epochs are done, those before this start included; None where no process knows yet."""
        return None if self._before is None else self._before + len(self._epochs)

    def read(self, known: int) -> _News:
        """Return images and rejected so far, and the epochs after the first ``known``."""
        images, rejected = map(sum, zip((0, 0), *self._counts.values(), strict=True))
        return images, rejected, self._epochs[known:]


def start_board() -> Any:
    """Return a board beside the driver, so that the training outlives every other machine."""
    return beside_driver(TrainProgressActor)


def epochs_done(board: Any) -> int | None:
    """Return how many epochs are done, None where that is not known now.

    Raises CamlakeError where the board is dead: what it knew is nowhere else.
    """
    try:
        done: int | None = answer(board.done)
    except ActorDiedError as error:
        raise CamlakeError(
            "the board was lost, the process that collects what the others report; run the same command again to go on"
        ) from error
    except RayError:
        return None
    return done


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
