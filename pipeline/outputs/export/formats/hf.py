"""A dataset of Hugging Face: Parquet with the columns image and objects, and README.md with the splits."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.outputs.export.batches import Batch
from pipeline.outputs.export.destination import Destination
from pipeline.outputs.export.writer import ExportJob, Format, Written

SHARD_BYTES = 512 * 2**20
"""Size from which on a Parquet file takes no more rows."""

_OBJECTS = {
    "bbox": pa.list_(pa.float64(), 4),
    "category": pa.int64(),
    "area": pa.float64(),
    "score": pa.float32(),
    "class_prob": pa.float32(),
    "rank": pa.int32(),
    "threshold": pa.float32(),
}
"""A list of each for an image. A bbox is x, y, width, height in pixels, as in COCO; area is that of the box."""
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_COLUMNS = {"image": _IMAGE, "image_id": pa.string(), "uri": pa.string(), "width": pa.int32(), "height": pa.int32()}


class HfWriter:
    """Writes ``data/<split>-<number>.parquet`` without a Python object for each box."""

    def __init__(self, job: ExportJob, dest: Destination, split: str) -> None:
        """Begin the first file."""
        self._dest, self._split, self._shards = dest, split, 0
        objects = pa.struct({name: pa.list_(kind) for name, kind in _OBJECTS.items()})
        features = json.dumps({"info": {"features": _features(job.classes.names)}})
        self._schema = pa.schema({**_COLUMNS, "objects": objects}, {"huggingface": features})
        self._open()

    def write(self, batch: Batch) -> None:
        """Write a row for each image."""
        if self._file.tell() >= SHARD_BYTES:
            self.close()
            self._open()
        images = batch.images
        paths = images["uri"] if batch.data is None else pa.array(batch.files())
        pictures = [
            pa.nulls(len(batch), pa.binary()) if batch.data is None else pa.array(batch.data, pa.binary()),
            paths,
        ]
        columns = [
            pa.StructArray.from_arrays([_one(column) for column in pictures], fields=list(_IMAGE)),
            *(images[name] for name in ("image_id", "uri", "width_px", "height_px")),
            _objects(batch),
        ]
        self._parquet.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """End the file."""
        self._parquet.close()
        self._file.close()

    def _open(self) -> None:
        self._file = self._dest.open(f"data/{self._split}-{self._shards:05d}.parquet")
        self._parquet = self._dest.keep(pq.ParquetWriter(self._file, self._schema, compression="zstd"))
        self._shards += 1


def _objects(batch: Batch) -> pa.StructArray:
    boxes = batch.boxes
    xyxy = np.stack([boxes[side].to_numpy() for side in ("xmin", "ymin", "xmax", "ymax")], axis=1).astype(np.float64)
    sides = xyxy[:, 2:] - xyxy[:, :2]
    xywh = pa.array(np.concatenate([xyxy[:, :2], sides], axis=1).ravel())
    values = {
        "bbox": pa.FixedSizeListArray.from_arrays(xywh, 4),
        "category": pa.array(batch.places),
        "area": pa.array(sides.prod(axis=1)),
        "score": boxes["box_score"],
        **{name: boxes[name] for name in ("class_prob", "rank", "threshold")},
    }
    offsets = pa.array(batch.offsets, pa.int32())
    lists = [pa.ListArray.from_arrays(offsets, _one(values[name]).cast(kind)) for name, kind in _OBJECTS.items()]
    return pa.StructArray.from_arrays(lists, names=list(_OBJECTS))


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _features(names: list[str]) -> dict[str, Any]:
    """Return the types of the columns as the library ``datasets`` writes them into the files' metadata."""

    def value(kind: str) -> dict[str, Any]:
        return {"dtype": kind, "_type": "Value"}

    kinds = {
        name: value({"double": "float64", "float": "float32"}.get(str(kind), str(kind)))
        for name, kind in _OBJECTS.items()
    }
    kinds["bbox"] = {"feature": value("float64"), "length": 4, "_type": "Sequence"}
    kinds["category"] = {"names": names, "_type": "ClassLabel"}
    columns = {name: value(str(kind)) for name, kind in _COLUMNS.items() if name != "image"}
    objects = {name: {"feature": kind, "_type": "Sequence"} for name, kind in kinds.items()}
    return {"image": {"_type": "Image"}, **columns, "objects": objects}


def _finish(job: ExportJob, dest: Destination, written: Mapping[str, Written]) -> None:
    """Write README.md, which names the files of each split."""
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in written]
    card = {
        "configs": [{"config_name": "default", "data_files": files}],
        "task_categories": ["object-detection"],
        "tags": ["camlake", "weak-labels"],
    }
    rows = "".join(f"| {split} | {one.images} | {one.boxes} |\n" for split, one in written.items())
    text = (
        f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n# Weak localization labels\n\n"
        f"{' '.join(job.about.split())}."
        " `objects.bbox` is x, y, width, height in pixels of the upright picture; `objects.score` is the probability"
        " that class and box are right.\n\n| split | images | boxes |\n|---|---:|---:|\n" + rows
    )
    dest.write("README.md", text.encode())


FORMAT = Format(HfWriter, ("embed", "reference"), finish=_finish)
