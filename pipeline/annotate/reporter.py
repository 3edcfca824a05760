"""Who is told how a run goes: the terminal, a log, or a test."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

LINE_EVERY_S = 5.0
"""Without a terminal, progress is a line this often."""


class Advance(Protocol):
    """Reports progress: how many inputs are done so far, and how many of them were rejected."""

    def __call__(self, done: int, rejected: int = 0) -> None:
        """Show it."""


class Reporter(Protocol):
    """What a run needs of whoever follows it; ``jobs.console.Screen`` is the one of the commands."""

    def say(self, text: str, **facts: Any) -> None:
        """Report a step; ``facts`` say the same in numbers."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """Show the progress of ``total`` inputs while the block runs."""


class LogReporter:
    """Writes the steps and the progress of a run to a logger, at level INFO."""

    def __init__(self, logger_name: str) -> None:
        self._logger = logging.getLogger(logger_name)

    def say(self, text: str, **facts: Any) -> None:
        """Log a step; its numbers are in ``text`` already."""
        self._logger.info(text)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Log the progress of ``total`` inputs now and then while the block runs."""
        yield progress_lines(self.say, what, total)


def progress_lines(say: Callable[..., None], what: str, total: int) -> Advance:
    """Return a reporter of progress that calls ``say`` with a line, and the same in numbers, every LINE_EVERY_S."""
    started = last = time.monotonic()

    def advance(done: int, rejected: int = 0) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S:
            return
        last = now
        rate = done / (now - started)
        left_s = round((total - done) / rate) if rate else None
        left = f", {left_s} s left" if left_s is not None else ""
        text = f"{what}: {done}/{total}, {rate:.1f} images/s, {rejected} rejected{left}"
        say(text, done=done, total=total, images_per_s=round(rate, 2), rejected=rejected, left_s=left_s)

    return advance
