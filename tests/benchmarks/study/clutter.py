"""Renders scenes harder than the demo's: objects of several classes cover each other on backgrounds that give hints.

The label is the class of the largest object. Each class has one style of background. The caller chooses how often a
scene has the background of its class. A network that never saw a box may learn this background instead of the object.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.synthetic.backgrounds import BackgroundStyle, draw_background
from pipeline.images.synthetic.drawings import CLASSES, PARTS, Part
from pipeline.images.synthetic.objects import Pixels, draw_object, mask_of, object_colors, placed, posed

MAIN_SIDES = (0.45, 0.80)
"""Range of the labelled object's longer side as a share of the picture's side."""
OTHER_SIDES = (0.20, 0.36)
"""The same range for the other objects, which are always smaller than the labelled one."""
OTHERS = (1, 2)
"""Least and greatest number of objects of other classes."""
LEAST_SEEN = 0.6
"""Least share of the labelled object's pixels that stays visible."""
STYLES = tuple(BackgroundStyle(index % 4, index / len(CLASSES)) for index in range(len(CLASSES)))
"""The style of background of each class, in the order of CLASSES."""


class ClutteredScene(NamedTuple):
    """A rendered square picture with its labelled object, its background and the classes of its other objects."""

    pixels: Pixels
    """(S, S, 3) uint8, RGB."""
    label: int
    """Index into CLASSES of the largest object."""
    box_xyxy: NDArray[np.float64]
    """(4,) half-open pixels: the extent of the visible pixels of the largest object, as annotators draw it."""
    style: int
    """Index into STYLES of the background; equal to ``label`` where it is the background of the class."""
    others: tuple[int, ...]
    """Classes of the other objects."""


def render_clutter(rng: np.random.Generator, label: int, side_px: int, correlation: float) -> ClutteredScene:
    """Return a picture of ``side_px``² pixels: an object of class ``label`` and smaller objects of other classes.

    The smaller objects lie over or under the labelled one. With the probability ``correlation`` the background has the
    style of the class, otherwise any of the ten styles, all equally often; with 0 it gives no hint of the class. The
    picture is drawn at twice the size and halved. The same state of ``rng`` gives the same scene. Raises ValueError for
    a side under 48 pixels.
    """
    if side_px < 48:
        raise ValueError(f"side_px {side_px}: allowed: 48 or more")
    size_hw = 2 * side_px, 2 * side_px
    style = label if rng.random() < correlation else int(rng.integers(len(STYLES)))
    pixels = draw_background(rng, size_hw, STYLES[style])
    main = placed(rng, posed(rng, PARTS[label], size_hw, MAIN_SIDES), size_hw)
    rest = [index for index in range(len(CLASSES)) if index != label]
    others = tuple(rng.choice(rest, int(rng.integers(OTHERS[0], OTHERS[1] + 1)), replace=False).tolist())
    seen = mask_of(main, size_hw)
    least = LEAST_SEEN * seen.sum()
    under: list[list[Part]] = []
    over: list[list[Part]] = []
    for other in others:
        parts = placed(rng, posed(rng, PARTS[other], size_hw, OTHER_SIDES), size_hw)
        left = seen & ~mask_of(parts, size_hw)
        if rng.random() < 0.5 and left.sum() >= least:
            over.append(parts)
            seen = left
        else:
            under.append(parts)
    for parts in (*under, main, *over):
        draw_object(rng, pixels, parts, object_colors(rng, pixels))
    halved = np.asarray(cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return ClutteredScene(halved, label, extent_of_mask(seen) / 2, style, others)


def extent_of_mask(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the half-open box (4,) of the True pixels of ``mask`` (H, W); raises ValueError for a mask without any."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("extent of an empty mask")
    return np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), dtype=np.float64)
