"""Who is told how a run goes: the terminal, a log, or a test."""

from contextlib import AbstractContextManager
from typing import Any, Protocol


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
