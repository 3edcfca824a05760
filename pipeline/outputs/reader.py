"""Reads an output back: ``import camlake; lake = camlake.open("s3://bucket/labels")``.

A query sees only committed rows, and for each image only the rows of the last run that annotated or rejected the image.
So partial results of a running or dead run never appear, and the old boxes of a changed photograph stay hidden. A view
has the columns of its table and the partition columns ``model`` and ``date``. ``CURRENT_ROWS_SQL`` gives the same rows
in any engine that reads the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import cv2
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.storage.filesystems import connect, read_url
from pipeline.storage.lake.query import LATEST_SQL, add_views, column_names, connect_duckdb
from pipeline.storage.lake.records import committed_files, load_runs, no_output
from schemas.errors import StoreError, UsageError
from schemas.options.config import StorageConfig
from schemas.runs import RunManifest
from schemas.tables import TABLES, Table
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.models.weights.head_file import Head
    from pipeline.outputs.feature_rows import HeadMap

CURRENT_ROWS_SQL = f"""SELECT found.* FROM {{table}} AS found INNER JOIN ({LATEST_SQL}) AS latest
ON found.model = latest.model AND found.image_id = latest.image_id AND found.run_id = latest.run_id"""
"""The current rows of a table for any engine that reads Parquet; fill in ``table``, ``images`` and ``quarantine``.

