"""Turns stored feature maps into the rows that ``stored_maps.new_tables`` takes: maps and probabilities of a head."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.images.resize import ResizePlan
from pipeline.models.weights.head_file import Head, probabilities
from pipeline.outputs.feature_rows import maps_of_rows, vectors_of
from pipeline.storage.lake.rows import map_columns
from schemas.errors import StoreError
from schemas.tables import TABLES, Table

_COLUMNS: dict[Table, tuple[str, ...]] = {
    "images": tuple(TABLES["images"].columns.names),
    "quarantine": tuple(TABLES["quarantine"].columns.names),
    "features": ("image_id", "feature"),
    "feature_maps": ("image_id", "map_h", "map_w", "channels", "bits", "codes"),
}


class HeadRows(NamedTuple):
    """The rows of some inputs, with a head's classes in the place of the network's."""

    tables: dict[Table, pa.Table]
    """images, boxes, heatmaps, foreground and quarantine, as ``new_tables`` takes them."""

    def kept(self, run_id: str) -> dict[Table, pa.Table]:
        """Return the rows of heatmaps and foreground for the run ``run_id``; tables without rows are left out."""
        found = {}
        for name in ("heatmaps", "foreground"):
            rows = self.tables.get(name)
            if rows is not None and len(rows):
                rows = rows.append_column("run_id", pa.repeat(run_id, len(rows)))
                found[name] = rows.select(TABLES[name].columns.names)
        return found


def columns_of(with_foreground: bool) -> Mapping[Table, Sequence[str]]:
    """Return the tables and columns of a source that are needed."""
    names = [name for name in TABLES["foreground"].columns.names if name != "run_id"]
    return {**_COLUMNS, "foreground": names} if with_foreground else _COLUMNS


def head_tables(rows: Mapping[Table, pa.Table], head: Head, topk: int, resize: ResizePlan) -> HeadRows:
    """Return the rows of the inputs in ``rows``, which has the tables of ``columns_of``.

    Each image gets maps of the ``topk`` most probable classes of the head; ties are ordered by class id. A map covers
    the cells that show the picture. Raises StoreError where an image has no feature maps or other ones than the head
    takes.
    """
    images = rows["images"]
    ids = images["image_id"].combine_chunks()
    features, codes = (_of_images(rows[name], ids, name) for name in ("features", "feature_maps"))
    empty = np.empty((0, head.weight.shape[1]), np.float32)
    vectors = vectors_of(features) if len(images) else empty
    if vectors.shape[1] != head.weight.shape[1]:
        raise StoreError(f"features have {vectors.shape[1]} values, the head takes {head.weight.shape[1]}")
    probs = probabilities(head.logits(vectors))
    chosen = np.argsort(-probs, axis=1, kind="stable")[:, :topk]
    maps = maps_of_rows(codes, vectors, head.weight, chosen)
    class_prob = np.take_along_axis(probs, chosen, axis=1)
    labels = pa.array(head.card.classes, pa.string())
    sizes_hw = np.stack([images[side].to_numpy() for side in ("height_px", "width_px")], axis=1).astype(np.int64)
    per_map = {
        "image_id": ids.take(pa.array(np.repeat(np.arange(len(images)), topk))),
        "rank": pa.array(np.tile(np.arange(topk, dtype=np.int32), len(images))),
        "class_id": pa.array(chosen.reshape(-1).astype(np.int32)),
        "label": labels.take(pa.array(chosen.reshape(-1))),
    }
    stored = map_columns("heat", maps, np.repeat(resize.valid_hw(sizes_hw), topk, axis=0))
    tables: dict[Table, pa.Table] = {name: rows[name] for name in ("quarantine", "foreground") if name in rows}
    tables["heatmaps"] = pa.table({**per_map, **stored})
    prob_of_map = pa.array(class_prob.reshape(-1))
    tables["boxes"] = pa.table({"image_id": per_map["image_id"], "rank": per_map["rank"], "class_prob": prob_of_map})
    top = {
        "top1_class_id": pa.array(chosen[:, 0].astype(np.int32)),
        "top1_label": labels.take(pa.array(chosen[:, 0])),
        "top1_prob": pa.array(class_prob[:, 0]),
    }
    for name, values in top.items():
        index = images.schema.get_field_index(name)
        images = images.set_column(index, images.schema.field(name), values)
    tables["images"] = images
    return HeadRows(tables)


def _of_images(rows: pa.Table, ids: pa.Array, name: str) -> pa.Table:
    """Return the rows of the images ``ids``, in their order; raises StoreError where an image has none."""
    place = pc.index_in(ids, rows["image_id"].combine_chunks())
    if place.null_count:
        raise StoreError(f"{place.null_count} images have no row in {name}; `camlake verify` says which")
    in_order = len(ids) == len(rows) and pc.all(pc.equal(place, pa.array(np.arange(len(ids), dtype=np.int32)))).as_py()
    return rows if in_order else rows.take(place)
