"""The labels of images for ``camlake head fit``: read from a table, and joined with the images of an output."""

import hashlib
import io
import json
from typing import NamedTuple

import duckdb
import pandas as pd
import pyarrow as pa

from pipeline.storage.filesystems import read_url
from pipeline.storage.inputs.file_names import suffix_of
from pipeline.storage.names import LABEL_COLUMNS, find_columns, labels_in
from pipeline.storage.store_failures import describe_failure
from pipeline.storage.truth.class_join import CLASSES, append_rows, join_classes
from pipeline.storage.truth.labelled_images import SEPARATOR
from pipeline.storage.truth.truth_tables import TABLE_SUFFIXES, TruthTable, read_frame
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

JSON_LINES = frozenset({".jsonl", ".ndjson"})
_ID_COLUMN = "image_id"


class ImageLabels(NamedTuple):
    """Labels of images, each image once."""

    table: pa.Table
    """The columns of CLASSES; ``key`` is a uri, or the end of one after a ``/``, or an image_id."""
    classes: tuple[str, ...]
    """The names of the classes, sorted; ``class_ids`` of the table count them."""
    by_id: bool
    """Whether the keys are values of image_id."""
    digest: str
    """SHA-256, 64 hex digits, of the keys and their labels."""


def read_image_labels(url: str, storage: StorageConfig) -> ImageLabels:
    """Return the labels in a CSV, TSV, Parquet or JSONL file.

    The file has a column image_id, or else a column that names images as everywhere (uri, file, path, …), and a column
    label (or class_name, class, category). A cell has one label, several as a list or separated by ``;``, or none: then
    the image has none of the classes. Several rows of one image unite.

    Raises InputError where the file can't be read, UsageError for another kind of file, a missing column and a file
    without a label.
    """
    name = f"--labels {safe_url(url)}"
    suffix = suffix_of(url)
    if suffix not in TABLE_SUFFIXES | JSON_LINES:
        raise UsageError(f"{name}: allowed: {', '.join(sorted(TABLE_SUFFIXES | JSON_LINES))}")
    content = read_url(url, storage)
    frame = _read_json_lines(content, name) if suffix in JSON_LINES else read_frame(content, suffix, name)
    rows, id_columns = TruthTable(frame, name), find_columns(list(map(str, frame.columns)), [_ID_COLUMN])
    keys = rows.first((_ID_COLUMN,))[1] if id_columns else rows.images()
    _, cells = rows.first(LABEL_COLUMNS)
    united: dict[str, dict[str, None]] = {}
    for key, cell in zip(keys, cells, strict=True):
        united.setdefault(safe_url(str(key).strip()), {}).update(dict.fromkeys(labels_in(cell, SEPARATOR)))
    classes = tuple(sorted({label for labels in united.values() for label in labels}))
    if not classes:
        raise UsageError(f"{name}: has no label")
    ids_of = {label: number for number, label in enumerate(classes)}
    ids = [sorted(ids_of[label] for label in labels) for labels in united.values()]
    digest = hashlib.sha256(json.dumps(sorted((key, sorted(labels)) for key, labels in united.items())).encode())
    table = pa.table({"key": list(united), "class_ids": ids}, schema=CLASSES)
    return ImageLabels(table, classes, bool(id_columns), digest.hexdigest())


def _read_json_lines(content: bytes, name: str) -> "pd.DataFrame":
    try:
        frame: pd.DataFrame = pd.read_json(io.BytesIO(content), lines=True, dtype=False)
    except ValueError as error:
        raise UsageError(f"{name}: can't be read as jsonl: {describe_failure(error)}") from error
    return frame


def join_labels(con: duckdb.DuckDBPyConnection, labels: ImageLabels, images: str) -> int:
    """Make the table ``labelled`` (image_id, classes) of the images that ``labels`` names; return how many it lacks.

    ``images`` is a query with the columns image_id and uri. A key that names several images labels them all.
    """
    con.execute(f"CREATE TABLE planned AS SELECT row_number() OVER () AS seq, image_id, uri FROM ({images})")
    if labels.by_id:
        con.execute("CREATE TABLE keys (key VARCHAR, class_ids INTEGER[])")
        append_rows(con, "keys", labels.table.select(CLASSES.names))
        con.execute("CREATE TABLE named AS SELECT seq, class_ids AS classes FROM planned JOIN keys ON image_id = key")
        lost = "SELECT count(*) FROM keys WHERE key NOT IN (SELECT image_id FROM planned)"
    else:
        join_classes(con, labels.table)
        lost = """SELECT count(*) FROM wanted WHERE NOT EXISTS (SELECT 1 FROM ends
            WHERE ends.tail = array_to_string(wanted.parts, '/'))"""
        con.execute(
            "CREATE TABLE ends AS SELECT DISTINCT array_to_string(list_slice(parts, -length, -1), '/') AS tail"
            " FROM parts, (SELECT DISTINCT len(parts) AS length FROM wanted)"
        )
    con.execute("CREATE TABLE labelled AS SELECT image_id, classes FROM named JOIN planned USING (seq)")
    return int(con.sql(lost).fetchall()[0][0])
