"""Turns drawings into objects of a picture: poses, places, colours, lights and paints them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.synthetic.drawings import Part

OBJECT_SHARE = (0.15, 0.70)
"""Range of an object's longer side as a share of sqrt(H * W); the square of the share is uniform."""
TURN_DEGREES = 45.0
"""Objects are turned by at most this much to either side."""

_SUBPIXEL_BITS = 4
_MARGIN_PX = 3.0
_GAP_PX = 4.0

Pixels = NDArray[np.uint8]
Color = NDArray[np.float64]
Box = tuple[int, int, int, int]


def posed(
    rng: np.random.Generator,
    parts: tuple[Part, ...],
    size_hw: tuple[int, int],
    sides: tuple[float, float] = OBJECT_SHARE,
) -> list[Part]:
    """Return a drawing mirrored, stretched, turned and scaled to its size in pixels; ``placed`` chooses its position.

    ``sides``: range of the longer side as a share of sqrt(H * W); the square of the share is uniform. A drawing that
    would not fit into the picture is made smaller.
    """
    height, width = size_hw
    angle = np.radians(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    stretch = np.diag((rng.choice((-1.0, 1.0)) * rng.uniform(0.85, 1.18), 1.0))
    turned = [part._replace(outline=part.outline @ stretch @ turn) for part in parts]
    x0, y0, x1, y1 = extent_of(turned)
    smallest, largest = sides
    share = np.sqrt(rng.uniform(smallest**2, largest**2) * height * width)
    fits = min((width - 2 * _MARGIN_PX) / (x1 - x0), (height - 2 * _MARGIN_PX) / (y1 - y0))
    scale = min(share / max(x1 - x0, y1 - y0), fits)
    return [part._replace(outline=part.outline * scale, width=part.width * scale) for part in turned]


def placed(rng: np.random.Generator, parts: list[Part], size_hw: tuple[int, int]) -> list[Part]:
    """Return a posed drawing moved to a random place wholly inside the picture."""
    x0, y0, x1, y1 = extent_of(parts)
    room_x, room_y = size_hw[1] - (x1 - x0) - 2 * _MARGIN_PX, size_hw[0] - (y1 - y0) - 2 * _MARGIN_PX
    shift = _MARGIN_PX - np.array((x0, y0)) + rng.random(2) * np.maximum((room_x, room_y), 0.0)
    return [part._replace(outline=part.outline + shift) for part in parts]


def extent_of(parts: list[Part]) -> tuple[float, float, float, float]:
    """Return the box xmin, ymin, xmax, ymax around all outlines, each widened by half its line width."""
    low = np.min([part.outline.min(axis=0) - part.width / 2 for part in parts], axis=0)
    high = np.max([part.outline.max(axis=0) + part.width / 2 for part in parts], axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def apart(extent: tuple[float, float, float, float], box: Box) -> bool:
    """Tell whether a gap of a few pixels lies between an extent and a box."""
    x0, y0, x1, y1 = extent
    return x0 > box[2] + _GAP_PX or x1 < box[0] - _GAP_PX or y0 > box[3] + _GAP_PX or y1 < box[1] - _GAP_PX


def draw_object(rng: np.random.Generator, pixels: Pixels, parts: list[Part], colors: list[Color]) -> Box:
    """Draw the object on ``pixels`` in place, with shading; return the half-open box of its mask."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = extent_of(parts)
    left, top = max(int(x0) - 3, 0), max(int(y0) - 3, 0)
    right, bottom = min(int(x1) + 4, width), min(int(y1) + 4, height)
    patch = pixels[top:bottom, left:right]
    moved = [part._replace(outline=part.outline - (left, top)) for part in parts]

    layer: Pixels = np.empty_like(patch)
    layer[:] = colors[0]
    mask: Pixels = np.zeros(patch.shape[:2], np.uint8)
    for part in moved:
        _draw_part(layer, part, colors[part.tone])
        _draw_part(mask, part, np.array([255.0]))
    mask[mask < 128] = 0
    shaded = cv2.multiply(layer, _light(rng, patch.shape[:2]), dtype=cv2.CV_8U)
    alpha = cv2.merge([mask, mask, mask])
    front = cv2.multiply(shaded, alpha, scale=1 / 255)
    patch[:] = cv2.add(front, cv2.multiply(patch, 255 - alpha, scale=1 / 255))

    x, y, w, h = cv2.boundingRect(mask)
    return left + x, top + y, left + x + w, top + y + h


def mask_of(parts: list[Part], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (H, W) bool: True for the pixels that ``draw_object`` would change for this object."""
    mask: Pixels = np.zeros(size_hw, np.uint8)
    for part in parts:
        _draw_part(mask, part, np.array([255.0]))
    return mask >= 128


def _draw_part(canvas: Pixels, part: Part, color: Color) -> None:
    fixed = [np.round(part.outline * 2**_SUBPIXEL_BITS).astype(np.int32)]
    ink = color.tolist()
    if part.width > 0:
        thickness = max(1, round(part.width))
        cv2.polylines(canvas, fixed, part.closed, ink, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    else:
        cv2.fillPoly(canvas, fixed, ink, cv2.LINE_AA, _SUBPIXEL_BITS)


def _light(rng: np.random.Generator, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return brightness factors (h, w, 3): light from one side, mottled, with grain."""
    height, width = size_hw
    corners = rng.uniform(0.6, 1.2, (2, 2)).astype(np.float32)
    slope = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    mottled = cv2.resize(rng.uniform(0.85, 1.15, (7, 7)).astype(np.float32), (width, height))
    grain = rng.random((height, width), dtype=np.float32) * 0.12 + 0.94
    light = slope * mottled * grain
    return np.asarray(cv2.merge([light, light, light]), dtype=np.float32)


def object_colors(rng: np.random.Generator, pixels: Pixels) -> list[Color]:
    """Return the main, second and dark color of an object, each (3,).

    The main color differs clearly from the mean of ``pixels``, unless none of 12 random colors does.
    """
    ground = pixels[::8, ::8].reshape(-1, 3).mean(axis=0)
    choices = rng.uniform(40, 255, (12, 3))
    main = choices[np.argmax(np.linalg.norm(choices - ground, axis=1) > 90)]
    second = np.clip(main + rng.choice((-1.0, 1.0), 3) * rng.uniform(60, 140, 3), 20, 255)
    return [main, second, main * rng.uniform(0.2, 0.45)]
