"""Measure cost and effect of the rules of decoding: complete JPEG blocks, wide gamuts to sRGB, transparency on white.

Run it as ``python -m tests.benchmarks.decoding_rules FOLDER``, with a folder of JPEG photographs. Costs are
milliseconds an image in one thread, the least of five rounds. Effects are mean absolute differences in levels of 255.
"""

import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.images.color import lay_on, to_srgb, wide_gamut_transform
from pipeline.images.decode import DecodeLimits, decode
from pipeline.images.jpeg import read_frame, with_its_end
from tests.color_profiles import ADOBE_RGB, DISPLAY_P3, PROPHOTO, SRGB, profile

LIMITS = DecodeLimits(100_000_000, 100_000_000, 30.0)
MOST_FILES, ROUNDS = 60, 5
FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def milliseconds(work: Callable[[bytes], object], files: Sequence[bytes]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        for data in files:
            work(data)
        rounds.append(time.perf_counter() - started_s)
    return min(rounds) / len(files) * 1000


def as_jpeg(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def by_opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS)


def main(folder: str) -> None:
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:MOST_FILES]
    pictures = [by_opencv(path.read_bytes()) for path in paths]
    megapixels = np.mean([picture.shape[0] * picture.shape[1] for picture in pictures]) / 1e6
    print(f"{len(pictures)} photographs, {megapixels:.2f} megapixels on average")
    for name, options in (("baseline", {}), ("progressive", {"progressive": True})):
        files = [as_jpeg(picture, **options) for picture in pictures]
        asked, unasked = (milliseconds(work, files) for work in (lambda data: decode(data, LIMITS), by_opencv))
        markers = milliseconds(lambda data: with_its_end(data, read_frame(data)), files)
        print(
            f"{name}: every block asked for {asked:.2f} ms, OpenCV without {unasked:.2f} ms; markers {markers:.3f} ms"
        )
    plain = milliseconds(lambda data: decode(data, LIMITS), [as_jpeg(picture) for picture in pictures])
    for name, space in (("sRGB", SRGB), ("Adobe RGB", ADOBE_RGB), ("Display P3", DISPLAY_P3), ("ProPhoto", PROPHOTO)):
        icc = profile(space)
        files = [as_jpeg(picture, icc_profile=icc) for picture in pictures]
        cost = milliseconds(lambda data: decode(data, LIMITS), files)
        changed = np.mean([np.abs(to_srgb(picture, icc).astype(int) - picture).mean() for picture in pictures])
        word = "converted" if wide_gamut_transform(icc) else "left as it is"
        print(f"{name}, {word}: {cost:.2f} ms, without profile {plain:.2f} ms; effect {changed:.1f} levels")
    alphas = [np.linspace(0, 255, picture.shape[1]).astype(np.uint8) for picture in pictures]
    sheets = [
        np.dstack([picture, np.broadcast_to(alpha, picture.shape[:2])])
        for picture, alpha in zip(pictures, alphas, strict=True)
    ]
    started_s = time.perf_counter()
    laid = [lay_on(sheet, "white") for sheet in sheets]
    cost = (time.perf_counter() - started_s) / len(sheets) * 1000
    changed = np.mean([np.abs(one.astype(int) - picture).mean() for one, picture in zip(laid, pictures, strict=True)])
    print(f"transparency on white: {cost:.2f} ms more; effect {changed:.1f} levels for an alpha from 0 to 255")


if __name__ == "__main__":
    main(sys.argv[1])
