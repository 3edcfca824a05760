"""Writes words on pictures, and puts shapes of the same sizes and colours in their place, for a detector of words."""

import string
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

HEIGHTS = (0.07, 0.14)
"""Range of the height of a word's ink as a share of the picture's shorter side: one to two cells of 14."""
WORDS = (1, 2)
"""Least and greatest number of words of a picture."""
_LETTERS = (3, 8)
_TRIES = 20
_PROBE = 100
"""Size of a font at which the height of a word's ink is found."""


class TextPair(NamedTuple):
    """A picture with words, and the same with shapes in their place."""

    words: Pixels
    """(H, W, 3) uint8, RGB."""
    shapes: Pixels
    boxes_xyxy: NDArray[np.float64]
    """(N, 4) half-open pixels: the extent of each word's ink; N is 1 or 2."""


def write_words(rng: np.random.Generator, pixels: Pixels) -> TextPair:
    """Return ``pixels`` (H, W, 3) RGB with random words at random places, and with shapes there instead.

    The words are random letters in random fonts, in a colour that differs clearly from what is under them. The same
    state of ``rng`` gives the same pictures.
    """
    words, shapes = pixels.copy(), pixels.copy()
    boxes: list[NDArray[np.int64]] = []
    for _ in range(int(rng.integers(WORDS[0], WORDS[1] + 1))):
        for _ in range(_TRIES):
            mask = _mask(rng, min(pixels.shape[:2]))
            height, width = mask.shape
            if height < pixels.shape[0] and width < pixels.shape[1]:
                x, y = (int(rng.integers(0, pixels.shape[1 - axis] - mask.shape[1 - axis])) for axis in (0, 1))
                box = np.array([x, y, x + width, y + height])
                if not any(_meet(box, other) for other in boxes):
                    break
        else:
            continue
        boxes.append(box)
        color = _color(rng, pixels[y : y + height, x : x + width])
        _ink(words, box, mask, color)
        _ink(shapes, box, _shape(rng, mask.shape), color)
    return TextPair(words, shapes, np.array(boxes, np.float64).reshape(-1, 4))


def _mask(rng: np.random.Generator, side_px: int) -> Pixels:
    """Return the ink (h, w), 0 to 255, of a random word, cut to its extent."""
    letters = string.ascii_lowercase if rng.random() < 0.6 else string.ascii_uppercase
    text = "".join(rng.choice(list(letters), int(rng.integers(_LETTERS[0], _LETTERS[1] + 1))))
    file = fonts()[rng.integers(len(fonts()))]
    _, top, _, bottom = ImageFont.truetype(file, _PROBE).getbbox(text)
    font = ImageFont.truetype(file, max(8, round(_PROBE * rng.uniform(*HEIGHTS) * side_px / (bottom - top))))
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (max(1, round(right - left)), max(1, round(bottom - top))))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font)
    return np.asarray(canvas)


@cache
def fonts() -> tuple[str, ...]:
    """Return the files of the fonts with letters that are installed with matplotlib, sorted."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    return tuple(sorted(str(path) for path in folder.glob("DejaVu*.ttf") if "Display" not in path.name))


def _shape(rng: np.random.Generator, size_hw: tuple[int, int]) -> Pixels:
    """Return the ink of a bar, an ellipse, a frame, a few discs or stripes of the size of a word."""
    height, width = size_hw
    ink: Pixels = np.zeros((height, width), np.uint8)
    kind, line = int(rng.integers(5)), max(1, height // 6)
    if kind == 0:
        ink[:] = 255
    elif kind == 1:
        cv2.ellipse(ink, (width // 2, height // 2), (width // 2, height // 2), 0, 0, 360, 255, -1, cv2.LINE_AA)
    elif kind == 2:
        cv2.rectangle(ink, (0, 0), (width - 1, height - 1), 255, line)
    elif kind == 3:
        for x in range(height // 2, width, max(1, round(height * rng.uniform(1.0, 1.6)))):
            cv2.circle(ink, (x, height // 2), max(1, height // 3), 255, -1, cv2.LINE_AA)
    else:
        for y in range(line, height, 3 * line):
            cv2.line(ink, (0, y), (width, y), 255, line, cv2.LINE_AA)
    return ink


def _color(rng: np.random.Generator, ground: Pixels) -> NDArray[np.float64]:
    """Return a colour that differs clearly from the mean of ``ground``."""
    choices = rng.uniform(0, 255, (12, 3))
    away = np.linalg.norm(choices - ground.reshape(-1, 3).mean(axis=0), axis=1)
    found: NDArray[np.float64] = choices[int(np.argmax(away > 130)) if (away > 130).any() else int(away.argmax())]
    return found


def _ink(canvas: Pixels, box: NDArray[np.int64], mask: Pixels, color: NDArray[np.float64]) -> None:
    x0, y0, x1, y1 = box.tolist()
    share = mask[:, :, None] / 255
    canvas[y0:y1, x0:x1] = np.round(canvas[y0:y1, x0:x1] * (1 - share) + color * share).astype(np.uint8)


def _meet(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())
