"""The rows of features and feature_maps as arrays, and the maps of a linear head that follow from them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from pipeline.arrays.feature_codec import head_maps
from pipeline.images.resize import ResizePlan
from pipeline.models.weights.head_file import Head, probabilities
from pipeline.storage.lake.query import file_urls, quote_list
from pipeline.storage.lake.records import counted_commits
from schemas.errors import StoreError, UsageError
from schemas.runs import CommitRecord, RunManifest

_NEEDED = ("images", "features", "feature_maps")


class HeadMap(NamedTuple):
    """What a linear head sees of one of its classes in one image."""

    image_id: str
    uri: str
    class_id: int
    """Index of the class in the head."""
    label: str
    prob: float
    """Probability of the class, in [0, 1]; its logit is the mean of the whole map plus the head's bias."""
    heat: NDArray[np.float32]
    """(h, w): the class activation map M_c; it covers the picture and nothing of its padding."""


def vectors_of(rows: pa.Table) -> NDArray[np.float32]:
    """Return the column ``feature`` of rows as (N, K) float32."""
    values = pc.list_flatten(rows["feature"].combine_chunks()).to_numpy(zero_copy_only=False)
    found: NDArray[np.float32] = values.astype(np.float32, copy=False).reshape(len(rows), -1)
    return found


def maps_of_rows(
    rows: pa.Table, vectors: NDArray[np.float32], weight: NDArray[np.float32], chosen: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the maps (N · n, h, w) of the classes ``chosen`` (N, n), from N rows of feature_maps in their order.

    ``vectors`` (N, K): the features of the same images; ``weight`` (C, K). Raises StoreError where the rows are not of
    one size or not what ``weight`` takes. Without rows the result is (0, 1, 1).
    """
    if not len(rows):
        return np.empty((0, 1, 1), np.float32)
    shape: dict[str, Any] = {name: pc.unique(rows[name]).to_pylist() for name in ("map_h", "map_w", "channels", "bits")}
    if any(len(values) > 1 for values in shape.values()) or shape["channels"] != [weight.shape[1]]:
        raise StoreError(f"feature_maps of {shape}, the head takes {weight.shape[1]} of one size")
    height, width, _, bits = (values[0] for values in shape.values())
    found = np.empty((len(rows), chosen.shape[1], height, width), np.float32)
    start = 0
    for packed in _packed(rows["codes"]):
        own = slice(start, start + len(packed))
        try:
            found[own] = head_maps(packed, bits, (height, width), vectors[own], weight, chosen[own])
        except ValueError as error:
            raise StoreError(f"feature_maps: {error}; `camlake verify` says more") from error
        start = own.stop
    return found.reshape(-1, height, width)


def _packed(column: pa.ChunkedArray) -> Iterator[NDArray[np.uint8]]:
    """Yield the parts of a column of large binaries, (n, bytes) each, where values of one length follow each other."""
    for chunk in filter(len, column.chunks):
        offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :][: len(chunk) + 1]
        data, lengths = np.frombuffer(chunk.buffers()[2], np.uint8), np.diff(offsets)
        others = np.flatnonzero(np.diff(lengths)) + 1
        for start, end in pairwise([0, *others.tolist(), len(chunk)]):
            yield data[offsets[start] : offsets[end]].reshape(end - start, lengths[start])


def resize_of(run: RunManifest) -> ResizePlan:
    """Return how the pictures of a run became inputs of its network."""
    seen = run.lineage.preprocessing
    return ResizePlan(seen["resize"], seen["image_size"], tuple(seen["map_hw"]))


def stream_maps(
    con: duckdb.DuckDBPyConnection,
    fs: AbstractFileSystem,
    root: str,
    runs: Sequence[RunManifest],
    head: Head,
    classes: Sequence[int],
) -> Iterator[HeadMap]:
    """Yield the maps of ``classes`` of ``head`` for all current images of ``runs``, which are of the head's backbone.

    ``con`` has the views of their output at ``root``. The images of one commit after the other are in memory. Raises
    StoreError where an image lacks its features or feature maps.
    """
    model, chosen = runs[-1].model, np.array(classes, np.int64)
    con.execute("CREATE OR REPLACE TEMP TABLE camlake_current AS SELECT model, image_id, run_id FROM images")
    resize = resize_of(runs[-1])  # All runs of a model resize alike: its partition is named by a digest of that too.
    for commit in counted_commits(fs, root, runs):
        rows = _rows_of(con, fs, root, commit, model)
        if not len(rows):
            continue
        vectors = vectors_of(rows)
        probs = probabilities(head.logits(vectors))
        maps = maps_of_rows(rows, vectors, head.weight, np.broadcast_to(chosen, (len(rows), len(chosen))))
        maps = maps.reshape(len(rows), len(chosen), *maps.shape[1:])
        sizes_hw = np.stack([rows[side].to_numpy() for side in ("height_px", "width_px")], axis=1)
        named = zip(rows["image_id"].to_pylist(), rows["uri"].to_pylist(), resize.valid_hw(sizes_hw), strict=True)
        for place, (image_id, uri, (height, width)) in enumerate(named):
            for number, class_id in enumerate(classes):
                heat = maps[place, number, :height, :width].copy()
                prob = float(probs[place, class_id])
                yield HeadMap(image_id, uri, class_id, head.card.classes[class_id], prob, heat)


def _rows_of(
    con: duckdb.DuckDBPyConnection, fs: AbstractFileSystem, root: str, commit: CommitRecord, model: str
) -> pa.Table:
    """Return the current images of a commit with their features and codes, ordered by image_id."""
    urls = {table: file_urls(fs, root, commit.files, table) for table in _NEEDED}
    if not urls["images"]:
        return pa.table({})
    if not (urls["features"] and urls["feature_maps"]):
        raise StoreError(
            f"{root}: run {commit.run_id} committed images without feature maps; `camlake verify` says more"
        )
    read = {table: f"read_parquet({quote_list(found)}, hive_partitioning = false)" for table, found in urls.items()}
    rows = con.sql(
        "SELECT image_id, uri, height_px, width_px, feature, map_h, map_w, channels, bits, codes"
        f" FROM {read['images']} AS images"
        " SEMI JOIN (SELECT image_id, run_id FROM camlake_current WHERE model = $model) USING (image_id, run_id)"
        f" LEFT JOIN {read['features']} AS features USING (image_id, run_id)"
        f" LEFT JOIN {read['feature_maps']} AS maps USING (image_id, run_id) ORDER BY image_id",
        params={"model": model},
    ).to_arrow_table()
    if rows["feature"].null_count or rows["codes"].null_count:
        raise StoreError(f"{root}: run {commit.run_id} has images without feature maps; `camlake verify` says which")
    place = rows.schema.get_field_index("codes")
    return rows.set_column(place, "codes", rows["codes"].cast(pa.large_binary()))


def refuse_without_maps(runs: Sequence[RunManifest], where: str) -> None:
    """Raise UsageError where ``runs`` of one model stored no feature maps in the output ``where``."""
    if "feature_maps" not in runs[-1].settings["outputs"]:
        raise UsageError(f"{where}: has no feature_maps; annotate with --outputs boxes,heatmaps,features,feature_maps")
