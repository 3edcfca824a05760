"""The classes that ``--classes`` names for each image: reads them, and finds the planned inputs they belong to."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.file_names import suffix_of
from pipeline.storage.names import CLASS_COLUMNS, LABEL_COLUMNS, ids_in, label_in
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.class_join import CLASSES, ClassTable
from pipeline.storage.truth.class_names import ClassNames
from pipeline.storage.truth.truth_files import true_objects
from pipeline.storage.truth.truth_tables import TABLE_SUFFIXES, TruthTable, read_frame
from schemas.errors import InputError, UsageError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url


def read_classes(
    url: str, storage: StorageConfig, labels: Sequence[str] | ClassNames, *, skipped: list[str] | None = None
) -> ClassTable:
    """Return the classes that a table or a truth names for each image, in the schema CLASSES; each key once.

    A table is CSV or Parquet, with the image in a column uri, file, path or image; its classes are whole numbers
    (class_ids, class_id or imagenet_classes; several separated by ``;`` or as a list) or names of ``labels`` (label,
    class_name), which mean every class of that name, as ClassNames finds it. A truth is what ``truth_files`` reads
    beside tables: COCO's JSON, a folder of XML or of wsolevaluation; of its objects those count whose class the network
    has. Several rows of one image unite; a row without a class adds none. COCO's annotations that can't be used are
    named in ``skipped``.

    Raises UsageError for a file of another kind, a missing column, an id that the network does not have, a name in a
    table that it does not have, a truth none of whose names it has; InputError where the file can't be read.
    """
    name = f"--classes {safe_url(url)}"
    fs, path = connect(url, storage)
    with store_errors(name, InputError):
        is_truth = fs.isdir(path) or suffix_of(path) == ".json"
        content = b"" if is_truth else fs.cat_file(path)
    names = labels if isinstance(labels, ClassNames) else ClassNames(labels)
    rows = (
        _rows_of_truth(url, storage, names, [] if skipped is None else skipped)
        if is_truth
        else _rows_of_table(content, suffix_of(path), names, name)
    )
    united: dict[str, set[int]] = {}
    for image, ids in rows:
        wrong = [each for each in ids if not 0 <= each < names.end]
        if wrong:
            raise UsageError(f"{name}: class id {wrong[0]}; allowed: 0 to {len(names.texts) - 1}")
        united.setdefault(safe_url(image), set()).update(ids)
    named = {image: sorted(ids) for image, ids in united.items() if ids}
    return pa.table({"key": list(named), "class_ids": list(named.values())}, schema=CLASSES)


def _rows_of_truth(
    url: str, storage: StorageConfig, names: ClassNames, skipped: list[str]
) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield each object's image and classes; raises UsageError where the network has none of them."""
    example, known = "", False
    try:
        for key, class_ids, label, _ in true_objects(url, storage, skipped=skipped):
            ids = class_ids or names.ids(label)
            example, known = example or label, known or bool(ids)
            yield key, ids
    except UsageError as error:
        raise UsageError(f"--classes: {error}") from error
    if not known:
        raise UsageError(
            f"--classes {safe_url(url)}: the network has none of its classes, like {example!r}; `camlake models` and"
            " --labels say which it has"
        )


def _rows_of_table(content: bytes, suffix: str, names: ClassNames, name: str) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield each row's image and classes."""
    if suffix not in TABLE_SUFFIXES:
        raise UsageError(f"{name}: allowed: .csv, .tsv, .parquet, .json (COCO), a folder of ILSVRC XML files")
    table = TruthTable(read_frame(content, suffix, name), name)
    images, (column, cells) = table.images(), table.first(CLASS_COLUMNS, LABEL_COLUMNS)
    for image, value in zip(images, cells, strict=True):
        yield str(image), _ids(value, name) if column in CLASS_COLUMNS else _ids_of_label(value, names, name)


def _ids(value: Any, name: str) -> Sequence[int]:
    try:
        return ids_in(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def _ids_of_label(value: Any, names: ClassNames, name: str) -> Sequence[int]:
    label = label_in(value)
    ids = names.ids(label)
    if label and not ids:
        near = difflib.get_close_matches(label, names.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `camlake models` and --labels say which it has"
        raise UsageError(f"{name}: the network has no class {label!r}{hint}")
    return ids
