"""Reads the feature vectors of an output in batches, and chooses those that a head is fitted on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from pipeline.arrays.metrics import Bools
from pipeline.outputs.feature_rows import vectors_of
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.query import committed_views
from pipeline.storage.lake.records import committed_files, load_runs, runs_with_rows
from pipeline.storage.truth.image_labels import ImageLabels, join_labels
from schemas.errors import StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.runs import DataFile, RunManifest
from schemas.url_secrets import safe_url

BATCH_ROWS = 4096
MOST_ROWS = 100_000
"""Most labelled images that a head is fitted on; of more a sample is taken. With 1,280 values they take 0.5 GB."""
NEGATIVES_EACH = 10
LEAST_NEGATIVES = 1000
"""Where all labelled images have the same class, so many other images for each, but at least so many in all, count as
images without it."""
_RANDOM_ORDER = "ORDER BY image_id[17:]"
"""An order that is always the same and has nothing to do with the images: the ids are hashes."""


@dataclass(frozen=True)
class FeatureSource:
    """The committed rows of one model in an output that has features."""

    fs: AbstractFileSystem
    root: str
    where: str
    """The URL of the output, without secrets."""
    run: RunManifest
    """The newest run of the model."""
    files: tuple[DataFile, ...]

    @property
    def has(self) -> str:
        """Return in words whose features these are, for heads of other backbones."""
        return f"{self.where} has those of {self.run.model}; fit one on this output"


class TrainingRows(NamedTuple):
    """The rows that a head is fitted on."""

    features: NDArray[np.float32]
    """(N, K)."""
    positive: Bools
    """(N, C)."""
    unlabelled: int
    """Those of the N that no label names, and that count as images without the class."""
    lost: int
    """Images of the labels that the output does not have."""
    left_out: int
    """Labelled images that are not in the sample."""


def open_features(out: str, storage: StorageConfig, model: str | None, digest: str | None = None) -> FeatureSource:
    """Return the rows of ``model``; by default those of the backbone ``digest``, or else the newest run's.

    Raises StoreError where there is no output with rows, UsageError for an unknown model and for rows without features.
    """
    fs, root = connect(out, storage, anonymous=storage.anonymous)
    where, runs = safe_url(out), load_runs(fs, root)
    if model is None:
        fitting = (run for run in reversed(runs) if run.files and run.lineage.backbone_digest == digest)
        model = next((run.model for run in fitting if _has_features(run)), None)
    own = runs_with_rows(runs, model, where)
    if not _has_features(own[-1]):
        raise UsageError(f"{where}: has no features; annotate with --outputs features")
    return FeatureSource(fs, root, where, own[-1], tuple(committed_files(own)))


def _has_features(run: RunManifest) -> bool:
    return "features" in run.settings["outputs"]


def training_rows(source: FeatureSource, labels: ImageLabels) -> TrainingRows:
    """Return the rows that ``labels`` names, at most MOST_ROWS; where they all have the one class, with other images.

    The features are read in batches, so that only the rows of the result are in memory. Raises UsageError where the
    labels name no image of the output.
    """
    with committed_views(source.fs, source.root, source.files) as con:
        lost = join_labels(con, labels, "SELECT image_id, uri FROM images")
        ((found, negative),) = con.sql("SELECT count(*), count(*) FILTER (len(classes) = 0) FROM labelled").fetchall()
        if not found:
            example = labels.table["key"][0].as_py()
            raise UsageError(
                f"--labels: none of its {len(labels.table)} images, like {example!r}, is in {source.where}"
            )
        con.execute(f"CREATE TABLE chosen AS FROM labelled {_RANDOM_ORDER} LIMIT {MOST_ROWS}")
        unlabelled = 0
        if len(labels.classes) == 1 and not negative:
            wanted = max(LEAST_NEGATIVES, NEGATIVES_EACH * min(found, MOST_ROWS))
            con.execute(
                f"INSERT INTO chosen SELECT image_id, [] FROM images ANTI JOIN labelled USING (image_id)"
                f" {_RANDOM_ORDER} LIMIT {min(wanted, MOST_ROWS)}"
            )
        classes = con.sql("SELECT image_id, classes FROM chosen ORDER BY image_id").to_arrow_table()
        unlabelled = len(classes) - min(found, MOST_ROWS)
        features = _features(con, classes["image_id"].to_pylist())
    return TrainingRows(features, _positive(classes, labels.classes), unlabelled, lost, max(0, found - MOST_ROWS))


def _positive(rows: pa.Table, classes: Sequence[str]) -> Bools:
    positive = np.zeros((len(rows), len(classes)), bool)
    column = rows["classes"].combine_chunks()
    image, class_id = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column).to_numpy()
    positive[image, class_id] = True
    return positive


def _features(con: duckdb.DuckDBPyConnection, image_ids: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of the images, in their order."""
    place = {image_id: row for row, image_id in enumerate(image_ids)}
    found: NDArray[np.float32] | None = None
    query = "SELECT image_id, feature FROM features SEMI JOIN chosen USING (image_id)"
    for batch in con.sql(query).to_arrow_reader(BATCH_ROWS):
        rows = pa.table(batch)
        vectors = vectors_of(rows)
        if found is None:
            found = np.empty((len(image_ids), vectors.shape[1]), np.float32)
        found[[place[one] for one in rows["image_id"].to_pylist()]] = vectors
    if found is None:
        raise StoreError("the labelled images have no features; `camlake verify` says what is missing")
    return found


def feature_batches(source: FeatureSource) -> Iterator[pa.Table]:
    """Yield tables with the columns image_id, uri and feature of all current images of the source."""
    with committed_views(source.fs, source.root, source.files) as con:
        query = "SELECT image_id, uri, feature FROM features JOIN images USING (image_id)"
        for batch in con.sql(query).to_arrow_reader(BATCH_ROWS):
            yield pa.table(batch)