In DuckDB: table="'OUT/boxes/**/*.parquet'", images="'OUT/images/**/*.parquet'", quarantine likewise; in Spark:
table="parquet.`OUT/boxes`" and so on. An output of several models gives the rows of all, each with its ``model``; add
``WHERE found.model = '...'``. ``camlake sql OUT --ddl ENGINE`` prints the statements for an engine.
"""

ALL_MODELS = "*"
"""Asks for the rows of all models in one table, which the column ``model`` tells apart."""


class Lake:
    """An output in its state when it was opened; a context manager that closes its DuckDB connection."""

    def __init__(
        self,
        runs: list[RunManifest],
        con: duckdb.DuckDBPyConnection,
        out: str,
        storage: StorageConfig,
        model: str | None = None,
    ) -> None:
        """``camlake.open`` calls this; ``con`` has the views of the committed rows of ``model``, or of all models."""
        self._runs, self._con, self._model = runs, con, model
        self._out, self._storage = out, storage

    @property
    def models(self) -> list[str]:
        """The models with committed rows, as the ``model`` partitions name them, sorted."""
        return sorted({run.model for run in self._runs if run.files})

    @property
    def runs(self) -> list[RunManifest]:
        """The manifests of all runs, oldest first; the counts of a running run are those of its commits so far."""
        return list(self._runs)

    def run_of(self, model: str | None) -> RunManifest:
        """Return the model's last run with rows, or the last one of all; raises UsageError where there is none.

        The runs of one model share their settings.
        """
        runs = [run for run in self._runs if run.files and model in {None, run.model}]
        if not runs:
            known = ", ".join(self.models)
            raise UsageError(f"--model {model!r}: this output has {known}" if known else "this output has no rows yet")
        return runs[-1]

    def connection(self) -> duckdb.DuckDBPyConnection:
        """Return the DuckDB connection with a view for each table: images, boxes, heatmaps, features, quarantine.

        The views ``all_<table>`` also have the rows that a later run replaced. Times are UTC. Raises UsageError as
        ``sql`` does.
        """
        self._refuse_mixture(None)
        return self._con

    def sql(self, query: str, params: Mapping[str, Any] | list[Any] | None = None) -> duckdb.DuckDBPyRelation:
        """Return the query's result as a DuckDB relation; ``params`` fill ``$name`` or ``?``.

        Raises UsageError where the output has several models and ``camlake.open`` was given none.
        """
        self._refuse_mixture(None)
        return self._con.sql(query, params=params)

    def relation(self, table: Table, model: str | None = None) -> duckdb.DuckDBPyRelation:
        """Return one table as a DuckDB relation with all of its columns, then ``model`` and ``date``.

        ``model`` may be ``"*"`` for the rows of all models. A table without rows gives an empty relation. Raises
        UsageError for an unknown table or model, and for no model where the output has several.
        """
        return self._select(table, None, None, model)

    def arrow(
        self, table: Table, columns: list[str] | None = None, where: str | None = None, model: str | None = None
    ) -> pa.Table:
        """Return rows of one table as an Arrow table.

        ``columns``: default all. ``where``: an SQL condition that the rows fulfil. ``model`` as in ``relation``. Raises
        UsageError as ``relation`` does and for an unknown column, and duckdb.Error for a condition that is no valid
        SQL.
        """
        return self._select(table, columns, where, model).to_arrow_table()

    def pandas(
        self, table: Table, columns: list[str] | None = None, where: str | None = None, model: str | None = None
    ) -> pd.DataFrame:
        """Return the result of ``arrow`` as a data frame; lists become arrays."""
        frame: pd.DataFrame = self.arrow(table, columns, where, model).to_pandas()
        return frame

    def maps(
        self, head: "str | Head", classes: Sequence[str] | None = None, model: str | None = None
    ) -> Iterator["HeadMap"]:
        """Yield the class activation map M_c of each current image and each class of a linear head, as records.

        ``head``: a file of `camlake head fit` at any URL, or a ``Head``. ``classes``: names of the head's classes;
        default all. ``model``: whose rows; default the newest of the head's backbone. The maps are those of the stored
        feature maps, as ``camlake localize`` makes them; the images of one commit are in memory at a time, and those of
        a commit are ordered by image_id. The records of an image follow each other in the order of ``classes``. Raises
        UsageError for unknown names, for an output without feature maps and for one of another backbone.
        """
        # PyTorch takes seconds to import, and whoever reads other tables does not need it.
        from pipeline.models.weights.head_file import Head, read_head, refuse_other_backbone  # noqa: PLC0415
        from pipeline.outputs.feature_rows import refuse_without_maps, stream_maps  # noqa: PLC0415

        found = head if isinstance(head, Head) else read_head(head, partial(read_url, storage=self._storage))
        unknown = [name for name in classes or () if name not in found.card.classes]
        if unknown:
            raise UsageError(f"class {unknown[0]!r}: the head has {', '.join(found.card.classes)}")
        mine = [one for one in self.models if self._model in (None, ALL_MODELS, one)]
        if model is not None and model not in mine:
            raise UsageError(f"model {model!r}: this output has {', '.join(mine) or 'none yet'}")
        own = [run for run in self._runs if run.files and run.model in mine and model in (None, run.model)]
        fitting = [run for run in own if run.lineage.backbone_digest == found.card.model_digest]
        last = (fitting or own)[-1] if own else None
        if last is None:
            raise StoreError(f"{safe_url(self._out)}: no rows yet")
        name = safe_url(head) if isinstance(head, str) else "given"
        there_is = f"{safe_url(self._out)} has those of {last.model}; fit one on this output"
        refuse_other_backbone(found, last.lineage.backbone_digest, name, there_is)
        runs = [run for run in own if run.model == last.model]
        refuse_without_maps(runs, safe_url(self._out))
        numbers = [found.card.classes.index(one) for one in (classes or found.card.classes)]
        fs, root = connect(self._out, self._storage, anonymous=self._storage.anonymous)
        return stream_maps(self._con.cursor(), fs, root, runs, found, numbers)

    def close(self) -> None:
        """Close the DuckDB connection; after that its relations can't be read."""
        self._con.close()

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the connection."""
        self.close()

    def _select(
        self, table: Table, columns: list[str] | None, where: str | None, model: str | None
    ) -> duckdb.DuckDBPyRelation:
        if table not in TABLES:
            raise UsageError(f"table {table!r}: allowed: {', '.join(TABLES)}")
        unknown = [name for name in columns or () if name not in column_names(table)]
        if unknown:
            raise UsageError(f"column {unknown[0]!r}: {table} has {', '.join(column_names(table))}")
        self._refuse_mixture(model)
        one = None if model == ALL_MODELS else model
        chosen = f"SELECT {', '.join(columns or ['*'])} FROM {table}"
        conditions = ([] if one is None else ["model = $model"]) + ([] if where is None else [f"({where})"])
        if conditions:
            chosen += f" WHERE {' AND '.join(conditions)}"
        return self._con.sql(chosen, params=None if one is None else {"model": one})

    def _refuse_mixture(self, model: str | None) -> None:
        """Raise UsageError for an unknown model, and where rows of several models would be mixed unasked."""
        _check_model(model, self.models if self._model in (None, ALL_MODELS) else [self._model])
        if model is None and self._model is None and len(self.models) > 1:
            raise UsageError(
                f"model is missing: this output has {', '.join(self.models)}; name one, also in camlake.open(OUT,"
                " model=...), or '*' for the rows of all"
            )


def _check_model(model: str | None, models: list[str]) -> None:
    """Raise UsageError for a model that is not one of ``models``."""
    if model not in (None, ALL_MODELS, *models):
        raise UsageError(f"model {model!r}: this output has {', '.join(models) or 'none yet'}")


def open(  # noqa: A001 (camlake.open reads as gzip.open does)
    out: str,
    *,
    model: str | None = None,
    endpoint_url: str | None = None,
    profile: str | None = None,
    anonymous: bool = False,
) -> Lake:
    """Return the output ``out``, any fsspec URL, for reading.

    ``model`` chooses the rows of one model, as the partitions name it, or with ``"*"`` those of all; an output of
    several models is not mixed unless asked. ``endpoint_url`` is the address of an S3-compatible store, ``profile`` a
    profile of the AWS credentials file; ``anonymous`` reads a public bucket. Raises StoreError where there is no
    camlake output, or where it can't be read, and UsageError for an unknown model.

    >>> with camlake.open("labels/") as lake:
    ...     lake.pandas("boxes", ["label", "xmin", "ymin"], where="rank = 0")
    ...     lake.sql("SELECT label, count(*) FROM boxes GROUP BY label ORDER BY label").fetchall()
      label  xmin  ymin
    0   cat   1.0   2.0
    [('cat', 1), ('dog', 1)]
    """
    return open_lake(out, StorageConfig(endpoint_url=endpoint_url, profile=profile, anonymous=anonymous), model)


def open_lake(out: str, storage: StorageConfig, model: str | None = ALL_MODELS) -> Lake:
    """Return the output ``out`` for reading, as ``open`` does, with the storage options of a job's configuration.

    The rows of all models by default: camlake's own queries name the model themselves.
    """
    fs, root = connect(out, storage, anonymous=storage.anonymous)
    runs = load_runs(fs, root)
    if not runs:
        raise no_output(out)
    _check_model(model, sorted({run.model for run in runs if run.files}))
    chosen = runs if model in (None, ALL_MODELS) else [run for run in runs if run.model == model]
    con = add_views(connect_duckdb(memory_limit=None), fs, root, committed_files(chosen))
    return Lake(runs, con, out, storage, model)


def heatmap(row: Mapping[str, Any], size_hw: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Return the class activation map M_c of a row of ``heatmaps``, (heat_h, heat_w) float32, or at ``size_hw``.

    The row may be a dict, a pandas Series or another object with the columns as keys. Maps are stored in 256 levels, so
    the error of M_c is at most (heat_max - heat_min) / 510. With ``size_hw`` = (height, width) in pixels, such as the
    size of the upright image, the map is interpolated bilinearly between half-pixel centres and is constant beyond the
    outermost centres. Raises ValueError for a row whose ``heat`` does not have heat_h x heat_w values.

    >>> row = {"heat_h": 1, "heat_w": 2, "heat_min": -1.0, "heat_max": 1.0, "heat": [0, 255]}
    >>> camlake.heatmap(row)
    array([[-1.,  1.]], dtype=float32)
    >>> camlake.heatmap(row, size_hw=(2, 4)).tolist()
    [[-1.0, -0.5, 0.5, 1.0], [-1.0, -0.5, 0.5, 1.0]]
    """
    levels = np.asarray(row["heat"], np.float32).reshape(int(row["heat_h"]), int(row["heat_w"]))
    low, high = np.float32(row["heat_min"]), np.float32(row["heat_max"])
    values = low + levels / np.float32(255) * (high - low)
    if size_hw is None:
        return values
    height, width = size_hw
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def feature_map(row: Mapping[str, Any], feature_row: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the K feature maps of a row of ``feature_maps``, (map_h, map_w) each: (K, map_h, map_w) float32.

    ``feature_row`` is the row of ``features`` of the same image and run; the mean of map k is its value k. With the
    weights w and the bias b of a linear head on ``feature``, the class activation map is ``np.tensordot(w, maps, 1)``;
    its mean plus b is the head's logit. Values are stored in ``bits`` bits: the error of a value f of a map with the
    mean F is at most (f + F) / (2 · mean of the map's codes). With ``--resize fit`` the maps have the cells of the
    padding too. Raises ValueError for rows of two images or runs, and for codes of another length.

    >>> key = {"image_id": "a", "run_id": "r"}
    >>> row = key | {"map_h": 1, "map_w": 2, "channels": 2, "bits": 4, "codes": bytes([0x31, 0x22])}
    >>> camlake.feature_map(row, key | {"feature": [2.0, 1.0]}).tolist()
    [[[1.0, 3.0]], [[1.0, 1.0]]]
    """
    # PyTorch takes seconds to import, and whoever reads other tables does not need it.
    from pipeline.arrays.feature_codec import decode  # noqa: PLC0415

    for name in ("image_id", "run_id"):
        if row[name] != feature_row[name]:
            raise ValueError(f"{name}: {row[name]!r} in feature_maps, {feature_row[name]!r} in features")
    height, width, channels, bits = (int(row[name]) for name in ("map_h", "map_w", "channels", "bits"))
    codes, feature = np.frombuffer(row["codes"], np.uint8), np.asarray(feature_row["feature"], np.float32)
    if len(feature) != channels:
        raise ValueError(f"{len(feature)} features; needed: {channels}")
    maps: NDArray[np.float32] = decode(codes[None], bits, (height, width), feature[None])[0]
    return maps
