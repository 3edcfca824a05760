"""Draws backgrounds: textured pictures with grain, and with distractors that belong to no class."""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Color = NDArray[np.float64]
TINT = 0.3
"""Greatest share by which a style's hue darkens a channel: ten styles can be distinguished at a glance."""


class BackgroundStyle(NamedTuple):
    """The common properties of one kind of background."""

    texture: int
    """0: gradient, 1: clouds, 2: stripes, 3: tiles."""
    hue: float
    """The hue of HSV in [0, 1): 0 is red, 1/3 green, 2/3 blue."""


def draw_background(rng: np.random.Generator, size_hw: tuple[int, int], style: BackgroundStyle | None = None) -> Pixels:
    """Return a textured picture (H, W, 3) uint8 RGB of ``size_hw`` pixels with grain and distractors.

    Without a ``style`` the texture is random and the picture has no tint.
    """
    texture = (_gradient, _clouds, _stripes, _tiles)[rng.integers(4) if style is None else style.texture]
    pixels = texture(rng, size_hw)
    if style is not None:
        pixels = _tinted(pixels, style.hue)
    _scatter(rng, pixels)
    height, width = size_hw
    half = rng.integers(0, int(rng.integers(2, 40)), ((height + 1) // 2, (width + 1) // 2), dtype=np.uint8)
    grain = cv2.resize(half, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.subtract(pixels, cv2.merge([grain, grain, grain])), dtype=np.uint8)


def _tinted(pixels: Pixels, hue: float) -> Pixels:
    """Return ``pixels`` with each channel darkened by up to TINT: most where the hue has least of the channel."""
    factors = 1 - TINT + TINT * np.array(colorsys.hsv_to_rgb(hue, 1.0, 1.0))
    return np.asarray(np.round(pixels * factors), dtype=np.uint8)


def _muted(rng: np.random.Generator, shape: tuple[int, ...]) -> Color:
    """Return random colors of shape (…, 3) between 30 and 225, most of them not far from gray."""
    gray = rng.uniform(50, 205, (*shape, 1))
    return gray + rng.uniform(-0.3, 0.3, (*shape, 3)) * np.minimum(gray, 255 - gray) * 1.2


def _gradient(rng: np.random.Generator, size_hw: tuple[int, int]) -> Pixels:
    corners = _muted(rng, (2, 2)).astype(np.uint8)
    return np.asarray(cv2.resize(corners, size_hw[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _clouds(rng: np.random.Generator, size_hw: tuple[int, int]) -> Pixels:
    """Smooth noise of three grain sizes around one color."""
    base = _muted(rng, ())
    total = np.zeros((*size_hw, 3), np.uint8)
    for cells, weight in ((5, 0.5), (17, 0.3), (65, 0.2)):
        noise = np.clip(
            base + rng.normal(0, 60, (cells, cells, 1)) + rng.normal(0, 25, (cells, cells, 3)), 0, 255
        ).astype(np.uint8)
        smooth = cv2.resize(noise, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
        total = np.asarray(cv2.scaleAdd(smooth, weight, total), dtype=np.uint8)
    return total


def _two_colors(rng: np.random.Generator, pattern: Pixels) -> Pixels:
    """Return a pattern (H, W), 0 to 255, as RGB (H, W, 3): values run from a random color to a similar one."""
    first = _muted(rng, ())
    second = np.clip(first + rng.uniform(-70, 70) + rng.uniform(-20, 20, 3), 0, 255)
    steps = np.linspace(first, second, 256).astype(np.uint8)
    return np.asarray(cv2.merge([cv2.LUT(pattern, np.ascontiguousarray(steps[:, c])) for c in range(3)]))


def _stripes(rng: np.random.Generator, size_hw: tuple[int, int]) -> Pixels:
    height, width = size_hw
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(0.15, 0.9)
    across = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle) * pitch)
    down = np.arange(height, dtype=np.float32) * np.float32(np.sin(angle) * pitch)
    waves = np.arange(256, dtype=np.float32) * np.float32(2 * np.pi / 256)
    phase = (across[None, :] + down[:, None]) * np.float32(256 / (2 * np.pi))
    table = (127.5 + 127.5 * np.sin(waves)).astype(np.uint8)
    return _two_colors(rng, table[phase.astype(np.int32) & 255])


def _tiles(rng: np.random.Generator, size_hw: tuple[int, int]) -> Pixels:
    rows, columns = int(rng.integers(4, 20)), int(rng.integers(4, 20))
    cells = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    return _two_colors(rng, np.asarray(cv2.resize(cells, size_hw[::-1], interpolation=cv2.INTER_NEAREST)))


def _scatter(rng: np.random.Generator, pixels: Pixels) -> None:
    """Draw 4 to 24 lines, discs and triangles on ``pixels`` in place."""
    height, width = pixels.shape[:2]
    for _ in range(int(rng.integers(4, 25))):
        color = np.clip(_muted(rng, ()) + rng.normal(0, 30, 3), 0, 255).tolist()
        x, y = int(rng.integers(width)), int(rng.integers(height))
        here = np.array((x, y))
        reach = rng.uniform(0.02, 0.12) * min(height, width)
        thick = int(rng.integers(1, 6))
        kind = rng.integers(4)
        if kind == 0:
            ends = rng.normal(0, 3 * reach, 2)
            cv2.line(pixels, (x, y), (x + int(ends[0]), y + int(ends[1])), color, thick, cv2.LINE_AA)
        elif kind == 1:
            axes = (int(reach * rng.uniform(0.3, 1)) + 1, int(reach) + 1)
            cv2.ellipse(pixels, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
        elif kind == 2:
            cv2.fillPoly(pixels, [(here + rng.normal(0, reach, (3, 2))).astype(np.int32)], color, cv2.LINE_AA)
        else:
            bends = here + rng.normal(0, reach, (5, 2)).cumsum(axis=0)
            cv2.polylines(pixels, [bends.astype(np.int32)], False, color, thick, cv2.LINE_AA)
