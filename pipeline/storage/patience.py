"""Patience with a store that is out of order: a failed request is repeated for minutes, with growing random pauses.

A process is patient inside ``patient``, while it works for a run that has begun: by then the store has answered, so
that a failure is an outage and no mistake in a URL. Everywhere else the first failure is final. Whatever ends a run
that failed or was stopped is ``hurried``.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pipeline.storage.store_failures import describe_failure, is_outage, is_store_failure
from schemas.errors import StoreError

LIMIT_S = 300.0
"""How long a request is repeated. A store that restarts or moves takes a minute or two."""
HURRIED_S = 5.0
"""How long a request is repeated once the process is hurried: SIGTERM leaves 20 seconds for all."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""The longest pause before the second try, and before any try; a pause is random between zero and it (full jitter)."""
SAID_AFTER_S, SAID_EVERY_S = 5.0, 30.0
"""An outage is said when it lasts so long, and then now and then."""

_Result = TypeVar("_Result")
Say = Callable[[str], None]


class Patience:
    """The patience of a process, which all of its threads share."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] | None = None
    ) -> None:
        """``clock`` gives seconds; ``sleep``, for tests, waits instead of this object."""
        self._clock, self._sleep = clock, sleep or self._wait
        self._lock = threading.Lock()
        self._patient = self._retries = 0
        self._listeners: list[Say] = []
        self._hurried_s: list[float] = []
        self._since_s: float | None = None
        self._said_s: float | None = None

    def ask(self, doing: str, request: Callable[[], _Result], limit_s: float = LIMIT_S) -> _Result:
        """Return the result of ``request``, which is repeated for up to ``limit_s`` seconds while the store fails.

        Raises StoreError with the line "<doing>: <what went wrong>" for a failure that is final. Errors of camlake and
        mistakes in the program pass unchanged.
        """
        began_s, tries = self._clock(), 0
        while True:
            try:
                result = request()
            except Exception as error:
                if not is_store_failure(error):
                    raise
                tries += 1
                if not is_outage(error) or not self._has_patience(began_s, limit_s):
                    took = f" ({tries} tries in {self._clock() - began_s:.0f} s)" if tries > 1 else ""
                    raise StoreError(f"{doing}: {describe_failure(error)}{took}") from error
                self._count(error)
                self._sleep(random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1))))
            else:
                if tries:
                    self._recovered()
                return result

    @contextmanager
    def patient(self, say: Say | None = None) -> Iterator[None]:
        """Repeat failed requests during the block; ``say`` gets a line when an outage lasts, and when it is over."""
        with self._lock:
            self._patient += 1
            self._listeners += [say] if say else []
        try:
            yield
        finally:
            with self._lock:
                self._patient -= 1
                if say:
                    self._listeners.remove(say)

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Repeat failed requests for a few seconds only during the block; pauses of other threads are cut short."""
        self.hurry()
        try:
            yield
        finally:
            self.hurry_no_more()

    def hurry(self) -> None:
        """Begin a block of ``hurried``. A signal's handler may call this: it takes no lock."""
        self._hurried_s.append(self._clock())

    def hurry_no_more(self) -> None:
        """End a block of ``hurried``."""
        self._hurried_s.pop()

    def count_retry(self) -> None:
        """Count a request that something else repeats."""
        with self._lock:
            self._retries += 1

    def take_retries(self) -> int:
        """Return how many requests were repeated since the last call."""
        with self._lock:
            taken, self._retries = self._retries, 0
            return taken

    def _has_patience(self, began_s: float, limit_s: float) -> bool:
        now_s = self._clock()
        if self._hurried_s and now_s - max(began_s, self._hurried_s[0]) > HURRIED_S:
            return False
        return self._patient > 0 and now_s - began_s < limit_s

    def _wait(self, seconds: float) -> None:
        ends_s = self._clock() + (min(seconds, HURRIED_S / 10) if self._hurried_s else seconds)
        hurried = bool(self._hurried_s)
        while (left_s := ends_s - self._clock()) > 0 and bool(self._hurried_s) == hurried:
            time.sleep(min(left_s, HURRIED_S / 10))

    def _count(self, error: Exception) -> None:
        now_s = self._clock()
        with self._lock:
            self._retries += 1
            self._since_s = now_s if self._since_s is None else self._since_s
            lasts_s = now_s - self._since_s
            quiet = self._said_s is not None and now_s - self._said_s < SAID_EVERY_S
            if lasts_s < SAID_AFTER_S or quiet:
                return
            self._said_s = now_s
        self._tell(
            f"the output store has been failing for {lasts_s:.0f} s ({describe_failure(error)}); each request is tried"
            f" again for up to {LIMIT_S / 60:.0f} minutes"
        )

    def _recovered(self) -> None:
        with self._lock:
            since_s, said, self._since_s, self._said_s = self._since_s, self._said_s is not None, None, None
        if said and since_s is not None:
            self._tell(f"the output store answers again after {self._clock() - since_s:.0f} s")

    def _tell(self, text: str) -> None:
        for say in list(self._listeners):
            say(text)


PATIENCE = Patience()
"""The patience of this process."""


def ask_store(doing: str, request: Callable[[], _Result], limit_s: float = LIMIT_S) -> _Result:
    """Return the result of ``request`` to a store; see ``Patience.ask``."""
    return PATIENCE.ask(doing, request, limit_s)
