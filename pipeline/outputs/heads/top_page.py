"""The page of the first images of an order: one HTML file that loads no other file and runs no script."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.outputs.drawing import Pixels, smaller
from pipeline.outputs.heads.top import SIDE_PX, Ranked

_BOX_RGB = (255, 122, 26)
_JPEG_QUALITY = 85


def page(
    title: str,
    notes: Sequence[str],
    names: Sequence[str],
    ranked: Sequence[Sequence[Ranked]],
    pictures: Mapping[str, Pixels],
) -> bytes:
    """Return the page; ``pictures`` has the pixels by image_id. All texts are escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = resources.files("pipeline.outputs.heads").joinpath("top.html.j2").read_text(encoding="utf-8")
    sections = [
        (name, [_card(place, one, pictures.get(one.image_id)) for place, one in enumerate(some)])
        for name, some in zip(names, ranked, strict=True)
    ]
    html = environment.from_string(template).render(title=title, notes=notes, sections=sections)
    return html.encode("utf-8", errors="replace")


def _card(place: int, one: Ranked, pixels: Pixels | None) -> dict[str, Any]:
    name = one.uri.rstrip("/").rsplit("/", 1)[-1] or one.uri
    picture = None if pixels is None else _data_uri(drawn(pixels, one))
    return {"rank": place, "uri": one.uri, "name": name, "value": f"{one.value:.4g}", "picture": picture}


def drawn(pixels: Pixels, one: Ranked) -> Pixels:
    """Return the picture, its longer side at most SIDE_PX, with its map in colours over it and its box."""
    canvas = smaller(pixels, SIDE_PX)
    if one.heat is not None:
        canvas = _coloured(canvas, one.heat)
    if one.box_xyxy is not None:
        scale = min(1.0, SIDE_PX / max(one.size_hw or pixels.shape[:2]))
        x0, y0, x1, y1 = (round(side * scale) for side in one.box_xyxy)
        canvas = canvas.copy()  # The pixels may be those of the caller, who shows a picture more than once.
        cv2.rectangle(canvas, (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)), _BOX_RGB, 2)
    return canvas


def _coloured(pixels: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Return the picture in gray, covered by colours for the map from its minimum to its maximum."""
    low, high = float(heat.min()), float(heat.max())
    if not high > low:
        return pixels
    surface = cv2.resize((heat - low) / (high - low), pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    share = np.clip(surface, 0, 1)[:, :, None]
    colours = cv2.applyColorMap((share * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None]
    cover = 0.15 + 0.5 * share
    mixed: Pixels = np.round(gray * (1 - cover) + colours * cover).astype(np.uint8)
    return np.ascontiguousarray(mixed)


def _data_uri(pixels: Pixels) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + b64encode(data.tobytes()).decode()
