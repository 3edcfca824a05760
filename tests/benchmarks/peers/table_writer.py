"""Write a loop's results as plain Parquet files: the same tables with the same columns as ``camlake annotate``.

There are no commit records, no lease and no resume: a run that dies leaves files without their footers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.storage.inputs.listing import image_id
from schemas.tables import Table, network_types, written_schemas
from tests.references.network_by_hand import TOPK, NetworkOutput, boxes_of
from tests.references.opencv_boxes import THRESHOLD

ROWS_A_GROUP = 256
"""Images whose rows are written together; ``annotate`` commits as many in a run of a few thousand images."""


class TableWriter:
    """Writes the tables images, boxes, heatmaps and features; it is a context manager, and its end closes the files."""

    def __init__(self, out: Path, channels: int, labels: NDArray[np.object_]) -> None:
        """Open the files in ``out``; ``channels`` is the length of a feature vector, ``labels`` name the classes."""
        out.mkdir(parents=True)
        names: tuple[Table, ...] = ("images", "boxes", "heatmaps", "features")
        schemas = written_schemas(names, network_types(channels, "float32"))
        self._schemas = {name: schemas[name] for name in names}
        self._files = {
            name: pq.ParquetWriter(out / f"{name}.parquet", schema, compression="zstd")
            for name, schema in self._schemas.items()
        }
        self._labels = labels
        self._waiting: dict[Table, list[pa.Table]] = {name: [] for name in names}

    def add(self, paths: Sequence[str], sizes_hw: NDArray[np.int64], found: NetworkOutput) -> None:
        """Add the rows of B images: their files, their (height, width) in pixels (B, 2), and the network's output."""
        boxes = boxes_of(found.maps, sizes_hw)
        ids = np.array([image_id(path) for path in paths], dtype=object)
        ranks = np.tile(np.arange(TOPK), len(paths))
        classes = found.class_ids.reshape(-1)
        per_map = {"image_id": ids.repeat(TOPK), "uri": np.array(paths, dtype=object).repeat(TOPK), "rank": ranks}
        per_map |= {"class_id": classes, "label": self._labels[classes]}
        self._keep("images", _images(paths, ids, sizes_hw, found, self._labels, boxes))
        self._keep("boxes", _boxes(per_map, sizes_hw, found, boxes))
        self._keep("heatmaps", per_map | _heatmaps(found.maps))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.pooled.reshape(-1)), found.pooled.shape[1])
        self._keep("features", {"image_id": ids, "feature": vectors})
        if sum(map(len, self._waiting["images"])) >= ROWS_A_GROUP:
            self._write()

    def __enter__(self) -> "TableWriter":
        """Return the writer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Write the remaining rows and close the files."""
        self._write()
        for file in self._files.values():
            file.close()

    def _keep(self, name: Table, columns: dict[str, Any]) -> None:
        schema = self._schemas[name]
        columns["run_id"] = np.full(len(columns["image_id"]), "by hand", dtype=object)
        self._waiting[name].append(pa.table({field: columns[field] for field in schema.names}, schema=schema))

    def _write(self) -> None:
        for name, tables in self._waiting.items():
            if tables:
                self._files[name].write_table(pa.concat_tables(tables))
            self._waiting[name] = []


def _images(
    paths: Sequence[str],
    ids: NDArray[np.object_],
    sizes_hw: NDArray[np.int64],
    found: NetworkOutput,
    labels: NDArray[np.object_],
    boxes: NDArray[np.float32],
) -> dict[str, Any]:
    facts = [Path(path).stat() for path in paths]
    return {
        "image_id": ids,
        "uri": list(paths),
        "etag": [None] * len(paths),
        "size_bytes": [fact.st_size for fact in facts],
        "modified_at": [datetime.fromtimestamp(fact.st_mtime, UTC) for fact in facts],
        "width_px": sizes_hw[:, 1],
        "height_px": sizes_hw[:, 0],
        "format": ["JPEG"] * len(paths),
        "top1_class_id": found.class_ids[:, 0],
        "top1_label": labels[found.class_ids[:, 0]],
        "top1_prob": found.probs[:, 0],
        "n_boxes": np.isfinite(boxes[:, :, 0]).sum(axis=1),
        "annotated_at": [datetime.now(UTC)] * len(paths),
    }


def _boxes(
    per_map: dict[str, Any], sizes_hw: NDArray[np.int64], found: NetworkOutput, boxes: NDArray[np.float32]
) -> dict[str, Any]:
    flat = boxes.reshape(-1, 4)
    kept = np.isfinite(flat[:, 0])
    flat = flat[kept]
    columns: dict[str, Any] = {name: column[kept] for name, column in per_map.items()}
    columns |= {side: flat[:, index] for index, side in enumerate(("xmin", "ymin", "xmax", "ymax"))}
    areas_px = (flat[:, 2:] - flat[:, :2]).prod(axis=1)
    return columns | {
        "class_prob": found.probs.reshape(-1)[kept],
        "component": np.zeros(len(flat), np.int32),
        "threshold": np.full(len(flat), THRESHOLD, np.float32),
        "area_frac": (areas_px / sizes_hw.prod(axis=1).repeat(TOPK)[kept]).astype(np.float32),
        "box_score": [None] * len(flat),
        "method": ["cam"] * len(flat),
    }


def _heatmaps(maps: NDArray[np.float32]) -> dict[str, Any]:
    flat = maps.reshape(-1, maps.shape[2] * maps.shape[3])
    low, high = flat.min(axis=1), flat.max(axis=1)
    span = np.where(high > low, high - low, 1)
    levels = np.rint((flat - low[:, None]) / span[:, None] * 255).astype(np.uint8)
    offsets = np.arange(len(flat) + 1) * flat.shape[1]
    return {
        "heat_h": np.full(len(flat), maps.shape[2]),
        "heat_w": np.full(len(flat), maps.shape[3]),
        "heat_min": low,
        "heat_max": high,
        "heat": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(levels.reshape(-1))),
    }
