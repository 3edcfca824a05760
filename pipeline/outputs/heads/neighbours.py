"""The nearest neighbours of an image, and all near duplicates of an output, by the cosine of their features.

Neighbours stream: only the nearest are in memory. Duplicates hold the unit vectors, in memory up to MEMORY_BYTES and
beyond that in a temporary file, and compare all pairs in blocks, or look them up in an index.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from pipeline.annotate.reporter import Reporter
from pipeline.arrays.nearest import close_pairs, groups, units
from pipeline.outputs.feature_rows import vectors_of
from pipeline.outputs.heads.features import FeatureSource, feature_batches
from pipeline.outputs.heads.vector_index import indexed_pairs
from pipeline.storage.lake.query import committed_views
from schemas.errors import ModelError, StoreError, UsageError

MOST_IMAGES = 1_000_000
"""Most images of which all pairs are compared: at 100 GFLOP/s a million vectors of 1,280 values take four hours."""
MOST_PAIRS = 5_000_000
"""Most pairs of near duplicates, which are in memory: 100 MB and the names of their images."""
MEMORY_BYTES = 2**30
"""Vectors of more bytes lie in a temporary file."""


def nearest(source: FeatureSource, of: str, count: int) -> pa.Table:
    """Return the ``count`` images nearest to the image ``of``, nearest first, as columns image_id, uri and cosine.

    ``of``: a uri, the end of one after a /, or an image_id. The image itself is left out; ties are ordered by image_id.
    Raises UsageError for a name of no image or of several.
    """
    image_id = _image_of(source, of)
    with committed_views(source.fs, source.root, source.files) as con:
        query = "SELECT feature FROM features WHERE image_id = $one"
        rows = con.sql(query, params={"one": image_id}).to_arrow_table()
    if not len(rows):
        raise StoreError(f"{source.where}: image {image_id} has no features; `camlake verify` says which")
    wanted = units(vectors_of(rows))[0]
    best: list[tuple[float, str, str]] = []
    for batch in feature_batches(source):
        cosines = (units(_finite(batch, source)) @ wanted).clip(-1, 1)
        at_least = np.partition(cosines, -count - 1)[-count - 1] if len(cosines) > count else -1.0
        kept = np.flatnonzero(cosines >= at_least)  # With all ties, so that their order is that of their ids.
        named = batch.select(["image_id", "uri"]).take(pa.array(kept)).to_pylist()
        best += [(-float(cosines[at]), row["image_id"], row["uri"]) for at, row in zip(kept, named, strict=True)]
        best = sorted(one for one in best if one[1] != image_id)[:count]
    return pa.table(
        {
            "image_id": pa.array([one[1] for one in best], pa.string()),
            "uri": pa.array([one[2] for one in best], pa.string()),
            "cosine": pa.array([-one[0] for one in best], pa.float32()),
        }
    )


def near_duplicates(source: FeatureSource, least: float, reporter: Reporter, *, index: bool = False) -> pa.Table:
    """Return all pairs of images whose features have a cosine of at least ``least``, by group, then by image_id.

    Columns: image_id and uri of both (``other_id``, ``other_uri``), cosine, and group, a number: images that are
    connected through pairs have the same one. With ``index`` an index looks pairs up, and may miss some. Raises
    UsageError for too many images or pairs.
    """
    with committed_views(source.fs, source.root, source.files) as con:
        ((count,),) = con.sql("SELECT count(*) FROM features").fetchall()
    if count > MOST_IMAGES and not index:
        raise UsageError(
            f"--duplicates: {count} images; allowed: up to {MOST_IMAGES}, all pairs of which are compared, or --index"
        )
    with _unit_vectors(source, count) as (ids, uris, rows, where):
        empty = int((~rows.any(axis=1)).sum()) if len(rows) else 0
        reporter.say(f"{len(rows)} vectors of {rows.shape[1]} values, {rows.nbytes / 1e6:.0f} MB {where}")
        if empty:
            reporter.say(f"{empty} images have features of zeros only and are near to nothing")
        parts, found = [], 0
        with reporter.progress("comparing", len(rows)) as advance:
            for part in (indexed_pairs if index else close_pairs)(rows, least, advance):
                parts.append(part)
                found += len(part[0])
                if found > MOST_PAIRS:
                    raise UsageError(f"--least {least:g}: more than {MOST_PAIRS} pairs; give a greater one")
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    i, j, cosine = (np.concatenate(column) for column in zip(nothing, *parts, strict=True))
    by_id = np.argsort(np.array(ids, dtype=str))  # The order in which rows are read is not always the same.
    rank = np.empty(len(ids), np.int64)
    rank[by_id] = np.arange(len(ids))
    i, j = np.minimum(rank[i], rank[j]), np.maximum(rank[i], rank[j])
    group = groups(len(ids), i, j)[i]
    order = np.lexsort((j, i, group))
    i, j = i[order], j[order]
    _, number = np.unique(group[order], return_inverse=True)
    id_column, uri_column = (pa.array(values, pa.string()).take(pa.array(by_id)) for values in (ids, uris))
    return pa.table(
        {
            "image_id": id_column.take(pa.array(i)),
            "uri": uri_column.take(pa.array(i)),
            "other_id": id_column.take(pa.array(j)),
            "other_uri": uri_column.take(pa.array(j)),
            "cosine": pa.array(cosine[order]),
            "group": pa.array(number.astype(np.int64)),
        }
    )


@contextmanager
def _unit_vectors(source: FeatureSource, count: int) -> Iterator[tuple[list[str], list[str], NDArray[np.float32], str]]:
    """Yield ids, uris and unit vectors (N, K) of all images, and in words where the vectors lie during the block."""
    ids: list[str] = []
    uris: list[str] = []
    rows: NDArray[np.float32] | None = None
    where = "in memory"
    with tempfile.TemporaryFile(prefix="camlake-") as file:
        for batch in feature_batches(source):
            vectors = units(_finite(batch, source))
            if rows is None:
                shape = count, vectors.shape[1]
                large = shape[0] * shape[1] * 4 > MEMORY_BYTES
                where = "in a temporary file" if large else where
                rows = np.memmap(file, np.float32, "w+", shape=shape) if large else np.empty(shape, np.float32)
            rows[len(ids) : len(ids) + len(vectors)] = vectors
            ids += batch["image_id"].to_pylist()
            uris += batch["uri"].to_pylist()
        if rows is None or len(ids) != count:
            raise StoreError(f"{source.where}: {len(ids)} of {count} features belong to an image; see `camlake verify`")
        yield ids, uris, rows, where


def _finite(batch: pa.Table, source: FeatureSource) -> NDArray[np.float32]:
    vectors = vectors_of(batch)
    if not np.isfinite(vectors).all():
        raise ModelError(f"{source.where}: features hold NaN or infinity; `camlake verify` says where")
    return vectors


def _image_of(source: FeatureSource, of: str) -> str:
    """Return the id of the image that ``of`` names."""
    with committed_views(source.fs, source.root, source.files) as con:
        found = con.execute(
            "SELECT image_id, uri FROM images WHERE image_id = $of OR uri = $of OR ends_with(uri, '/' || $of)"
            " ORDER BY (image_id = $of OR uri = $of) DESC, uri LIMIT 3",
            {"of": of},
        ).fetchall()
    exact = [image_id for image_id, uri in found if of in (image_id, uri)]
    if len(exact) == 1 or len(found) == 1:
        return str((exact or [found[0][0]])[0])
    if not found:
        raise UsageError(f"--of {of!r}: no image of {source.where} has this uri, end of a uri or image_id")
    raise UsageError(f"--of {of!r}: several images end so, like {found[0][1]} and {found[1][1]}; give the whole uri")


def table_bytes(rows: pa.Table, suffix: str) -> bytes:
    """Return a table as a file; ``suffix`` is .parquet or .csv."""
    sink = io.BytesIO()
    if suffix == ".parquet":
        pq.write_table(rows, sink, compression="zstd")
    else:
        csv.write_csv(rows, sink)
    return sink.getvalue()
