"""Draws pictures with their maps and boxes, alone and side by side on one sheet."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

BOX_RGB = (255, 122, 26)
TRUTH_RGB = (64, 224, 160)
_CASING_RGB = (16, 18, 24)
_DASH_PX = 3
"""Length of a dash and of a gap, in line widths."""


class MapView(NamedTuple):
    """A class activation map of a picture and the boxes cut from it."""

    label: str
    prob: float
    """Softmax probability in [0, 1]."""
    heat: NDArray[np.float32]
    """(h, w) float32, the map M_c; it covers the whole picture."""
    boxes_xyxy: NDArray[np.float32]
    """(N, 4) float32, half-open pixels of ``pixels``; (0, 4) where the map gives no box."""


class PictureView(NamedTuple):
    """A picture of the report: the original, its maps by descending probability, and its true boxes."""

    uri: str
    pixels: Pixels
    """(H, W, 3) uint8, RGB, upright."""
    maps: list[MapView]
    truth_xyxy: NDArray[np.float32]
    """(M, 4) float32, half-open pixels; (0, 4) where no true box is known."""


def render_picture(view: PictureView) -> Pixels:
    """Return the picture (H, W, 3) uint8 RGB covered by its first map, with the map's boxes and the true boxes.

    The map's boxes are solid, the true boxes are dashed. A picture without maps keeps its colors.
    """
    first = view.maps[0] if view.maps else None
    canvas = overlay_heat(view.pixels, first.heat) if first else view.pixels.copy()
    return draw_boxes(canvas, first.boxes_xyxy if first else np.empty((0, 4)), view.truth_xyxy)


def smaller(pixels: Pixels, side_px: int) -> Pixels:
    """Return the picture with a longer side of at most ``side_px``: ``pixels`` itself where it is small enough."""
    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def overlay_heat(pixels: Pixels, heat: NDArray[np.floating[Any]]) -> Pixels:
    """Return ``pixels`` (H, W, 3) in gray, covered by the map ``heat`` (h, w) in colors for max(M, 0) / max M.

    The map is upsampled bilinearly, and the colors are denser where it is higher. A map with no positive value, or with
    a NaN, gives the gray picture alone.
    """
    height, width = pixels.shape[:2]
    gray = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    highest = float(heat.max())
    if not highest > 0 or not math.isfinite(highest):
        return np.asarray(gray, dtype=np.uint8)
    surface = cv2.resize(np.asarray(heat, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.clip(surface / highest, 0.0, 1.0)
    colors = cv2.applyColorMap((share * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    cover = (0.2 + 0.5 * share)[:, :, None]
    mixed: Pixels = np.round(gray * (1 - cover) + colors * cover).astype(np.uint8)
    return mixed


def draw_boxes(pixels: Pixels, boxes_xyxy: NDArray[Any], truth_xyxy: NDArray[Any]) -> Pixels:
    """Return a copy of ``pixels`` with half-open boxes (N, 4): the true boxes dashed, the others solid on top."""
    canvas = pixels.copy()
    line_px = 1 + 2 * (max(pixels.shape[:2]) // 300)
    for box in truth_xyxy:
        _draw_box(canvas, box, TRUTH_RGB, line_px, _DASH_PX * line_px)
    for box in boxes_xyxy:
        _draw_box(canvas, box, BOX_RGB, line_px, 0)
    return canvas


def _draw_box(canvas: Pixels, box: NDArray[Any], rgb: tuple[int, int, int], line_px: int, dash_px: int) -> None:
    """Draw one box in place: half-dark casing, then the color in dashes of ``dash_px``, or unbroken where that is 0."""
    height, width = canvas.shape[:2]
    x0, y0 = max(round(float(box[0])), 0), max(round(float(box[1])), 0)
    x1, y1 = min(round(float(box[2])), width) - 1, min(round(float(box[3])), height) - 1
    casing = cv2.rectangle(canvas.copy(), (x0, y0), (x1, y1), _CASING_RGB, line_px + 2)
    cv2.addWeighted(casing, 0.5, canvas, 0.5, 0, dst=canvas)
    if not dash_px:
        cv2.rectangle(canvas, (x0, y0), (x1, y1), rgb, line_px)
        return
    for x in range(x0, x1 + 1, 2 * dash_px):
        for y in (y0, y1):
            cv2.line(canvas, (x, y), (min(x + dash_px, x1), y), rgb, line_px)
    for y in range(y0, y1 + 1, 2 * dash_px):
        for x in (x0, x1):
            cv2.line(canvas, (x, y), (x, min(y + dash_px, y1)), rgb, line_px)


def contact_sheet(pictures: Sequence[PictureView], columns: int, width_px: int) -> Pixels:
    """Return a sheet (H, ``width_px``, 3) uint8 RGB: each picture beside its map and boxes, with its first class below.

    Raises ValueError where ``pictures`` is empty.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    gap, caption = 10, 26
    tile_w = (width_px - gap * (columns + 1)) // columns
    half_w = (tile_w - 2) // 2
    half_h = round(half_w * 3 / 4)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width_px, gap + rows * (half_h + caption + gap)), "white")
    ink = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for index, view in enumerate(pictures):
        left = gap + (index % columns) * (tile_w + gap)
        top = gap + (index // columns) * (half_h + caption + gap)
        for side, panel in enumerate(_pair(view, half_w, half_h)):
            sheet.paste(Image.fromarray(panel), (left + side * (half_w + 2), top))
        text = f"{view.maps[0].label}  {view.maps[0].prob:.0%}" if view.maps else "no map"
        ink.text((left, top + half_h + 4), text, fill=(70, 76, 88), font=font)
    return np.asarray(sheet)


def _pair(view: PictureView, width: int, height: int) -> list[Pixels]:
    """Return the original and the rendered picture, each centred on (``height``, ``width``)."""
    scale = min(width / view.pixels.shape[1], height / view.pixels.shape[0])
    small = _scaled(view, scale)
    panels = []
    for pixels in (small.pixels, render_picture(small)):
        panel: Pixels = np.full((height, width, 3), 242, np.uint8)
        h, w = min(pixels.shape[0], height), min(pixels.shape[1], width)
        top, left = (height - h) // 2, (width - w) // 2
        panel[top : top + h, left : left + w] = pixels[:h, :w]
        panels.append(panel)
    return panels


def _scaled(view: PictureView, scale: float) -> PictureView:
    """Return the view with pixels and boxes ``scale`` times as large."""
    height, width = view.pixels.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = np.asarray(cv2.resize(view.pixels, size, interpolation=how), dtype=np.uint8)
    factor = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    maps = [one._replace(boxes_xyxy=one.boxes_xyxy * factor) for one in view.maps]
    return PictureView(view.uri, pixels, maps, view.truth_xyxy * factor)
