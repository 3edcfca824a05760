"""Encoded images in, upright RGB pixels or a true reason out, bounded in bytes, pixels and time."""

import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.container import Header, open_header, refusal
from pipeline.images.ends import DECODER_ERRORS, ends_early
from pipeline.images.jpeg import JPEG_START, check_scans, read_frame
from pipeline.images.pixels import orientation, rgb8, upright
from schemas.errors import RejectedImage
from schemas.reasons import Reason

T = TypeVar("T")

_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

# What OpenCV can't read, Pillow gets next; a line on stderr for each such image would only hide what matters.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True)
class DecodeLimits:
    """How much one image may cost."""

    max_pixels: int
    """Width times height, as the header declares them."""
    max_bytes: int
    """Size of the encoded image."""
    timeout_s: float
    """Seconds that decoding, and what ``Decoder.map`` does right after, may take; ``decode`` alone ignores it."""


class DecodedImage(NamedTuple):
    """An image as it is meant to be seen."""

    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB, upright, C-contiguous, writable."""
    format: str
    """Name of the format by content: "JPEG", "PNG", "WEBP", "TIFF", "HEIF"…"""


def decode(data: bytes, limits: DecodeLimits) -> DecodedImage:
    """Return the first picture of an encoded image as upright 8-bit RGB.

    The EXIF orientation is applied for every format; broken EXIF is ignored. Animations, multi-page and multi-picture
    files give their first frame. How other than 8-bit RGB is converted stands at ``rgb8``. OpenCV decodes JPEG
    and plain PNG, Pillow everything else and what OpenCV refuses.

    Raises RejectedImage with: EMPTY; TOO_MANY_BYTES and TOO_MANY_PIXELS, both before a pixel is decoded;
    NOT_AN_IMAGE; UNSUPPORTED; TRUNCATED; CORRUPT. MemoryError passes: it says nothing about the image.
    """
    if not data:
        raise RejectedImage(Reason.EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise RejectedImage(Reason.TOO_MANY_BYTES, f"{len(data)} bytes; max_bytes is {limits.max_bytes}")
    # Pillow warns of odd metadata and large pictures; both are settled here. Set again for each image, because filters
    # are process-wide and catch_warnings blocks of others undo them.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return _decode_jpeg(data, limits) if data.startswith(JPEG_START) else _decode_other(data, limits)


def _decode_jpeg(data: bytes, limits: DecodeLimits) -> DecodedImage:
    frame = read_frame(data)
    _check_pixels(frame.size_wh, limits)
    check_scans(data, frame.scan_start)
    plain = frame.components in (1, 3) and frame.bits == 8
    pixels = _by_opencv(data, frame.size_wh) if plain else None
    if pixels is None:
        return _by_pillow(data, open_header(data))
    return DecodedImage(upright(pixels, _jpeg_orientation(data) if frame.metadata else 1), "JPEG")


def _jpeg_orientation(data: bytes) -> int:
    try:
        return orientation(open_header(data).image)
    except RejectedImage:  # metadata that Pillow stumbles over, in a JPEG that OpenCV has decoded
        return 1


def _decode_other(data: bytes, limits: DecodeLimits) -> DecodedImage:
    header = open_header(data)
    _check_pixels(header.image.size, limits)
    pixels = _by_opencv(data, header.image.size) if _opencv_reads_right(data, header) else None
    if pixels is None:
        return _by_pillow(data, header)
    return DecodedImage(upright(pixels, orientation(header.image)), header.format)


def _check_pixels(size_wh: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size_wh
    if width < 1 or height < 1:
        raise RejectedImage(Reason.CORRUPT, f"size {width}x{height}")
    if width * height > limits.max_pixels:
        raise RejectedImage(Reason.TOO_MANY_PIXELS, f"{width}x{height} pixels; max_pixels is {limits.max_pixels}")


def _opencv_reads_right(data: bytes, header: Header) -> bool:
    """Tell whether OpenCV gives the pixels that Pillow gives, and sooner, for a format other than JPEG.

    That is plain PNG, sooner by 1.2 times (JPEG: 1.6; medians over photographs of 500×375). Left to Pillow: PNG of
    other colours than gray and RGB, animated or cut off, with a colour profile (libpng would write to stderr about
    many of them), or with EXIF after the pixels, which only a load finds; WebP (OpenCV shows half of a damaged file
    without a word); BMP (OpenCV misreads 32-bit masks); AVIF (OpenCV takes longer).
    """
    image = header.image
    if header.format != "PNG" or image.mode not in ("L", "RGB"):
        return False
    if getattr(image, "is_animated", False) or ends_early(header.format, data):
        return False
    late_exif = "exif" not in image.info and b"eXIf" in data
    return not ("icc_profile" in image.info or "transparency" in image.info or late_exif)


def _by_opencv(data: bytes, size_wh: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Return the picture as stored, or None where OpenCV refuses it or reads another size than the header's."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _OPENCV_FLAGS)
    except cv2.error:
        return None
    if pixels is None or pixels.shape[1::-1] != size_wh:
        return None
    return np.asarray(pixels, np.uint8)


def _by_pillow(data: bytes, header: Header) -> DecodedImage:
    try:
        pixels = rgb8(header.image)
    except DECODER_ERRORS as error:
        raise refusal(error, header.format, data) from error
    return DecodedImage(upright(pixels, orientation(header.image)), header.format)


class Decoder:
    """Decodes images in threads and bounds the time of each.

    A thread can't be stopped from outside. One that is over its time is left behind: its result is dropped, another
    thread takes its place, and being a daemon it keeps no process alive. OpenCV and Pillow's larger decoders let
    other threads run while they work; the limits on pixels and scans bound what a thread left behind still costs.
    """

    def __init__(self, limits: DecodeLimits, threads: int) -> None:
        """``threads``: at least 1; images decoded at the same time. They start here and end with this object."""
        self._limits = limits
        self._threads = threads
        # Kept between calls: with a new thread for each batch of 32 photographs decoding took 4 % longer.
        self._batches: _Batches = SimpleQueue()
        for _ in range(threads):
            _start_thread(self._batches)
        weakref.finalize(self, _stop_threads, self._batches, threads)

    def map(self, blobs: Sequence[bytes | None], then: Callable[[DecodedImage], T]) -> list[T | RejectedImage]:
        """Return ``then(decode(blob))`` for each blob, in order, or the RejectedImage that ended it.

        ``then`` (a resize, say) runs in the decoding thread; its time counts. An image over ``timeout_s`` gives
        DECODE_TIMEOUT; a blob that is None, bytes that never came, gives FETCH_FAILED. Any other exception of ``then``
        is raised here, after which no further image is begun.
        """
        limits = self._limits
        batch = _Batch(blobs, lambda blob: then(decode(blob, limits)))
        return batch.run(self._batches, min(self._threads, len(blobs)), limits.timeout_s)


_Batches: TypeAlias = "SimpleQueue[_Batch[Any] | None]"


def _start_thread(batches: _Batches) -> None:
    threading.Thread(target=_serve, args=(batches,), name="decode", daemon=True).start()


def _serve(batches: _Batches) -> None:
    """Work on each batch that comes, until None comes or the thread is left behind."""
    while True:
        batch = batches.get()
        if batch is None or not batch.work():
            return
        del batch  # or it would hold its images until the next one comes


def _stop_threads(batches: _Batches, threads: int) -> None:
    for _ in range(threads):
        batches.put(None)


class _Batch(Generic[T]):
    """One call of ``Decoder.map``: what is left to do, which image runs since when, and the results."""

    def __init__(self, blobs: Sequence[bytes | None], one: Callable[[bytes], T]) -> None:
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
                    for _ in range(self._leave_behind(timeout_s)):
                        _start_thread(batches)
                        batches.put(self)
            finally:
                self._left.clear()
            if self._failure is not None:
                raise self._failure
        return [self._results[index] for index in range(len(self._blobs))]

    def _leave_behind(self, timeout_s: float) -> int:
        """Reject the images that are over their time; return how many, each of them a thread that is lost."""
        now_s = time.monotonic()
        late = [index for index, started_s in self._started_s.items() if now_s - started_s >= timeout_s]
        for index in late:
            del self._started_s[index]
            self._results[index] = RejectedImage(Reason.DECODE_TIMEOUT, f"not decoded within {timeout_s:g} s")
        return len(late)

    def work(self) -> bool:
        """Take one image after the other until none is left; return False where the thread was left behind."""
        while True:
            with self._changed:
                if not self._left:
                    return True
                index = self._left.popleft()
                self._started_s[index] = time.monotonic()
            try:
                outcome = self._outcome(self._blobs[index])
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

    def _outcome(self, blob: bytes | None) -> T | RejectedImage:
        if blob is None:
            return RejectedImage(Reason.FETCH_FAILED, "no bytes came")
        try:
            return self._one(blob)
        except RejectedImage as rejected:
            # A new one, because the traceback would keep the image's bytes and pixels alive with the result.
            return RejectedImage(rejected.reason, rejected.detail)
