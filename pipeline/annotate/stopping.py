"""Stops a run when the system asks for it (SIGTERM: a spot notice, an evicted pod; SIGINT: Ctrl-C)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.storage.patience import PATIENCE
from schemas.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def raising_at_sigterm() -> Iterator[None]:
    """Raise Stopped in the main thread when SIGTERM comes during the block, as Ctrl-C raises KeyboardInterrupt.

    From that signal on nothing waits long for a store that is out of order, in other threads neither.
    """
    signals = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        PATIENCE.hurry()
        raise Stopped if number == signal.SIGTERM else KeyboardInterrupt

    try:
        with _handling(_SIGNALS, stop):
            yield
    finally:
        for _ in range(signals):
            PATIENCE.hurry_no_more()


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Set the event at the first signal during the block, so that the work can end in order, and raise Stopped then.

    From that signal on nothing waits long for a store that is out of order.

    A second signal does what it does outside of the block.
    """
    event, before = threading.Event(), {number: signal.getsignal(number) for number in _SIGNALS}

    def request(number: int, frame: FrameType | None) -> None:
        if not event.is_set():
            PATIENCE.hurry()
        event.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        with _handling(_SIGNALS, request):
            yield event
    finally:
        if event.is_set():
            PATIENCE.hurry_no_more()
    if event.is_set():
        raise Stopped


@contextmanager
def _handling(numbers: tuple[signal.Signals, ...], handler: object) -> Iterator[None]:
    """Handle signals during the block; Python handles them in the main thread only, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
