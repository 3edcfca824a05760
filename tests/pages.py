"""A report's page, written for pictures that are made here."""

import io
from typing import Any

import numpy as np

from pipeline.outputs.report import MapView, PictureView, write_report

NO_BOXES = np.empty((0, 4), np.float32)


def boxes_xyxy(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def picture_view(uri: str = "images/mug-0001.jpg", label: str = "mug", n_maps: int = 2) -> PictureView:
    heat = np.array([[0.0, 1.0], [-1.0, 4.0]], np.float32)
    maps = [MapView(label, 0.9 / (rank + 1), heat, boxes_xyxy((40, 20, 90, 70))) for rank in range(n_maps)]
    pixels = np.full((80, 100, 3), (30, 60, 90), np.uint8)
    return PictureView(uri, pixels, maps, boxes_xyxy((45, 25, 90, 70)))


def report_page(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A run",
        "summary": {"images": 12345, "model": "camlake_demo-1a2b3c4d"},
        "scores": [{"score": "GT-known at 0.2", "camlake": 0.75, "central box": 0.25, "images": 12}],
        "pictures": [picture_view()],
        "tables": {"images": 12, "boxes": 34567},
        "notes": ["boxes: 10% cover more than 90% of the picture", "skipped 3 files as no images: 3 .txt"],
        "rejected": [{"uri": "images/broken.jpg", "reason_code": "truncated", "permanent": True, "detail": None}],
    }
    sink = io.BytesIO()
    write_report(sink, **(arguments | changes))
    return sink.getvalue().decode("utf-8")
