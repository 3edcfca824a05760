"""Reads labelled images for training, from a folder for each class or from a table, as a plan with class ids."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from pipeline.arrays.metrics import Convention
from pipeline.storage.filesystems import canonical_url, connect
from pipeline.storage.inputs.containers import open_parquet
from pipeline.storage.inputs.file_names import PARQUET_SUFFIXES, suffix_of
from pipeline.storage.inputs.listing import Listing, list_inputs
from pipeline.storage.names import BOX_COLUMNS, LABEL_COLUMNS, ColumnError, find_columns, first_column, labels_in
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.class_names import read_label_text
from pipeline.storage.truth.labelled_boxes import BOX, Boxes, box_rows, true_boxes, with_boxes
from pipeline.storage.truth.truth import Truth
from pipeline.storage.truth.truth_tables import TABLE_SUFFIXES
from schemas.errors import InputError, UsageError
from schemas.input_options import InputOptions
from schemas.options.config import StorageConfig
from schemas.tables import PLAN
from schemas.url_secrets import safe_url

SEPARATOR = ";"
"""Separates several labels in one cell."""
TABLES_OF_LABELS = TABLE_SUFFIXES


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels and, where boxes are learned, their boxes."""

    plan: pa.Table
    """A table of the schema PLAN, ordered by image_id; ``classes`` holds the ascending ids of an image's labels.

    Where boxes are learned, the table also has the column BOX.
    """
    labels: tuple[str, ...]
    """Names of the C classes."""
    multi_label: bool
    """Whether an image may have several labels or no label."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.plan)

    def counts(self) -> NDArray[np.int64]:
        """Return (C,): the number of images of each class."""
        return np.bincount(self.plan["classes"].combine_chunks().flatten().to_numpy(), minlength=len(self.labels))

    @property
    def n_boxes(self) -> int:
        """The number of images that have a box."""
        return len(self.plan) - self.plan[BOX.name].null_count if BOX.name in self.plan.column_names else 0

    def digest(self) -> str:
        """Return the SHA-256, 64 hex digits, of the images' uris, versions, classes and boxes and of the labels."""
        columns = ["uri", "etag", "size_bytes", "modified_at", "classes"]
        columns += [BOX.name] * (BOX.name in self.plan.column_names)
        digest = hashlib.sha256(json.dumps([self.labels, self.multi_label]).encode())
        for row in zip(*(self.plan[name].to_pylist() for name in columns), strict=True):
            digest.update(json.dumps(row, default=str).encode())
        return digest.hexdigest()

    def with_boxes_of(self, truth: Truth, convention: Convention = "half-open") -> Self:
        """Return the images with the boxes that a truth has of the images' classes.

        ``convention`` tells whether xmax and ymax of the truth are half-open or inclusive. Raises UsageError as
        ``Truth.match`` does.
        """
        return replace(self, plan=with_boxes(self.plan, *true_boxes(truth, self.plan, self.labels, convention)))

    def missing(self) -> list[str]:
        """Return the classes without an image."""
        return [label for label, count in zip(self.labels, self.counts(), strict=True) if not count]


def read_label_names(url: str, storage: StorageConfig) -> tuple[str, ...]:
    """Return the class names of a file, which has one name on each line or a JSON list.

    Raises InputError where the file can't be read. Raises UsageError for a repeated name, a file without names, and
    other content.
    """
    labels = read_label_text(url, storage)
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise UsageError(f"--labels {safe_url(url)}: {twice[0]!r} stands twice")
    return labels


def read_labelled(
    url: str,
    storage: StorageConfig,
    known: LabelledImages | Sequence[str] | None = None,
    option: str = "INPUT",
    *,
    boxes: Convention | None = None,
) -> LabelledImages:
    """Return the labelled images at ``url``: a folder with a folder for each class, or a CSV or Parquet file.

    The label of an image in a folder is the name of the first folder below ``url``. A file has a column uri (or url,
    path, file, image_path; relative to the file's folder) and a column label (or class_name). If a cell has several
    labels, as a list or separated by ``;``, all images are multi-label, and a cell may be empty.

    ``known`` gives the classes, as names or as the training data that a validation set belongs to. With None the
    classes are all labels, sorted; labels that are all whole numbers are sorted by value. With ``boxes`` the images get
    the boxes in the columns xmin, ymin, xmax and ymax of the file, if it has them; ``boxes`` tells whether xmax and
    ymax are half-open or inclusive.

    Raises InputError where nothing can be read. Raises UsageError, which names ``option``, for a missing column, for an
    image with no label or two labels unless the images are multi-label, and for a label that is not in ``known``.
    """
    name = f"{option} {safe_url(url)}"
    is_table = suffix_of(url) in TABLES_OF_LABELS
    listing = list_inputs(url, storage) if is_table else _list_folder(url, storage)
    allowed = "allowed: a folder with a folder for each class, or a CSV or Parquet file with columns uri and label"
    if listing.kind != ("manifest" if is_table else "folder"):
        raise UsageError(f"{name}: {listing.kind}; {allowed}")
    plan = pa.Table.from_batches(listing.batches, schema=PLAN)
    uris: list[str] = plan["uri"].to_pylist()
    own_boxes: Boxes | None = None  # One box for each row.
    if is_table:
        cells, own_boxes = _label_table(url, storage, name, boxes)
    else:
        cells = _folders(uris, url, name)
    if len(cells) != len(plan):
        raise InputError(f"{name}: {len(plan)} uris, but {len(cells)} labels")
    images = _labelled(plan, cells, known, name)
    if boxes is None:
        return images
    known_boxes = np.full((len(plan), 4), np.nan) if own_boxes is None else own_boxes
    return replace(images, plan=with_boxes(images.plan, uris, known_boxes))


