"""Reads the objects of a truth from the formats people have them in, as rows of an image, a class and a box.

========================  ==========================================================================================
CSV or Parquet            one row a box: ``file`` (or uri, path, image), ``class_id`` (or class_ids, imagenet_classes;
                          several that fit separated by ``;``) or ``label`` (or class_name), xmin, ymin, xmax, ymax
COCO JSON                 boxes of ``annotations``, without crowds; a category's name is the label
ILSVRC or VOC folder      one XML file an image; an object's name is the label
wsolevaluation folder     ``localization.txt`` and ``class_labels.txt``; no box where the former names masks
========================  ==========================================================================================

Coordinates stay as they are written; whether xmax is the last pixel or the one after it is the IoU convention's matter.
"""

import io
import json
import posixpath
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import connect, safe_url
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.wsol_masks import LOCALIZATION, mask_lines
from schemas.config import StorageConfig
from schemas.errors import InputError, UsageError

KEY_COLUMNS = ("file", "uri", "path", "image")
CLASS_COLUMNS = ("class_id", "class_ids", "imagenet_classes")
LABEL_COLUMNS = ("label", "class_name")
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")


class TrueBox(NamedTuple):
    """One object of one image. An object named by ids has them and perhaps a label; one without ids only a label."""

    key: str
    class_ids: tuple[int, ...]
    label: str
    box: tuple[float, float, float, float] | None
    """None where only masks tell where it is."""


def true_objects(url: str, storage: StorageConfig, *, anonymous: bool = False) -> Iterator[TrueBox]:
    """Return the objects at ``url``: a .csv, .tsv, .parquet or .json file, or a folder; the module's page says more.

    ``anonymous`` reads without credentials. Raises InputError where nothing can be read there, UsageError where it is
    of no known format, lacks a column or a name, or has a coordinate that is no number.
    """
    filesystem, path = connect(url, storage, anonymous=anonymous)
    name = safe_url(url)
    with store_errors(f"truth {name}", InputError):
        is_folder = filesystem.isdir(path)
        return _read_folder(filesystem, path) if is_folder else _read_file(filesystem.cat_file(path), name)


def _read_file(content: bytes, path: str) -> Iterator[TrueBox]:
    suffix = posixpath.splitext(path)[1].lower()
    try:
        if suffix in {".csv", ".tsv"}:
            separator = "," if suffix == ".csv" else "\t"
            frame = pd.read_csv(io.BytesIO(content), sep=separator, dtype=str, keep_default_na=False)
            return _from_frame(frame, path)
        if suffix in {".parquet", ".pq"}:
            return _from_frame(pq.read_table(io.BytesIO(content)).to_pandas(), path)
        if suffix == ".json":
            return _from_coco(json.loads(content), path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pa.ArrowInvalid, ValueError) as error:
        raise UsageError(f"truth {path!r}: can't be read as {suffix[1:]}: {error}") from error
    raise UsageError(f"truth {path!r}: allowed: .csv, .tsv, .parquet, .json (COCO), or a folder of ILSVRC XML files")


def _from_frame(frame: pd.DataFrame, path: str) -> Iterator[TrueBox]:
    key = _first_column(frame, KEY_COLUMNS, path)
    classes = _first_column(frame, CLASS_COLUMNS + LABEL_COLUMNS, path)
    has_ids = classes in CLASS_COLUMNS
    named = [name for name in LABEL_COLUMNS if name in frame.columns]
    corners = [_first_column(frame, (name,), path) for name in BOX_COLUMNS]
    boxes = frame[corners].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(boxes).all(axis=1)
    if wrong.any():
        raise UsageError(f"truth {path!r}: row {int(wrong.argmax()) + 1} has a coordinate that is no number")
    id_lists = [_class_ids(value, path) if has_ids else () for value in frame[classes]]
    labels = frame[named[0]].fillna("").astype(str) if named else [""] * len(frame)
    for file, ids, label, (xmin, ymin, xmax, ymax) in zip(frame[key], id_lists, labels, boxes.tolist(), strict=True):
        # Where the truth has a column of ids, an object without one is of no class that the network knows.
        yield TrueBox(str(file), ids, label if ids or not has_ids else "", (xmin, ymin, xmax, ymax))


