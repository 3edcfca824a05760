"""What the page's scripts know of each picture: its classes with their stored maps, its boxes, its true boxes."""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrays.metrics import iou
from pipeline.storage.truth.truth import Truth

_IMAGES = "image_id, run_id, uri, width_px, height_px, top1_class_id, top1_label, top1_prob"
_TABLES = {
    "boxes": "rank, class_id, label, class_prob, threshold, component, xmin, ymin, xmax, ymax, area_frac, box_score",
    "heatmaps": "rank, class_id, label, heat_h, heat_w, heat_min, heat_max, heat",
    "foreground": "fg_h, fg_w, fg_min, fg_max, fg",
}
_ORDER = {"boxes": "rank, threshold, component", "heatmaps": "rank", "foreground": "image_id"}
_LISTS = {"heatmaps": "heat", "foreground": "fg"}
_CHOSEN = "model = $model AND image_id IN (SELECT unnest($ids::VARCHAR[]))"

Entry = dict[str, Any]


def entries_of(
    con: duckdb.DuckDBPyConnection, model: str, ids: Sequence[str], truth: Truth | None = None, images: str = "images"
) -> list[Entry]:
    """Return an entry for each image of ``ids`` that the model has, in their order.

    ``con`` has the views of an output; ``images`` names the table of the current images. An entry has in JSON's types:
    id, uri, name, width and height in pixels; label and prob of the most probable class; score (box_score, or
    class_prob where there is none) and area (share of the picture) of the first box, 0 without one; classes by rank,
    each with id, label, rank, prob (None where no box tells it) and heat, its stored map or None; figure, the
    figure/ground map or None; boxes with the index of their class, threshold, score and xyxy (half-open pixels); truth,
    the true boxes; iou, the best IoU of a box of the first class with one, None without either.
    """
    chosen = {"model": model, "ids": list(ids)}
    rows = con.sql(f"SELECT {_IMAGES} FROM {images} WHERE {_CHOSEN}", params=chosen).to_arrow_table().to_pylist()
    found = {row["image_id"]: row for row in rows}
    known = [found[one] for one in ids if one in found]
    runs = {row["image_id"]: row["run_id"] for row in known}
    boxes, heats, figures = (_rows(con, table, model, runs) for table in _TABLES)
    true_boxes = _true_boxes(truth, [row["uri"] for row in known])
    return [
        _entry(row, boxes[row["image_id"]], heats[row["image_id"]], figures[row["image_id"]], true_boxes)
        for row in known
    ]


def _rows(
    con: duckdb.DuckDBPyConnection, table: str, model: str, runs: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each image in one table, of the run in ``runs`` that counts for it.

    The views of the current rows decide this anew for the whole output at each query; the run is known here.
    """
    query = (
        f"SELECT image_id, run_id, {_TABLES[table]} FROM all_{table} WHERE {_CHOSEN}"
        f" AND run_id IN (SELECT unnest($runs::VARCHAR[])) ORDER BY {_ORDER[table]}"
    )
    chosen = {"model": model, "ids": list(runs), "runs": sorted(set(runs.values()))}
    found: pa.Table = con.sql(query, params=chosen).to_arrow_table()
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    maps = _LISTS.get(table)
    stored = _map_bytes(found[maps]) if maps else []
    for number, row in enumerate(found.drop_columns([maps] if maps else []).to_pylist()):
        if row["run_id"] == runs[row["image_id"]]:
            grouped[row["image_id"]].append(row | ({maps: stored[number]} if maps else {}))
    return grouped


def _map_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """Return each list of bytes as one value."""
    lists = column.combine_chunks()
    return [np.asarray(one.values).astype(np.uint8).tobytes() for one in lists]


def _entry(
    image: Mapping[str, Any],
    boxes: Sequence[Mapping[str, Any]],
    heats: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, Any]],
    true_boxes: Mapping[str, NDArray[np.float64]],
) -> Entry:
    prob = {image["top1_class_id"]: image["top1_prob"]} | {box["class_id"]: box["class_prob"] for box in boxes}
    heat = {row["class_id"]: _stored(row, "heat") for row in heats}
    named = {row["class_id"]: (row["rank"], row["class_id"], row["label"]) for row in (*heats, *boxes)}
    named = named or {image["top1_class_id"]: (0, image["top1_class_id"], image["top1_label"])}
    order = sorted(named.values())
    place = {class_id: index for index, (_, class_id, _) in enumerate(order)}
    truth = true_boxes.get(image["uri"], np.empty((0, 4)))
    first = [_xyxy(box) for box in boxes if box["rank"] == boxes[0]["rank"]]
    return {
        "id": image["image_id"],
        "uri": image["uri"],
        "name": image["uri"].rstrip("/").rsplit("/", 1)[-1] or image["uri"],
        "width": image["width_px"],
        "height": image["height_px"],
        "label": image["top1_label"],
        "prob": _short(image["top1_prob"]),
        "score": _short(_score(boxes[0]) if boxes else 0.0),
        "area": _short(boxes[0]["area_frac"] if boxes else 0.0),
        "classes": [
            {"id": one, "label": label, "rank": rank, "prob": _short(prob.get(one)), "heat": heat.get(one)}
            for rank, one, label in order
        ],
        "figure": _stored(figures[0], "fg") if figures else None,
        "boxes": [
            {
                "class": place[box["class_id"]],
                "threshold": _short(box["threshold"]),
                "score": _short(_score(box)),
                "xyxy": [round(side, 3) for side in _xyxy(box)],
            }
            for box in boxes
        ],
        "truth": truth.round(2).tolist(),
        "iou": float(iou(np.array(first), truth).max().round(4)) if first and len(truth) else None,
    }


def _score(box: Mapping[str, Any]) -> float:
    score = box["box_score"] if box["box_score"] is not None else box["class_prob"]
    return float(score)


def _xyxy(box: Mapping[str, Any]) -> list[float]:
    return [box[side] for side in ("xmin", "ymin", "xmax", "ymax")]


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _stored(row: Mapping[str, Any], name: str) -> Entry:
    """Return a stored map for the scripts; its two float32 are exact in JSON."""
    return {
        "h": row[f"{name}_h"],
        "w": row[f"{name}_w"],
        "lo": row[f"{name}_min"],
        "hi": row[f"{name}_max"],
        "q": base64.b64encode(row[name]).decode("ascii"),
    }


def _true_boxes(truth: Truth | None, uris: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    if truth is None:
        return {}
    boxes: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for pair, place in enumerate(truth.match(uris)):
        if place >= 0:
            boxes[uris[place]].append(truth.boxes_xyxy[truth.owner == pair])
    return {uri: np.concatenate(parts).astype(np.float64) for uri, parts in boxes.items()}
