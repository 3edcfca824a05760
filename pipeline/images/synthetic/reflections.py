"""Draws lakes with an object on their shore, twice: the water mirrors the object, and the same without the reflection.

What else the water shows, an object that floats elsewhere and leaves, is in both pictures.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.synthetic.backgrounds import Pixels, draw_background
from pipeline.images.synthetic.drawings import PARTS, Part
from pipeline.images.synthetic.objects import draw_object, extent_of, object_colors

SHORE = (0.38, 0.55)
"""Range of the height of the water's edge, as a share of the picture's height from its top."""
HEIGHTS = (0.26, 0.36)
"""Range of the height of the object on the shore, as a share of the picture's height."""
FLOATING = (0.10, 0.16)
"""The same of the object that floats on the water."""


class LakePair(NamedTuple):
    """Two pictures of the same lake."""

    mirrored: Pixels
    """(S, S, 3) uint8, RGB: the water mirrors the object on the shore."""
    plain: Pixels
    """The same without the reflection."""
    box_xyxy: NDArray[np.float64]
    """(4,) half-open pixels: the extent of the reflection."""


def render_lakes(rng: np.random.Generator, side_px: int) -> LakePair:
    """Return a lake of ``side_px``² pixels with and without a reflection; the same state of ``rng`` gives the same.

    Raises ValueError for a side under 96 pixels.
    """
    if side_px < 96:
        raise ValueError(f"side_px {side_px}: allowed: 96 or more")
    edge = round(rng.uniform(*SHORE) * side_px)
    picture = draw_background(rng, (side_px, side_px))
    picture[edge:] = _water(rng, (side_px - edge, side_px))
    land = picture[:edge].copy()
    shore = _standing(rng, rng.uniform(*HEIGHTS) * side_px, edge, side_px)
    left, top, right, _ = draw_object(rng, picture, shore, object_colors(rng, picture))
    seen = np.abs(picture[:edge].astype(np.int16) - land).max(axis=2) > 8
    plain, rows = picture.copy(), min(edge - top, side_px - edge)
    _reflect(rng, picture, seen, edge, rows)
    bottom = round(edge + rng.uniform(0.4, 0.98) * (side_px - edge))
    floating = _standing(rng, rng.uniform(*FLOATING) * side_px, bottom, side_px)
    colors, state = object_colors(rng, plain), rng.bit_generator.state
    for canvas in (picture, plain):
        rng.bit_generator.state = state
        draw_object(rng, canvas, floating, colors)
    return LakePair(picture, plain, np.array([left, edge, right, edge + rows], np.float64))


def _standing(rng: np.random.Generator, height: float, bottom: int, side_px: int) -> list[Part]:
    """Return a random drawing, upright or mirrored, of this height, that stands on the row ``bottom`` at a random x."""
    parts = PARTS[rng.integers(len(PARTS))]
    flip = np.array([rng.choice((-1.0, 1.0)), 1.0])
    turned = [part._replace(outline=part.outline * flip) for part in parts]
    x0, y0, x1, y1 = extent_of(turned)
    scale = height / (y1 - y0)
    room = max(side_px - (x1 - x0) * scale - 4, 0)
    shift = np.array([2 + rng.uniform(0, 1) * room - x0 * scale, bottom - y1 * scale])
    return [part._replace(outline=part.outline * scale + shift, width=part.width * scale) for part in turned]


def _water(rng: np.random.Generator, size_hw: tuple[int, int]) -> Pixels:
    """Return water (h, w, 3): blue to gray, darker below, with ripples of random pitch and grain."""
    height, width = size_hw
    near = np.array([rng.uniform(20, 90), rng.uniform(60, 120), rng.uniform(100, 160)])
    far = np.clip(near + rng.uniform(10, 70), 0, 255)
    share = np.linspace(0, 1, height)[:, None, None]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    waves = np.sin(rows * rng.uniform(0.3, 1.2) + 2 * np.sin(columns * rng.uniform(0.02, 0.08)))[:, :, None]
    grain = rng.normal(0, 4, (height, width, 1))
    values = far * (1 - share) + near * share + waves * rng.uniform(3, 14) + grain
    water: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return water


def _reflect(rng: np.random.Generator, picture: Pixels, seen: NDArray[np.bool_], edge: int, rows: int) -> None:
    """Draw the mirror image of the ``seen`` pixels above ``edge`` into the ``rows`` below it, in place.

    Ripples shift its rows, and the water dims it and shines through.
    """
    width = picture.shape[1]
    above, mask = picture[edge - rows : edge][::-1], seen[edge - rows : edge][::-1].astype(np.float32)
    reach, pitch = rng.uniform(0.5, 3) * picture.shape[0] / 224, rng.uniform(0.4, 1.0)
    shift = (reach * np.sin(np.arange(rows) * pitch + rng.uniform(0, 6)))[:, None].astype(np.float32)
    across = np.arange(width, dtype=np.float32)[None] + shift
    down = np.repeat(np.arange(rows, dtype=np.float32)[:, None], width, axis=1)
    moved = cv2.remap(np.ascontiguousarray(above), across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.remap(mask, across, down, cv2.INTER_LINEAR)[:, :, None] * np.float32(rng.uniform(0.6, 0.85))
    water = picture[edge : edge + rows]
    dimmed = moved * np.float32(rng.uniform(0.65, 0.9))
    picture[edge : edge + rows] = np.round(dimmed * cover + water * (1 - cover)).astype(np.uint8)
