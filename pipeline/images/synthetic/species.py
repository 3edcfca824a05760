"""Draws small butterflies of eight species on clutter; the species differ by the colours of their wings alone."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.images.synthetic.backgrounds import Pixels, draw_background
from pipeline.images.synthetic.drawings import CLASSES, PARTS
from pipeline.images.synthetic.objects import draw_object, placed, posed

_PALETTE = {
    "red": (200, 50, 45),
    "orange": (225, 140, 40),
    "green": (60, 150, 70),
    "blue": (60, 90, 200),
    "violet": (140, 70, 180),
    "white": (225, 220, 210),
}
SPECIES: tuple[tuple[str, str], ...] = (
    ("red", "white"),
    ("red", "blue"),
    ("orange", "violet"),
    ("orange", "white"),
    ("green", "orange"),
    ("blue", "orange"),
    ("blue", "white"),
    ("violet", "green"),
)
"""The colours of the upper and of the lower wings."""
SIDES = (0.20, 0.30)
"""Range of a butterfly's longer side as a share of the picture's side."""
_JITTER = 25.0


class Butterfly(NamedTuple):
    """A picture of a butterfly, and the same without it."""

    pixels: Pixels
    """(S, S, 3) uint8, RGB."""
    ground: Pixels
    box_xyxy: NDArray[np.float64]
    """(4,) half-open pixels."""


def species_names() -> tuple[str, ...]:
    """Return the names of the species, such as red-white."""
    return tuple(f"{upper}-{lower}" for upper, lower in SPECIES)


def render_butterfly(rng: np.random.Generator, species: int, side_px: int) -> Butterfly:
    """Return a picture of ``side_px``² pixels; the same state of ``rng`` gives the same. ``species`` counts SPECIES."""
    size_hw = side_px, side_px
    ground = draw_background(rng, size_hw)
    light = rng.uniform(0.75, 1.1)
    tints = [np.array(_PALETTE[name]) * light for name in SPECIES[species]]
    upper, lower = (np.clip(tint + rng.uniform(-_JITTER, _JITTER, 3), 0, 255) for tint in tints)
    parts = placed(rng, posed(rng, PARTS[CLASSES.index("butterfly")], size_hw, SIDES), size_hw)
    pixels = ground.copy()
    box = draw_object(rng, pixels, parts, [upper, lower, np.array([45.0, 35.0, 30.0])])
    return Butterfly(pixels, ground, np.array(box, np.float64))
