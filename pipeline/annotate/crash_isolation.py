"""Finds the image that kills every process that works on it, so that a retry without end becomes one rejected row.

Ray restarts a dead worker and hands it the same table again, which is right when a machine went away and wrong when a
decoder crashes on one of the images. Somebody who outlives the worker counts what was begun and not finished.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa

from schemas.reasons import Reason

TRIES = 3
"""Times that a table, and then each of its images alone, may take its process down."""


class Attempts(Protocol):
    """Counts, outside of the process that works, which work was begun and not finished."""

    def begin(self, key: str) -> int:
        """Return how often the work ``key`` was begun without being finished, this time included."""

    def finish(self, key: str, *, wait: bool = False) -> None:
        """Forget the work ``key``; with ``wait`` return only when it is forgotten."""


class CrashIsolation:
    """Runs a stage on tables, and image by image on one that has killed TRIES processes.

    Threads may call it side by side. An image of such a table is then worked on with nothing beside it, so that no
    other one is taken for the culprit.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._changed = threading.Condition()
        self._tables_at_work = 0

    def run(self, images: pa.Table, work: Callable[[pa.Table], pa.Table]) -> pa.Table:
        """Return ``work(images)``; an image that keeps killing its process goes through ``work`` as rejected."""
        if not len(images):
            return work(images)
        key = f"{len(images)} from {images['image_id'][0]}"
        with self._beside_others():
            rows = work(images) if self._attempts.begin(key) <= TRIES else None
        if rows is None:
            rows = pa.concat_tables([self._run_alone(images.slice(row, 1), work) for row in range(len(images))])
        self._attempts.finish(key)
        return rows

    def _run_alone(self, image: pa.Table, work: Callable[[pa.Table], pa.Table]) -> pa.Table:
        key = image["image_id"][0].as_py()
        with self._with_nothing_beside():
            if self._attempts.begin(key) > TRIES and image["reason_code"][0].as_py() is None:
                rows = work(_rejected(image))
            else:
                rows = work(image)
            # Finished before the next image begins, so that only the culprit's count goes on rising.
            self._attempts.finish(key, wait=True)
        return rows

    @contextmanager
    def _beside_others(self) -> Iterator[None]:
        with self._changed:
            self._tables_at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._tables_at_work -= 1
                self._changed.notify_all()

    @contextmanager
    def _with_nothing_beside(self) -> Iterator[None]:
        with self._changed:  # held to the end, so that nothing begins meanwhile
            self._changed.wait_for(lambda: not self._tables_at_work)
            yield


def _rejected(image: pa.Table) -> pa.Table:
    values = {"reason_code": str(Reason.CRASHED), "detail": f"{TRIES} processes died while they worked on it alone"}
    for name, value in values.items():
        field = image.schema.field(name)
        image = image.set_column(image.schema.get_field_index(name), field, pa.array([value], field.type))
    return image
