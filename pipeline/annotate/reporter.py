"""Reports the progress of a run to the terminal, a log or a test."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ProgressKind = Literal["auto", "bar", "plain", "log"]

LINE_EVERY_S = 5.0
"""Seconds between two lines of progress where there is no terminal."""


class RunProgress(NamedTuple):
    """Sums over all workers since the start of the run."""

    images: int = 0
    rejected: int = 0
    busy_s: float = 0.0
    """Sum of the seconds that the workers spent in the network and on its results."""
    decode_s: float = 0.0
    """Sum of the seconds that the workers spent on decoding; 0 where other processes decode."""
    bytes_in: int = 0
    """Encoded bytes of the images that were read."""
    retries: int = 0
    """Requests to stores that were repeated, without those that commit records count."""
    notes: tuple[str, ...] = ()
    """What the user is to know, each text once."""

    def plus(self, more: "RunProgress") -> "RunProgress":
        """Return the sums of both."""
        return RunProgress(
            self.images + more.images,
            self.rejected + more.rejected,
            self.busy_s + more.busy_s,
            self.decode_s + more.decode_s,
            self.bytes_in + more.bytes_in,
            self.retries + more.retries,
            tuple(dict.fromkeys(self.notes + more.notes)),
        )


class SaidOnce:
    """Says texts, each of them once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, texts: Iterable[str]) -> None:
        """Say those of ``texts`` that were not said before."""
        for text in texts:
            if text not in self._said:
                self._said.add(text)
                self._say(text)


class Advance(Protocol):
    """Reports progress: how many inputs are done so far, and how many of them were rejected."""

    def __call__(self, done: int, rejected: int = 0) -> None:
        """Show the progress."""


class Reporter(Protocol):
    """The interface through which a run reports; the commands use ``jobs.terminal.console.Screen``."""

    def say(self, text: str, **facts: Any) -> None:
        """Report a step; ``facts`` are the numbers in ``text`` by name."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """Show the progress of ``total`` inputs while the block runs."""


class LineReporter:
    """Writes the steps and the progress of a run as lines."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        """Call ``write`` with each line."""
        self._write = write

    def say(self, text: str, **facts: Any) -> None:
        """Write a step; ``facts`` are not written, because ``text`` contains them."""
        self._write(text)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Write the progress of ``total`` inputs every LINE_EVERY_S while the block runs."""
        yield progress_lines(self.say, what, total)


class BarReporter:
    """Writes the steps of a run as lines and shows its progress as a bar, on a terminal or in a notebook."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, **facts: Any) -> None:
        """Write a step; ``facts`` are not written, because ``text`` contains them."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """Show the progress of ``total`` inputs while the block runs."""
        return progress_bar(self._console, what, total)


def reporter_for(kind: ProgressKind, logger_name: str) -> Reporter:
    """Return a reporter for a call from Python.

    ``bar``: lines and a bar, ``plain``: lines on standard error, ``log``: a logger at level INFO. ``auto`` is a bar on
    a terminal and in a notebook, else the logger.
    """
    console = Console(stderr=True)
    if kind == "bar" or (kind == "auto" and (console.is_terminal or console.is_jupyter)):
        return BarReporter(console)
    if kind == "plain":
        return LineReporter(lambda text: print(text, file=sys.stderr))
    return LineReporter(logging.getLogger(logger_name).info)


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Advance]:
    """Show a bar of ``total`` inputs, with inputs/s, time left and rejects, which is gone when the block ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rejects]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", rejects="")
        started = time.monotonic()

        def advance(done: int, rejected: int = 0) -> None:
            rate = f"{done / max(time.monotonic() - started, 1e-9):.1f}/s" if done else "waiting for the first"
            bar.update(task, completed=done, rate=rate, rejects=f"{rejected} rejected" if rejected else "")

        yield advance


def progress_lines(say: Callable[..., None], what: str, total: int) -> Advance:
    """Return a function that calls ``say`` with a line and its numbers at most every LINE_EVERY_S."""
    started = last = time.monotonic()

    def advance(done: int, rejected: int = 0) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S:
            return
        last = now
        if not done:
            say(f"{what}: waiting for the first of {total}, {now - started:.0f} s so far", done=0, total=total)
            return
        rate = done / (now - started)
        left_s = round((total - done) / rate)
        text = f"{what}: {done}/{total}, {rate:.1f} images/s, {rejected} rejected, {left_s} s left"
        say(text, done=done, total=total, images_per_s=round(rate, 2), rejected=rejected, left_s=left_s)

    return advance


def every_few_seconds(say: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls ``say`` the first time, and then at most every LINE_EVERY_S."""
    last: float | None = None

    def now_and_then(text: str, **facts: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None or now - last >= LINE_EVERY_S:
            last = now
            say(text, **facts)

    return now_and_then
