"""Draws pictures with known boxes. The demo annotates them, its network is trained on them, and benchmarks use them.

A scene shows a drawing turned, mirrored, stretched and coloured over a cluttered background.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.synthetic.backgrounds import draw_background
from pipeline.images.synthetic.drawings import CLASSES, PARTS
from pipeline.images.synthetic.objects import apart, draw_object, extent_of, object_colors, placed, posed

__all__ = ["CLASSES", "Scene", "random_size", "render_scene", "write_corpus"]

SIDES_PX = (240, 640)
"""Range of a random side of a picture in pixels."""
ASPECT_MAX = 1.8
"""Greatest ratio of the longer to the shorter side of a picture of random size."""
SECOND_OBJECT = 0.15
"""Probability of a second object of the same class; it is left out where it would touch the first one."""

Pixels = NDArray[np.uint8]


class Scene(NamedTuple):
    """A rendered picture with its label and its true boxes."""

    pixels: Pixels
    """(H, W, 3) uint8, RGB."""
    label: int
    """Index into CLASSES."""
    boxes_xyxy: NDArray[np.float32]
    """(N, 4) float32 with N = 1 or 2, half-open pixels; each box is the extent of one object's mask."""


def render_scene(rng: np.random.Generator, label: int, size_hw: tuple[int, int]) -> Scene:
    """Return a picture of ``size_hw`` pixels with one or two objects of class ``label``, wholly inside and uncovered.

    The same state of ``rng`` gives the same scene. A ``label`` of 10 or more raises IndexError. A side under 48 pixels
    raises ValueError, because the drawings could not be distinguished there.
    """
    if min(size_hw) < 48:
        raise ValueError(f"size_hw {size_hw}: allowed: sides of 48 pixels or more")
    parts = PARTS[label]
    pixels = draw_background(rng, size_hw)
    colors = object_colors(rng, pixels)
    first = posed(rng, parts, size_hw)
    boxes = [draw_object(rng, pixels, placed(rng, first, size_hw), colors)]
    if rng.random() < SECOND_OBJECT:
        second = placed(rng, posed(rng, parts, size_hw), size_hw)
        if apart(extent_of(second), boxes[0]):
            boxes.append(draw_object(rng, pixels, second, colors))
    return Scene(pixels, label, np.array(boxes, dtype=np.float32))


def write_corpus(
    folder: Path, n_images: int, seed: int, size_hw: tuple[int, int] | None = None, broken: int = 2
) -> Path:
    """Write ``n_images`` scenes and ``broken`` damaged files to ``folder``/images; return ``folder``/truth.csv.

    The classes alternate. Three of four files are JPEG, the others PNG. Sizes are random where ``size_hw`` is None. The
    truth has one row for each box: file (relative to ``folder``), width, height, label, class_id and the half-open box
    in pixels. The damaged files are in turn a truncated JPEG, text named .png and an empty file; they have no row. The
    same arguments give the same bytes, and picture i does not depend on ``n_images``.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    truth = folder / "truth.csv"
    with truth.open("w", newline="", encoding="utf-8") as sink:
        rows = csv.writer(sink, lineterminator="\n")
        rows.writerow(("file", "width", "height", "label", "class_id", "xmin", "ymin", "xmax", "ymax"))
        for index in range(n_images):
            rng = np.random.default_rng((seed, index))
            scene = render_scene(rng, index % len(CLASSES), size_hw or random_size(rng))
            name = f"{CLASSES[scene.label]}-{index:04d}" + (".png" if index % 4 == 3 else ".jpg")
            (images / name).write_bytes(_encoded(scene.pixels, name))
            height, width = scene.pixels.shape[:2]
            for box in scene.boxes_xyxy.astype(int).tolist():
                rows.writerow((f"images/{name}", width, height, CLASSES[scene.label], scene.label, *box))
    for index in range(broken):
        _write_broken(images, index, seed)
    return truth


def _write_broken(images: Path, index: int, seed: int) -> None:
    kind = index % 3
    if kind == 0:
        whole = _encoded(render_scene(np.random.default_rng((seed, index, 1)), index % 10, (240, 320)).pixels, ".jpg")
        (images / f"broken-{index:04d}-truncated.jpg").write_bytes(whole[: len(whole) // 3])
    elif kind == 1:
        (images / f"broken-{index:04d}-text.png").write_text("This is a note, not a picture.\n" * 20, encoding="utf-8")
    else:
        (images / f"broken-{index:04d}-empty.jpg").write_bytes(b"")


def _encoded(pixels: Pixels, name: str) -> bytes:
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if name.endswith(".png") else [cv2.IMWRITE_JPEG_QUALITY, 90]
    extension = Path(name).suffix or name
    _, data = cv2.imencode(extension, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return a random height and width in pixels, each in SIDES_PX, with a ratio of at most ASPECT_MAX."""
    short, most = SIDES_PX[0], SIDES_PX[1]
    one = int(rng.integers(short, most + 1))
    other = int(rng.integers(max(short, round(one / ASPECT_MAX)), min(most, round(one * ASPECT_MAX)) + 1))
    return one, other
