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
import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.file_names import hidden_part, suffix_of
from pipeline.storage.names import BOX_COLUMNS, CLASS_COLUMNS, LABEL_COLUMNS, find_columns, ids_in, label_in
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.coco import box_of, coco_objects
from pipeline.storage.truth.truth_tables import TABLE_SUFFIXES, TruthTable, read_frame
from pipeline.storage.truth.wsol_masks import LOCALIZATION, mask_lines
from schemas.errors import InputError, UsageError
from schemas.label_text import parse_json
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url


class TrueBox(NamedTuple):
    """One object of one image. An object named by ids has them and perhaps a label; one without ids only a label."""

    key: str
    class_ids: tuple[int, ...]
    label: str
    box: tuple[float, float, float, float] | None
    """None where only masks tell where it is."""


def true_objects(
    url: str, storage: StorageConfig, *, anonymous: bool = False, skipped: list[str] | None = None
) -> Iterator[TrueBox]:
    """Return the objects at ``url``: a .csv, .tsv, .parquet or .json file, or a folder; the module's page says more.

    ``anonymous`` reads without credentials. Annotations of COCO that can't be used are named in ``skipped``. Raises
    InputError where nothing can be read there, UsageError where it is of no known format, lacks a column or a name, or
    has a coordinate that is no number.
    """
    filesystem, path = connect(url, storage, anonymous=anonymous)
    where = f"truth {safe_url(url)!r}"
    with store_errors(f"truth {safe_url(url)}", InputError):
        if filesystem.isdir(path):
            return _read_folder(filesystem, path)
        return _read_file(filesystem.cat_file(path), suffix_of(url), where, [] if skipped is None else skipped)


def _read_file(content: bytes, suffix: str, where: str, skipped: list[str]) -> Iterator[TrueBox]:
    if suffix in TABLE_SUFFIXES:
        return _from_frame(read_frame(content, suffix, where), where)
    if suffix != ".json":
        raise UsageError(f"{where}: allowed: .csv, .tsv, .parquet, .json (COCO), or a folder of ILSVRC XML files")
    try:
        document = parse_json(content)
    except ValueError as error:
        raise UsageError(f"{where}: can't be read as json: {error}") from error
    return _from_coco(document, where, skipped)


def _from_frame(frame: pd.DataFrame, where: str) -> Iterator[TrueBox]:
    table = TruthTable(frame, where)
    images, (name, classes) = table.images(), table.first(CLASS_COLUMNS, LABEL_COLUMNS)
    has_ids = name in CLASS_COLUMNS
    corners = pd.concat([table.first((each,))[1] for each in BOX_COLUMNS], axis=1)
    boxes = corners.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(boxes).all(axis=1)
    if wrong.any():
        raise UsageError(f"{where}: row {int(wrong.argmax()) + 1} has a coordinate that is no number")
    id_lists = [_ids(value, where) if has_ids else () for value in classes]
    has_labels = find_columns(map(str, frame.columns), LABEL_COLUMNS)
    labels = map(label_in, table.first(LABEL_COLUMNS)[1]) if has_labels else [""] * len(frame)
    for file, ids, label, (xmin, ymin, xmax, ymax) in zip(images, id_lists, labels, boxes.tolist(), strict=True):
        # Where the truth has a column of ids, an object without one is of no class that the network knows.
        yield TrueBox(str(file).strip(), ids, label if ids or not has_ids else "", (xmin, ymin, xmax, ymax))


def _ids(value: Any, where: str) -> tuple[int, ...]:
    try:
        return ids_in(value)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _from_coco(document: Any, where: str, skipped: list[str]) -> Iterator[TrueBox]:
    return iter(
        [
            TrueBox(item.key, (), item.label, box)
            for item in coco_objects(document, where, skipped)
            if not item.is_crowd and (box := box_of(item, where, skipped))
        ]
    )


def _read_folder(filesystem: AbstractFileSystem, path: str) -> Iterator[TrueBox]:
    localization = posixpath.join(path, LOCALIZATION)
    if filesystem.exists(localization):
        labels = posixpath.join(path, "class_labels.txt")
        if not filesystem.exists(labels):
            raise UsageError(f"truth {path!r}: {LOCALIZATION} needs class_labels.txt beside it")
        return _from_wsolevaluation(filesystem.cat_file(localization), filesystem.cat_file(labels), localization)
    root = len(path.rstrip("/")) + 1
    files = sorted(name for name in filesystem.find(path) if suffix_of(name) == ".xml" and not hidden_part(name[root:]))
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
        boxes = table(localization, ["file", *BOX_COLUMNS]).merge(classes, on="file", how="left")
        return _from_frame(boxes, f"truth {path!r}")
    images = pd.DataFrame({"file": list(dict.fromkeys(line.key for line in masks))})
    classified = images.merge(classes, on="file", how="left")
    return (
        TrueBox(file, _ids(ids, f"truth {path!r}"), "", None)
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
