"""A pool of threads that decode images; the time of each image is bounded."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from pipeline.images.decode import DecodedImage, DecodeLimits, LeastSize, decode
from schemas.errors import RejectedImage
from schemas.options.annotate import Alpha
from schemas.reasons import Reason

T = TypeVar("T")


class DecodePool:
    """Decodes images in threads and bounds the time of each image.

    A thread can't be stopped from outside. A thread that exceeds the time of its image is abandoned: its result is
    dropped, another thread takes its place, and as a daemon it keeps no process alive. libjpeg-turbo, OpenCV and
    Pillow's larger decoders let other threads run while they work; the limits on pixels and scans bound what an
    abandoned thread still costs.
    """

    def __init__(
        self, limits: DecodeLimits, threads: int, least_hw: LeastSize | None = None, alpha: Alpha = "white"
    ) -> None:
        """Start ``threads`` threads, at least 1, which end with this object; each decodes one image at a time.

        ``least_hw`` and ``alpha``: see ``decode``.
        """
        self._limits, self._least_hw, self._alpha = limits, least_hw, alpha
        self._threads = threads
        # Kept between calls: with a new thread for each batch of 32 photographs decoding took 4 % longer.
        self._batches: _Batches = SimpleQueue()
        for _ in range(threads):
            _start_thread(self._batches)
        weakref.finalize(self, _stop_threads, self._batches, threads)

    def map(self, blobs: Sequence[bytes | None], then: Callable[[int, DecodedImage], T]) -> list[T | RejectedImage]:
        """Return ``then(index, decode(blob))`` for each blob, in order, or the RejectedImage that it raised.

        ``then``, for example a resize, runs in the decoding thread and its time counts. For an image that was rejected
        for its time it may still run when this method returns. An image over ``timeout_s`` gives DECODE_TIMEOUT; a blob
        that is None, because no bytes came, gives FETCH_FAILED. Any other exception of ``then`` is raised here, after
        which no further image is begun.
        """
        limits, least_hw, alpha = self._limits, self._least_hw, self._alpha
        batch = _Batch(blobs, lambda index, blob: then(index, decode(blob, limits, least_hw, alpha)))
        return batch.run(self._batches, min(self._threads, len(blobs)), limits.timeout_s)


_Batches: TypeAlias = "SimpleQueue[_Batch[Any] | None]"


def _start_thread(batches: _Batches) -> None:
    threading.Thread(target=_serve, args=(batches,), name="decode", daemon=True).start()


def _serve(batches: _Batches) -> None:
    """Work on each batch of the queue, until None comes or the thread is abandoned."""
    while True:
        batch = batches.get()
        if batch is None or not batch.work():
            return
        del batch  # or it would hold its images until the next one comes


def _stop_threads(batches: _Batches, threads: int) -> None:
    for _ in range(threads):
        batches.put(None)


class _Batch(Generic[T]):
    """One call of ``DecodePool.map``: the images left to do, the start of each running image, and the results."""

    def __init__(self, blobs: Sequence[bytes | None], one: Callable[[int, bytes], T]) -> None:
        self._blobs = blobs
        self._one = one
        self._left = deque(range(len(blobs)))
        self._started_s: dict[int, float] = {}
        self._results: dict[int, T | RejectedImage] = {}
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def run(self, batches: _Batches, threads: int, timeout_s: float) -> list[T | RejectedImage]:
        for _ in range(threads):
            batches.put(self)
        with self._changed:
            try:
                while len(self._results) < len(self._blobs) and self._failure is None:
                    oldest_s = min(self._started_s.values(), default=time.monotonic())
                    self._changed.wait(max(0.0, oldest_s + timeout_s - time.monotonic()))
                    for _ in range(self._abandon(timeout_s)):
                        _start_thread(batches)
                        batches.put(self)
            finally:
                self._left.clear()
            if self._failure is not None:
                raise self._failure
        return [self._results[index] for index in range(len(self._blobs))]

    def _abandon(self, timeout_s: float) -> int:
        """Reject the images that exceed their time; return their number, which is the number of abandoned threads."""
        now_s = time.monotonic()
        late = [index for index, started_s in self._started_s.items() if now_s - started_s >= timeout_s]
        for index in late:
            del self._started_s[index]
            self._results[index] = RejectedImage(Reason.DECODE_TIMEOUT, f"not decoded within {timeout_s:g} s")
        return len(late)

    def work(self) -> bool:
        """Decode one image after the other until none is left; return False where the thread was abandoned."""
        while True:
            with self._changed:
                if not self._left:
                    return True
                index = self._left.popleft()
                self._started_s[index] = time.monotonic()
            try:
                outcome = self._outcome(index)
            except BaseException as error:  # a thread's outermost edge: ``run`` raises it where the caller is
                with self._changed:
                    if self._started_s.pop(index, None) is None:
                        return False
                    self._failure = error
                    self._changed.notify()
                continue
            with self._changed:
                if self._started_s.pop(index, None) is None:
                    return False
                self._results[index] = outcome
                if len(self._results) == len(self._blobs):
                    self._changed.notify()

    def _outcome(self, index: int) -> T | RejectedImage:
        blob = self._blobs[index]
        if blob is None:
            return RejectedImage(Reason.FETCH_FAILED, "no bytes came")
        try:
            return self._one(index, blob)
        except RejectedImage as rejected:
            # A new one, because the traceback would keep the image's bytes and pixels alive with the result.
            return RejectedImage(rejected.reason, rejected.detail)