def _list_folder(url: str, storage: StorageConfig) -> Listing:
    """Return the listing of a folder's images, without its archives; a folder without images is listed as it is."""
    try:
        return list_inputs(url, storage, how=InputOptions(kind="images"))
    except InputError:
        return list_inputs(url, storage)


def split_by_hash(images: LabelledImages, share: float) -> tuple[LabelledImages, LabelledImages]:
    """Return the images in two parts, the second with about a ``share`` of them; the image ids alone decide."""
    # The second half of the id, because --sample uses the first half.
    chosen = pa.array([int(image_id[16:], 16) < share * 2**64 for image_id in images.plan["image_id"].to_pylist()])
    inverse = pc.invert(chosen)
    return replace(images, plan=images.plan.filter(inverse)), replace(images, plan=images.plan.filter(chosen))


def _label_table(
    url: str, storage: StorageConfig, name: str, boxes: Convention | None
) -> tuple[list[tuple[str, ...]], Boxes | None]:
    """Return the labels of each row, in the order of the listing, and the boxes, or None where they are not wanted."""
    fs, path = connect(url, storage, anonymous=storage.anonymous)
    with store_errors(f"{name} can't be read", InputError):
        if suffix_of(path) in PARQUET_SUFFIXES:
            with open_parquet(fs, path) as parquet:
                columns = _choose(parquet.schema_arrow.names, name, boxes is not None)
                table = parquet.read(columns)
        else:
            parse = csv.ParseOptions(delimiter="\t" if suffix_of(path) == ".tsv" else ",", newlines_in_values=True)
            with fs.open(path, "rb") as file, csv.open_csv(file, parse_options=parse) as head:
                columns = _choose(head.schema.names, name, boxes is not None)
            texts = dict.fromkeys(columns, pa.string())
            convert = csv.ConvertOptions(include_columns=columns, column_types=texts)
            with fs.open(path, "rb") as file:
                table = csv.read_csv(file, parse_options=parse, convert_options=convert)
    cells = [labels_in(value, SEPARATOR) for value in table[columns[0]].to_pylist()]
    corners = table.select(columns[1:]).rename_columns(list(BOX_COLUMNS)) if boxes and len(columns) > 1 else None
    return cells, box_rows(corners, name, boxes) if boxes and corners is not None else None


def _choose(names: Sequence[str], name: str, boxes: bool) -> list[str]:
    """Return the column of labels, and with ``boxes`` the four columns of boxes where all four exist."""
    try:
        label = first_column(names, LABEL_COLUMNS)
    except ColumnError as error:
        raise UsageError(f"{name}: {error}") from error
    corners = find_columns(names, BOX_COLUMNS)
    return [label, *(corners if boxes and len(corners) == len(BOX_COLUMNS) else ())]


def _folders(uris: Sequence[str], url: str, name: str) -> list[tuple[str, ...]]:
    """Return for each image the name of its folder below ``url``, as its only label."""
    root = canonical_url(url).rstrip("/") + "/"
    names = [uri.removeprefix(root).split("/") for uri in uris]
    loose = next((uri for uri, parts in zip(uris, names, strict=True) if len(parts) < 2), None)
    if loose:
        raise UsageError(f"{name}: {loose.rpartition('/')[2]!r} lies in no class's folder")
    return [(parts[0],) for parts in names]


def _labelled(
    plan: pa.Table, cells: list[tuple[str, ...]], known: LabelledImages | Sequence[str] | None, name: str
) -> LabelledImages:
    multi_label = known.multi_label if isinstance(known, LabelledImages) else any(len(cell) > 1 for cell in cells)
    uris = plan["uri"].to_pylist()
    if not multi_label:
        _check_single(uris, cells, name)
    found = {label for cell in cells for label in cell}
    labels = known.labels if isinstance(known, LabelledImages) else tuple(known) if known else _sorted(found)
    strange = sorted(found.difference(labels))
    if strange:
        raise UsageError(f"{name}: {strange[0]!r} is none of the {len(labels)} classes, like {labels[0]!r}")
    ids_of = {label: class_id for class_id, label in enumerate(labels)}
    united: dict[str, set[int]] = {}
    for uri, cell in zip(uris, cells, strict=True):
        united.setdefault(uri, set()).update(ids_of[label] for label in cell)
    firsts = list({uri: row for row, uri in reversed(list(enumerate(uris)))}.values())
    classes = pa.array([sorted(united[uri]) for uri in uris], PLAN.field("classes").type)
    labelled = plan.set_column(PLAN.get_field_index("classes"), PLAN.field("classes"), classes).take(firsts)
    return LabelledImages(labelled.sort_by("image_id"), labels, multi_label)


def _check_single(uris: Sequence[str], cells: Sequence[tuple[str, ...]], name: str) -> None:
    """Raise UsageError for the first image that does not have exactly one label."""
    label_of: dict[str, str] = {}
    for uri, cell in zip(uris, cells, strict=True):
        if len(cell) != 1:
            raise UsageError(f"{name}: {uri!r} has {len(cell) or 'no'} label{'s' * (len(cell) > 1)}")
        if label_of.setdefault(uri, cell[0]) != cell[0]:
            raise UsageError(
                f"{name}: {uri!r} has the labels {label_of[uri]!r} and {cell[0]!r}; for several labels an image"
                f" write them in one cell, separated by {SEPARATOR}"
            )


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    names = sorted(labels)
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)