def _first_column(frame: pd.DataFrame, names: tuple[str, ...], path: str) -> str:
    """Return the first of ``names`` that is a column; raises UsageError where none is."""
    for name in names:
        if name in frame.columns:
            return name
    raise UsageError(f"truth {path!r}: no column {' or '.join(names)}; it has {', '.join(map(str, frame.columns))}")


def _class_ids(value: Any, path: str) -> tuple[int, ...]:
    """Return the ids in a cell: 340, 340.0, "340;341", [340, 341]; none for an empty cell."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(sorted({int(part) for part in value}))
    text = "" if value is None or value != value else str(value).strip()  # noqa: PLR0124 - NaN is not itself
    if not re.fullmatch(r"(\d+(\.0)?(\s*;\s*\d+)*)?", text):
        raise UsageError(f"truth {path!r}: class id {text!r}; allowed: a whole number, or several separated by ;")
    return tuple(sorted({int(float(part)) for part in text.split(";") if part}))


def _from_coco(document: Any, path: str) -> Iterator[TrueBox]:
    try:
        files = {image["id"]: str(image["file_name"]) for image in document["images"]}
        names = {category["id"]: str(category["name"]) for category in document["categories"]}
        boxes = [
            TrueBox(files[item["image_id"]], (), names[item["category_id"]], (x, y, x + width, y + height))
            for item in document["annotations"]
            if not item.get("iscrowd")
            for x, y, width, height in [map(float, item["bbox"])]
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"truth {path!r}: not COCO's JSON (images, categories, annotations with bbox): {error!r}"
        ) from error
    return iter(boxes)


def _read_folder(filesystem: AbstractFileSystem, path: str) -> Iterator[TrueBox]:
    localization = posixpath.join(path, LOCALIZATION)
    if filesystem.exists(localization):
        labels = posixpath.join(path, "class_labels.txt")
        if not filesystem.exists(labels):
            raise UsageError(f"truth {path!r}: {LOCALIZATION} needs class_labels.txt beside it")
        return _from_wsolevaluation(filesystem.cat_file(localization), filesystem.cat_file(labels), localization)
    files = sorted(name for name in filesystem.find(path) if name.endswith(".xml"))
    if not files:
        raise UsageError(f"truth {path!r}: a folder with neither XML files nor wsolevaluation's {LOCALIZATION}")
    contents = filesystem.cat(files)
    return (box for name in files for box in _from_xml(contents[name], name))


def _from_wsolevaluation(localization: bytes, labels: bytes, path: str) -> Iterator[TrueBox]:
    def table(content: bytes, columns: list[str]) -> pd.DataFrame:
        return pd.read_csv(io.BytesIO(content), header=None, names=columns, dtype=str, keep_default_na=False)

    classes = table(labels, ["file", "class_id"])
    masks = mask_lines(localization, path)
    if masks is None:
        return _from_frame(table(localization, ["file", *BOX_COLUMNS]).merge(classes, on="file", how="left"), path)
    images = pd.DataFrame({"file": list(dict.fromkeys(line.key for line in masks))})
    classified = images.merge(classes, on="file", how="left")
    return (
        TrueBox(file, _class_ids(ids, path), "", None)
        for file, ids in zip(classified["file"], classified["class_id"], strict=True)
    )


def _from_xml(content: bytes, path: str) -> Iterator[TrueBox]:
    try:
        root = ElementTree.fromstring(content)
        # ILSVRC's files name the image without its extension, and are called as it is.
        file = (root.findtext("filename") or "").strip() or posixpath.splitext(posixpath.basename(path))[0]
        key = file if posixpath.splitext(file)[1] else file + ".JPEG"
        for item in root.iter("object"):
            label = (item.findtext("name") or "").strip()
            if not label:
                raise UsageError(f"truth {path!r}: an object without a name")
            xmin, ymin, xmax, ymax = (float(str(item.findtext(f"bndbox/{name}"))) for name in BOX_COLUMNS)
            yield TrueBox(key, (), label, (xmin, ymin, xmax, ymax))
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"truth {path!r}: no ILSVRC or VOC annotation: {error}") from error
