"""Writes the HTML page of a run: one file that contains everything, loads no other file and runs no script."""

import base64
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import cv2
import fsspec
import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.arrays.metrics import iou

Pixels = NDArray[np.uint8]

PANEL_PX = 480
"""Longer side of the large pictures: twice their size on the page, so that they are sharp on every screen."""
STRIP_PX = 240
"""Longer side of the small pictures of the other classes' maps."""
JPEG_QUALITY = 82
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


def write_report(
    target: str | BinaryIO,
    title: str,
    summary: Mapping[str, str | float],
    scores: Sequence[Mapping[str, Any]],
    pictures: Sequence[PictureView],
    tables: Mapping[str, int],
    rejected: Sequence[Mapping[str, Any]],
    *,
    out: str = "OUT",
    notes: Sequence[str] = (),
) -> None:
    """Write the page to ``target``, any fsspec URL or a file open for writing bytes.

    ``summary``: the facts about the run by name. ``scores`` and ``rejected``: rows of two tables, whose columns are the
    keys of the first row; a float in [0, 1] in ``scores`` gets a bar. ``tables``: the number of rows of each table.
    ``out``: the output's URL in the page's example queries. ``notes``: sentences below the facts about the run. All
    values are escaped. An empty sequence leaves out its section.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.outputs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["shown"] = _shown
    environment.tests["share"] = _is_share
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        notes=notes,
        scores=scores,
        pictures=[_card(view) for view in pictures],
        tables=tables,
        rejected=rejected,
        sql_out=out.rstrip("/").replace("'", "''"),
        python_out=repr(out.rstrip("/") + "/boxes"),
        colors={"box": _css(BOX_RGB), "truth": _css(TRUTH_RGB)},
    )
    data = page.encode("utf-8", errors="replace")
    if isinstance(target, str):
        with fsspec.open(target, "wb") as sink:
            sink.write(data)
    else:
        target.write(data)


def _card(view: PictureView) -> dict[str, Any]:
    """Return the values that the template shows for one picture, with images as data URIs."""
    large = _scaled(view, min(1.0, PANEL_PX / max(view.pixels.shape[:2])))
    panels = [("original", _data_uri(large.pixels))]
    best = None
    if large.maps:
        first = large.maps[0]
        panels.append((f"map of {first.label}", _data_uri(overlay_heat(large.pixels, first.heat))))
        panels.append(("boxes", _data_uri(draw_boxes(large.pixels, first.boxes_xyxy, large.truth_xyxy))))
        if len(first.boxes_xyxy) and len(view.truth_xyxy):
            best = float(iou(view.maps[0].boxes_xyxy.astype(float), view.truth_xyxy.astype(float)).max())
    small = _scaled(view, min(1.0, STRIP_PX / max(view.pixels.shape[:2])))
    strip = [
        (
            one.label,
            one.prob,
            _data_uri(render_picture(small._replace(maps=[one], truth_xyxy=np.empty((0, 4), np.float32)))),
        )
        for one in small.maps[1:]
    ]
    name = view.uri.rstrip("/").rsplit("/", 1)[-1] or view.uri
    height, width = view.pixels.shape[:2]
    return {
        "uri": view.uri,
        "name": name,
        "size": f"{width} × {height}",
        "panels": panels,
        "maps": view.maps,
        "strip": strip,
        "iou": best,
        "has_truth": len(view.truth_xyxy) > 0,
    }


def _data_uri(pixels: Pixels) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _css(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _shown(value: Any) -> str:
    """Return the text of a table's cell, such as 12,345, 0.731 or yes; – for None."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:.3f}" if abs(number) < 10 else f"{number:,.1f}"
    return str(value)


def _is_share(value: Any) -> bool:
    """Return whether a value is a share in [0, 1] that a bar can show."""
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0.0 <= float(value) <= 1.0
