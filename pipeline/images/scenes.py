"""Drawn pictures with known boxes: what the demo annotates, its network is trained on and the benchmarks feed on.

A scene turns, mirrors, stretches and tints a drawing and lays it over a cluttered background.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.drawings import CLASSES, PARTS, Part

__all__ = ["CLASSES", "Scene", "random_size", "render_scene", "write_corpus"]

SIDES_PX = (240, 640)
"""Range of a picture's sides where the caller names none."""
ASPECT_MAX = 1.8
"""Longest over shortest side of such a picture."""
OBJECT_SHARE = (0.15, 0.70)
"""Range of an object's longer side as a share of sqrt(H * W), its square uniform; shrunk where that would not fit."""
SECOND_OBJECT = 0.15
"""Share of scenes that get a second object of the same class, where room is left."""
TURN_DEGREES = 45.0
"""Objects are turned by at most this much to either side."""

_SUBPIXEL_BITS = 4
_MARGIN_PX = 3.0
_GAP_PX = 4.0

Pixels = NDArray[np.uint8]
Color = NDArray[np.float64]
Box = tuple[int, int, int, int]


class Scene(NamedTuple):
    """A rendered picture and what is on it."""

    pixels: Pixels
    """(H, W, 3) uint8, RGB."""
    label: int
    """Index into CLASSES."""
    boxes_xyxy: NDArray[np.float32]
    """(N, 4) float32, N 1 or 2, half-open pixels; each the extent of one object's mask."""


def render_scene(rng: np.random.Generator, label: int, size_hw: tuple[int, int]) -> Scene:
    """Return a picture of ``size_hw`` pixels with one or two objects of class ``label``, wholly inside and uncovered.

    The same state of ``rng`` gives the same scene. A ``label`` outside [0, 10) raises IndexError, a side under 48
    pixels ValueError: no drawing can be told apart there.
    """
    if min(size_hw) < 48:
        raise ValueError(f"size_hw {size_hw}: allowed: sides of 48 pixels or more")
    parts = PARTS[label]
    pixels = _background(rng, size_hw)
    colors = _colors(rng, pixels)
    first = _posed(rng, parts, size_hw)
    boxes = [_draw_object(rng, pixels, _placed(rng, first, size_hw), colors)]
    if rng.random() < SECOND_OBJECT:
        second = _placed(rng, _posed(rng, parts, size_hw), size_hw)
        if _apart(_extent(second), boxes[0]):
            boxes.append(_draw_object(rng, pixels, second, colors))
    return Scene(pixels, label, np.array(boxes, dtype=np.float32))


def write_corpus(
    folder: Path, n_images: int, seed: int, size_hw: tuple[int, int] | None = None, broken: int = 2
) -> Path:
    """Write ``n_images`` scenes and ``broken`` damaged files to ``folder``/images; return ``folder``/truth.csv.

    Classes take turns, three of four files are JPEG, the others PNG, sizes are random where ``size_hw`` is None.
    The truth has one row a box: file (relative to ``folder``), width, height, label, class_id and the half-open box in
    pixels. Damaged files (a truncated JPEG, text named .png, no bytes at all, then again) have no row. The same
    arguments give the same bytes, and picture i does not depend on how many there are.
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
    """Return a random height and width in pixels, each in SIDES_PX, their ratio at most ASPECT_MAX."""
    short, most = SIDES_PX[0], SIDES_PX[1]
    one = int(rng.integers(short, most + 1))
    other = int(rng.integers(max(short, round(one / ASPECT_MAX)), min(most, round(one * ASPECT_MAX)) + 1))
    return one, other


def _posed(rng: np.random.Generator, parts: tuple[Part, ...], size_hw: tuple[int, int]) -> list[Part]:
    """Mirror, stretch, turn and scale a drawing to its size in pixels; where it stands is left open."""
    height, width = size_hw
    angle = np.radians(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    stretch = np.diag((rng.choice((-1.0, 1.0)) * rng.uniform(0.85, 1.18), 1.0))
    posed = [part._replace(outline=part.outline @ stretch @ turn) for part in parts]
    x0, y0, x1, y1 = _extent(posed)
    smallest, largest = OBJECT_SHARE
    share = np.sqrt(rng.uniform(smallest**2, largest**2) * height * width)
    fits = min((width - 2 * _MARGIN_PX) / (x1 - x0), (height - 2 * _MARGIN_PX) / (y1 - y0))
    scale = min(share / max(x1 - x0, y1 - y0), fits)
    return [part._replace(outline=part.outline * scale, width=part.width * scale) for part in posed]


def _placed(rng: np.random.Generator, posed: list[Part], size_hw: tuple[int, int]) -> list[Part]:
    """Move a posed drawing to a random place wholly inside the picture."""
    x0, y0, x1, y1 = _extent(posed)
    room_x, room_y = size_hw[1] - (x1 - x0) - 2 * _MARGIN_PX, size_hw[0] - (y1 - y0) - 2 * _MARGIN_PX
    shift = _MARGIN_PX - np.array((x0, y0)) + rng.random(2) * np.maximum((room_x, room_y), 0.0)
    return [part._replace(outline=part.outline + shift) for part in posed]


def _extent(parts: list[Part]) -> tuple[float, float, float, float]:
    """Return the box that holds every outline with half its line width."""
    low = np.min([part.outline.min(axis=0) - part.width / 2 for part in parts], axis=0)
    high = np.max([part.outline.max(axis=0) + part.width / 2 for part in parts], axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _apart(extent: tuple[float, float, float, float], box: Box) -> bool:
    x0, y0, x1, y1 = extent
    return x0 > box[2] + _GAP_PX or x1 < box[0] - _GAP_PX or y0 > box[3] + _GAP_PX or y1 < box[1] - _GAP_PX


def _draw_object(rng: np.random.Generator, pixels: Pixels, parts: list[Part], colors: list[Color]) -> Box:
    """Draw the object on ``pixels`` in place, with shading; return the half-open box of its mask."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = _extent(parts)
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


def _colors(rng: np.random.Generator, pixels: Pixels) -> list[Color]:
    """Return main, second and dark color of an object; the main one differs clearly from the mean of ``pixels``."""
    ground = pixels[::8, ::8].reshape(-1, 3).mean(axis=0)
    choices = rng.uniform(40, 255, (12, 3))
    main = choices[np.argmax(np.linalg.norm(choices - ground, axis=1) > 90)]
    second = np.clip(main + rng.choice((-1.0, 1.0), 3) * rng.uniform(60, 140, 3), 20, 255)
    return [main, second, main * rng.uniform(0.2, 0.45)]


def _background(rng: np.random.Generator, size_hw: tuple[int, int]) -> Pixels:
    """Return a textured picture of ``size_hw`` with grain and distractors that belong to no class."""
    texture = (_gradient, _clouds, _stripes, _tiles)[rng.integers(4)]
    pixels = texture(rng, size_hw)
    _scatter(rng, pixels)
    height, width = size_hw
    half = rng.integers(0, int(rng.integers(2, 40)), ((height + 1) // 2, (width + 1) // 2), dtype=np.uint8)
    grain = cv2.resize(half, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.subtract(pixels, cv2.merge([grain, grain, grain])), dtype=np.uint8)


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
    """Color a (H, W) pattern of 0 to 255 from one color to a second near it."""
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
