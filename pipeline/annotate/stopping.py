"""Stops a run when the system asks for it (SIGTERM: a spot notice, an evicted pod; SIGINT: Ctrl-C)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.storage.patience import PATIENCE
from schemas.errors import Stopped, StoreError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GIVE_UP_S = 16.0
"""How long a command may take to end in order after a signal; a spot notice or an eviction leaves some 20 s or more."""
DRAIN_S = 10.0
"""How long after a signal the work that was begun may take until it is committed."""
_asked = threading.Event()
"""Set by the first signal of a command."""


@contextmanager
def raising_at_sigterm(give_up: Callable[[], None]) -> Iterator[None]:
    """Raise Stopped in the main thread when SIGTERM comes during the block, as Ctrl-C raises KeyboardInterrupt.

    From that signal on nothing waits long for a store that is out of order, in other threads neither, and any error is
    raised as Stopped: a library at work may have made an error of its own of the signal, as DuckDB does, and the signal
    may have reached the workers too. Where the block has not ended GIVE_UP_S after the first signal, another thread
    calls ``give_up``.
    """
    signals, over = 0, threading.Event()
    _asked.clear()

    def watch() -> None:
        _asked.wait()
        if not over.wait(GIVE_UP_S):
            give_up()

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        _asked.set()
        PATIENCE.hurry()
        raise Stopped if number == signal.SIGTERM else KeyboardInterrupt

    threading.Thread(target=watch, name="camlake-give-up", daemon=True).start()
    try:
        with _handling(_SIGNALS, stop):
            yield
    except Exception as error:
        if _asked.is_set():
            raise Stopped from error
        raise
    finally:
        over.set()
        _asked.set()  # The watching thread ends.
        for _ in range(signals):
            PATIENCE.hurry_no_more()


@contextmanager
def stop_requested(late: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """Set the event at the first signal during the block, so that the work can end in order, and raise Stopped then.

    From that signal on nothing waits long for a store that is out of order, and what such a store still refuses is
    left to the next run. Where the block has not ended DRAIN_S after the signal, another thread calls ``late``. A
    second signal does what it does outside of the block.
    """
    event, before = threading.Event(), {number: signal.getsignal(number) for number in _SIGNALS}
    ending, over = threading.Event(), threading.Event()

    def watch() -> None:
        ending.wait()
        if not over.wait(DRAIN_S):
            late()

    def request(number: int, frame: FrameType | None) -> None:
        if not event.is_set():
            PATIENCE.hurry()
        _asked.set()
        event.set()
        ending.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    threading.Thread(target=watch, name="camlake-drain", daemon=True).start()
    try:
        with _handling(_SIGNALS, request):
            yield event
    except StoreError as error:
        if event.is_set():
            raise Stopped from error
        raise
    finally:
        over.set()
        ending.set()  # The watching thread ends.
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
