"""The progress of a training: its processes report to an actor, and the driver reads the actor while they learn."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from pipeline.graph.progress import answer, beside_driver, following
from pipeline.graph.train.checkpoints import Epoch
from schemas.errors import CamlakeError

_News = tuple[int, int, list[Epoch]]
"""The numbers of images that could be used and of rejected images so far, and the epochs since the last read."""


@ray.remote(num_cpus=0)
class TrainProgressActor:
    """Keeps the reports of the processes of a training; it takes none of the planned CPUs."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[int, int]] = {}
        self._epochs: list[Epoch] = []
        self._before: int | None = None
        self._processes: list[Any] = []

    def join(self, process: Any) -> None:
        """Keep the handle of a process that learns, so that the driver can end the process."""
        self._processes.append(process)

    def processes(self) -> list[Any]:
        """Return the handles of all processes that have joined so far, dead ones included."""
        return self._processes

    def begin(self, history: list[Epoch]) -> None:
        """Go on after the epochs ``history`` of this training; called at every start of the processes.

        Dead processes may have reported images of an epoch that is now done again; these counts are dropped. They may
        also have written an epoch without a report; this epoch is taken from ``history``.
        """
        self._before = len(history) if self._before is None else self._before
        self._epochs = history[self._before :]
        self._counts = {epoch: counts for epoch, counts in self._counts.items() if epoch <= len(history)}

    def add_batch(self, epoch: int, images: int, rejected: int) -> None:
        """Count the images of a batch; ``epoch`` is a number from 1."""
        images_so_far, rejected_so_far = self._counts.get(epoch, (0, 0))
        self._counts[epoch] = images_so_far + images, rejected_so_far + rejected

    def add_epoch(self, epoch: Epoch) -> None:
        """Keep the figures of an epoch that has ended."""
        self._epochs.append(epoch)

    def epochs_done(self) -> int | None:
        """Return how many epochs of the training are done; None where no process has begun yet."""
        return None if self._before is None else self._before + len(self._epochs)

    def read(self, known: int) -> _News:
        """Return the numbers of images and of rejected images so far, and the epochs after the first ``known``."""
        images, rejected = map(sum, zip((0, 0), *self._counts.values(), strict=True))
        return images, rejected, self._epochs[known:]


def start_train_progress() -> Any:
    """Return a new TrainProgressActor on the driver's machine, so that the loss of another machine does not end it."""
    return beside_driver(TrainProgressActor)


def epochs_done(progress: Any) -> int | None:
    """Return how many epochs are done; None where the progress actor does not know it or does not answer.

    Raises CamlakeError where the progress actor is dead, because nothing else has its state.
    """
    try:
        done: int | None = answer(progress.epochs_done)
    except ActorDiedError as error:
        raise CamlakeError(
            "the board was lost, the process that collects what the others report; run the same command again to go on"
        ) from error
    except RayError:
        return None
    return done


def following_epochs(
    progress: Any, advance: Callable[[int, int], None], on_epoch: Callable[[Epoch], None]
) -> AbstractContextManager[None]:
    """Pass on the progress actor's state twice a second, and once more when the body has ended without an error.

    ``advance`` gets the numbers of images done and of rejected images, ``on_epoch`` the figures of each epoch once.
    """
    passed_on = 0

    def read() -> _News:
        news: _News = answer(progress.read, passed_on)
        return news

    def show(news: _News) -> None:
        nonlocal passed_on
        images, rejected, epochs = news
        for epoch in epochs:
            passed_on += 1
            on_epoch(epoch)
        advance(images + rejected, rejected)

    return following(read, show)
