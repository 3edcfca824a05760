"""Finds an image that kills every process that works on it, and rejects the image instead of trying without end.

Ray restarts a dead worker and gives the same table to the new one. This is right after the loss of a machine, and wrong
where a decoder crashes on one of the images. So an object outside of the worker counts work that did not finish.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa

from schemas.errors import CamlakeError
from schemas.reasons import Reason

TRIES = 3
"""Most processes that a table may kill; after that, most processes that each of its images alone may kill."""


def died_at_start() -> CamlakeError:
    """Return the error for a worker whose process died TRIES times before it could work."""
    return CamlakeError(
        f"{TRIES} processes died while they loaded the network; is there memory for all of them? --actors 1 starts one"
    )


class Attempts(Protocol):
    """Counts, outside of the working process, how often work began and did not finish."""

    def begin(self, key: str) -> int:
        """Return how often the work ``key`` has begun since it last finished, this time included."""

    def finish(self, key: str, *, wait: bool = False) -> None:
        """Set the count of the work ``key`` to 0; with ``wait`` return only when the count is 0."""


class CrashIsolation:
    """Runs a stage on tables; a table that has killed TRIES processes is run image by image.

    Several threads may use one object at the same time. While one thread runs a single image, the other threads wait,
    so that a crash is counted for the image that caused it.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._changed = threading.Condition()
        self._tables_at_work = 0

    def run(self, images: pa.Table, work: Callable[[pa.Table], pa.Table]) -> pa.Table:
        """Return ``work(images)``; an image that kills TRIES processes is passed to ``work`` as rejected (CRASHED).

        Raises CamlakeError where processes go on dying although the image is rejected.
        """
        if not len(images):
            return work(images)
        key = f"{len(images)} from {images['image_id'][0]}"
        with self._shared():
            rows = work(images) if self._attempts.begin(key) <= TRIES else None
        if rows is None:
            rows = pa.concat_tables([self._run_alone(images.slice(row, 1), work) for row in range(len(images))])
        self._attempts.finish(key)
        return rows

    def _run_alone(self, image: pa.Table, work: Callable[[pa.Table], pa.Table]) -> pa.Table:
        key = image["image_id"][0].as_py()
        with self._exclusive():
            begun = self._attempts.begin(key)
            if begun > 2 * TRIES:
                raise CamlakeError(f"processes die again and again, also where they leave out the image {key}")
            crashed = begun > TRIES and image["reason_code"][0].as_py() is None
            rows = work(_rejected(image) if crashed else image)
            # Wait, so that the next image begins after this call: then only the count of a crashing image rises.
            self._attempts.finish(key, wait=True)
        return rows

    @contextmanager
    def _shared(self) -> Iterator[None]:
        with self._changed:
            self._tables_at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._tables_at_work -= 1
                self._changed.notify_all()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._changed:  # held until the block ends, so that no other work begins
            self._changed.wait_for(lambda: not self._tables_at_work)
            yield


def _rejected(image: pa.Table) -> pa.Table:
    values = {"reason_code": Reason.CRASHED, "detail": f"{TRIES} processes died while they worked on it alone"}
    for name, value in values.items():
        field = image.schema.field(name)
        image = image.set_column(image.schema.get_field_index(name), field, pa.array([value], field.type))
    return image
