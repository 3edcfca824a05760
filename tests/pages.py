"""A report's page, written for pictures that are made here."""

import base64
from typing import Any

import numpy as np

from pipeline.arrays.maps import quantize
from pipeline.outputs.drawing import MapView, PictureView
from pipeline.outputs.page.page_pictures import webp
from pipeline.outputs.page.report import Gallery, Overview, render_page

NO_BOXES = np.empty((0, 4), np.float32)
HEAT = np.array([[0.0, 1.0], [-1.0, 4.0]], np.float32)
RULE = {
    "name": "paper",
    "threshold": 0.2,
    "min_area": 0.0,
    "all": False,
    "combination": None,
    "refusal": "",
}


def boxes_xyxy(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def picture_view(uri: str = "images/mug-0001.jpg", label: str = "mug", n_maps: int = 2) -> PictureView:
    maps = [MapView(label, 0.9 / (rank + 1), HEAT, boxes_xyxy((40, 20, 90, 70))) for rank in range(n_maps)]
    pixels = np.full((80, 100, 3), (30, 60, 90), np.uint8)
    return PictureView(uri, pixels, maps, boxes_xyxy((45, 25, 90, 70)))


def stored_map(values: np.ndarray) -> dict[str, Any]:
    """Return a map as the page's scripts get it."""
    codes, low, high = quantize(values[None].astype(np.float32))
    height, width = values.shape
    q = base64.b64encode(codes.tobytes()).decode()
    return {"h": height, "w": width, "lo": float(low[0]), "hi": float(high[0]), "q": q}


def entry(number: int, uri: str = "", label: str = "mug", score: float = 0.5, area: float = 0.25) -> dict[str, Any]:
    """Return a picture of 100 × 80 pixels with two classes, of which the first has a box."""
    uri = uri or f"images/{label}-{number:04d}.jpg"
    classes = [
        {"id": 3, "label": label, "rank": 0, "prob": 0.9, "heat": stored_map(HEAT)},
        {"id": 5, "label": "cup", "rank": 1, "prob": None, "heat": stored_map(-HEAT)},
    ]
    return {
        "id": f"{number:032x}",
        "uri": uri,
        "name": uri.rsplit("/", 1)[-1],
        "width": 100,
        "height": 80,
        "label": label,
        "prob": 0.9,
        "score": score,
        "area": area,
        "classes": classes,
        "figure": None,
        "boxes": [{"class": 0, "threshold": 0.2, "score": score, "xyxy": [40.0, 20.0, 90.0, 70.0]}],
        "truth": [[45.0, 25.0, 90.0, 70.0]],
        "iou": 0.81,
    }


def gallery(*entries: dict[str, Any], rule: dict[str, Any] = RULE) -> Gallery:
    """Return a gallery of blue pictures."""
    picture = webp(picture_view().pixels, 480)
    labels = sorted({one["classes"][0]["label"] for one in entries})
    return Gallery(entries, rule, labels, len(entries), {one["id"]: picture for one in entries})


def report_page(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A run",
        "counts": {"images": 12345, "rejected": "3: 3 truncated"},
        "summary": {"model": "camlake_demo-1a2b3c4d"},
        "overview": Overview(34567, [("mug", 300), ("bowl", 30)], 40, [1, 0, 3], True, [0, 2, 2]),
        "scores": [{"score": "GT-known at 0.2", "camlake": 0.75, "central box": 0.25, "images": 12}],
        "gallery": gallery(entry(1)),
        "tables": {"images": 12, "boxes": 34567},
        "notes": ["boxes: 10% cover more than 90% of the picture", "skipped 3 files as no images: 3 .txt"],
        "rejected": [{"uri": "images/broken.jpg", "reason_code": "truncated", "permanent": True, "detail": None}],
        "out": "labels",
    }
    return render_page(**(arguments | changes)).decode("utf-8")
