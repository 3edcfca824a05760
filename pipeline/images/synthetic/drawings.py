"""Ten drawings, the objects of the demo's pictures; each drawing is a few outlines in a common frame.

In this frame x points to the right and y down, and a drawing lies inside [-1, 1] on both axes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


class Part(NamedTuple):
    """One outline of a drawing: filled where ``width`` is 0, else drawn as a line of this width."""

    outline: Points
    """(P, 2) x, y in the drawing's frame."""
    tone: int = 0
    """0: the object's main colour, 1: its second colour, 2: its dark colour."""
    width: float = 0.0
    closed: bool = True


def _arc(x: float, y: float, rx: float, ry: float, degrees: tuple[float, float] = (0, 360)) -> Points:
    angles = np.radians(np.linspace(*degrees, 33))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _rect(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def _path(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


def _star_points(outer: float, inner: float) -> Points:
    angles = np.radians(np.arange(10) * 36.0 - 90.0)
    radii = np.where(np.arange(10) % 2 == 0, outer, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _bicycle() -> list[Part]:
    parts = []
    for x in (-0.58, 0.58):
        parts.append(Part(_arc(x, 0.35, 0.38, 0.38), 2, 0.10))
        parts += [Part(_arc(x, 0.35, 0.34, 0.34, (a, a + 180))[[0, -1]], 1, 0.03, False) for a in (0, 45, 90, 135)]
    frame = _path((-0.58, 0.35), (-0.22, -0.22), (0.38, -0.22), (0.0, 0.35), (-0.58, 0.35))
    fork = _path((0.58, 0.35), (0.34, -0.45), (0.56, -0.52))
    saddle = _path((-0.42, -0.40), (-0.08, -0.40))
    post = _path((0.0, 0.35), (-0.27, -0.40))
    parts += [Part(line, 0, 0.09, False) for line in (frame, fork, post)]
    return [*parts, Part(saddle, 2, 0.13, False)]


def _butterfly() -> list[Part]:
    parts = []
    for side in (-1.0, 1.0):
        upper = _path((0, -0.1), (0.3, -0.7), (0.8, -0.85), (0.98, -0.5), (0.75, -0.05), (0.05, 0.08)) * (side, 1)
        lower = _path((0, 0.0), (0.65, 0.1), (0.75, 0.5), (0.5, 0.8), (0.2, 0.65)) * (side, 1)
        parts += [Part(upper), Part(lower, 1), Part(_arc(0.62 * side, -0.48, 0.16, 0.16), 1)]
        parts += [Part(_arc(0.45 * side, 0.42, 0.12, 0.12), 0)]
        parts += [Part(_path((0, -0.45), (0.12 * side, -0.75), (0.22 * side, -0.85)), 2, 0.05, False)]
    return [*parts, Part(_arc(0, 0.0, 0.09, 0.55), 2)]


def _fish() -> list[Part]:
    tail = _path((0.45, 0.0), (0.98, -0.45), (0.82, 0.0), (0.98, 0.45))
    fins = _path((-0.25, -0.35), (0.15, -0.68), (0.30, -0.30)), _path((-0.1, 0.35), (0.15, 0.62), (0.25, 0.30))
    stripes = [Part(_arc(x, 0.0, 0.1, 0.34, (-80, 80)), 1, 0.08, False) for x in (-0.32, -0.05, 0.22)]
    eye = [Part(_arc(-0.62, -0.1, 0.09, 0.09), 1), Part(_arc(-0.63, -0.1, 0.045, 0.045), 2)]
    mouth = Part(_path((-0.92, 0.08), (-0.75, 0.12)), 2, 0.04, False)
    return [Part(tail, 1), *(Part(fin, 1) for fin in fins), Part(_arc(-0.2, 0, 0.75, 0.42)), *stripes, *eye, mouth]


def _house() -> list[Part]:
    windows = [_rect(x, 0.02, x + 0.3, 0.32) for x in (-0.58, 0.28)]
    bars = [_path((x + 0.15, 0.02), (x + 0.15, 0.32)) for x in (-0.58, 0.28)]
    return [
        Part(_rect(0.35, -0.85, 0.58, -0.3), 2),
        Part(_rect(-0.75, -0.2, 0.75, 0.85)),
        Part(_path((-0.95, -0.15), (0.0, -0.9), (0.95, -0.15)), 1),
        *(Part(window, 1) for window in windows),
        *(Part(bar, 2, 0.05, False) for bar in bars),
        Part(_rect(-0.16, 0.3, 0.16, 0.85), 2),
    ]


def _key() -> list[Part]:
    teeth = [_rect(x, 0.05, x + 0.13, y) for x, y in ((0.4, 0.36), (0.62, 0.28), (0.82, 0.36))]
    return [
        Part(_rect(-0.3, -0.1, 0.95, 0.1)),
        *(Part(tooth) for tooth in teeth),
        Part(_arc(-0.6, 0, 0.32, 0.32), 0, 0.17),
        Part(_arc(-0.6, 0, 0.32, 0.32), 1, 0.04),
        Part(_path((-0.2, -0.03), (0.9, -0.03)), 1, 0.04, False),
    ]


def _mug() -> list[Part]:
    handle = _arc(0.5, 0.05, 0.38, 0.38, (-80, 80))
    body = np.concatenate([_path((-0.75, -0.6), (0.5, -0.6)), _arc(-0.125, 0.6, 0.625, 0.2, (0, 180))])
    band = np.concatenate([_arc(-0.125, 0.1, 0.625, 0.14, (180, 0)), _arc(-0.125, 0.35, 0.625, 0.14, (0, 180))])
    return [
        Part(handle, 0, 0.17, False),
        Part(body),
        Part(band, 1),
        Part(_arc(-0.125, -0.6, 0.625, 0.17), 1),
        Part(_arc(-0.125, -0.58, 0.52, 0.11), 2),
    ]


def _mushroom() -> list[Part]:
    stem = np.concatenate([_arc(0, 0.75, 0.32, 0.18, (0, 180)), _path((-0.2, 0.0), (0.2, 0.0))])
    spots = [
        Part(_arc(x, y, r, 0.8 * r), 1) for x, y, r in ((-0.45, -0.25, 0.14), (0.05, -0.55, 0.17), (0.5, -0.2, 0.13))
    ]
    gills = Part(_arc(0, 0.02, 0.88, 0.14), 2)
    return [Part(stem, 1), gills, Part(_arc(0, 0.02, 0.92, 0.88, (180, 360))), *spots]


def _star() -> list[Part]:
    points = _star_points(0.95, 0.4)
    rays = [Part(np.stack([points[i], np.zeros(2)]), 2, 0.035, False) for i in range(10)]
    return [Part(points), Part(_star_points(0.6, 0.25), 1), *rays]


def _tree() -> list[Part]:
    crowns = [
        Part(_path((-w, y), (0.0, y - 0.72), (w, y)), tone)
        for w, y, tone in ((0.75, 0.6, 0), (0.62, 0.2, 1), (0.47, -0.2, 0))
    ]
    return [Part(_rect(-0.13, 0.55, 0.13, 0.95), 2), *crowns]


def _umbrella() -> list[Part]:
    scallops = [_arc(x, 0.0, 0.3, 0.14, (360, 180)) for x in (0.6, 0.0, -0.6)]
    canopy = np.concatenate([_arc(0, 0.0, 0.9, 0.8, (180, 360)), *scallops])
    panel = np.concatenate([_path((-0.3, 0.0), (0.0, -0.8), (0.3, 0.0)), scallops[1]])
    pole = np.concatenate([_path((0, -0.92), (0, 0.65)), _arc(0.17, 0.65, 0.17, 0.2, (180, 20))])
    return [Part(pole, 2, 0.08, False), Part(canopy), Part(panel, 1)]


_DRAWINGS: dict[str, Callable[[], list[Part]]] = {
    "bicycle": _bicycle,
    "butterfly": _butterfly,
    "fish": _fish,
    "house": _house,
    "key": _key,
    "mug": _mug,
    "mushroom": _mushroom,
    "star": _star,
    "tree": _tree,
    "umbrella": _umbrella,
}
CLASSES: tuple[str, ...] = tuple(_DRAWINGS)
"""Names of the ten classes; a class id is an index into it."""
PARTS: tuple[tuple[Part, ...], ...] = tuple(tuple(draw()) for draw in _DRAWINGS.values())
"""The drawing of each class, in the order of CLASSES."""
