"""One rule for the names of columns, images and classes, for every verb that reads a table, a manifest or a truth.

- A column is found whatever the case of its name and the spaces around it.
- An image is named by its uri or by the end of it after a ``/``. The members of a shard and the rows of a Parquet file
  lie below it, as files in a folder: ``k.jpg`` names ``s3://b/0.tar#k.jpg``. A backslash is as good as a slash, and the
  two spellings that Unicode has for letters with accents are one name.
- A class is named by whole numbers or by its label, without the spaces around it.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from schemas.errors import UsageError
from schemas.url_secrets import safe_url

IMAGE_COLUMNS = (
    *("uri", "file", "path", "image", "url", "file_name", "filename", "filepath", "file_path", "image_path"),
    *("image_file", "image_name", "image_uri", "image_url", "img", "img_path", "img_url"),
)
"""Names of a column that says which image a row is about."""
CLASS_COLUMNS = ("class_id", "class_ids", "imagenet_classes")
LABEL_COLUMNS = ("label", "class_name", "class", "category")
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
_SHORT = {IMAGE_COLUMNS: ("file", "uri", "path", "image"), LABEL_COLUMNS: LABEL_COLUMNS[:2]}
"""What a message names first: the names that README uses."""

MEMBER_MARK = r"(\.(?:tar|parquet|pq))#"
"""What stands between a shard, or a Parquet file, and what it holds; case is ignored, by Python and by DuckDB."""
_MEMBER = re.compile(MEMBER_MARK, re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"\d+(?:\.0*)?")


class ColumnError(UsageError, ValueError):
    """A table lacks a column, or has several that could be meant; says which names are accepted."""


def find_columns(columns: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Return the columns with one of the ``wanted`` names, in the order of ``wanted``; each name once."""
    of_name: dict[str, str] = {}
    for column in columns:
        of_name.setdefault(_plain(column), column)
    return [of_name[name] for name in wanted if name in of_name]


def _plain(column: str) -> str:
    """Return a column's name in lower case, without spaces and without the mark that Excel puts before the first."""
    return str(column).strip("\ufeff \t").lower()


def first_column(columns: Sequence[str], *wanted: Sequence[str]) -> str:
    """Return the first column with a wanted name; raises ColumnError where none has one."""
    found = find_columns(columns, [name for group in wanted for name in group])
    if found:
        return found[0]
    short = " or ".join(name for group in wanted for name in _SHORT.get(tuple(group), group))
    raise ColumnError(f"no column {short}; {_has(columns, *wanted)}")


def image_column(columns: Sequence[str], chosen: str | None = None, short: str = "") -> str:
    """Return the column that names images: the ``chosen`` one, else ``uri``, else the only one with a usual name.

    ``short`` is what the message calls a missing one, by default the usual names. Raises ColumnError where the chosen
    one is not there, where no column has a usual name, and where several have.
    """
    if chosen is not None:
        return chosen_column(columns, chosen, "--uri-column")
    found = find_columns(columns, IMAGE_COLUMNS)
    if not found:
        if short:
            raise ColumnError(f"no column {short}; {_has(columns, IMAGE_COLUMNS)}")
        return first_column(columns, IMAGE_COLUMNS)
    if len(found) > 1 and _plain(found[0]) != IMAGE_COLUMNS[0]:
        raise ColumnError(f"which is the uri: {', '.join(sorted(found, key=list(columns).index))}?")
    return found[0]


def chosen_column(columns: Sequence[str], chosen: str, option: str) -> str:
    """Return the column that an option names, exactly or else in another case; raises ColumnError where none is."""
    found = [chosen] if chosen in columns else find_columns(columns, [_plain(chosen)])
    if not found:
        raise ColumnError(f"{option} {chosen!r}: no such column; it has {', '.join(map(str, columns))}")
    return found[0]


def _has(columns: Sequence[str], *wanted: Sequence[str]) -> str:
    accepted = ", ".join(name for group in wanted for name in group)
    one = str(columns[0]) if len(columns) == 1 else ""
    separator = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")) if sign in one), "")
    hint = f"; its cells seem to be separated by {separator}, allowed: commas" if separator else ""
    return f"it has {', '.join(map(str, columns))}; accepted in any case: {accepted}{hint}"


def is_empty(value: Any) -> bool:
    """Tell whether a cell holds nothing: null, NaN, or an empty text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def label_in(value: Any) -> str:
    """Return the label in a cell, without the spaces around it; an empty text for an empty cell.

    A whole number that a table stores as 3.0, because other cells are empty, is the label "3".
    """
    if is_empty(value):
        return ""
    is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value) if is_whole else value).strip()


def labels_in(value: Any, separator: str) -> tuple[str, ...]:
    """Return the labels in a cell, each once: a list of them, or a text that ``separator`` divides."""
    parts = value if isinstance(value, list | tuple | np.ndarray) else label_in(value).split(separator)
    return tuple(dict.fromkeys(text for part in parts if (text := label_in(part))))


def ids_in(value: Any) -> tuple[int, ...]:
    """Return the class ids in a cell, ascending, each once: 340, 340.0, "340;341.0" or [340, 341].

    An empty cell has none. Raises ValueError for anything else.
    """
    if isinstance(value, list | tuple | np.ndarray):
        parts = [label_in(part) for part in value]
    else:
        text = label_in(value)
        parts = (text[1:-1].replace(",", ";") if re.fullmatch(r"\[.*\]", text) else text).split(";")
    kept = [part.strip() for part in parts if part.strip()]
    wrong = next((part for part in kept if not _WHOLE_NUMBER.fullmatch(part)), None)
    if wrong is not None:
        raise ValueError(f"class id {wrong!r}; allowed: a whole number, or several separated by ;")
    return tuple(sorted({int(part.partition(".")[0]) for part in kept}))


def plain_name(name: str) -> str:
    """Return an image's name as names are compared: with slashes, also before members, and accents in one spelling."""
    return _MEMBER.sub(r"\1/", unicodedata.normalize("NFC", safe_url(name.strip()).replace("\\", "/")))


def ends_of(uri: str) -> Iterator[str]:
    """Yield the names that an image answers to, the longest first: its uri and each end of it after a ``/``."""
    name = plain_name(uri)
    while True:
        yield name
        _, slash, name = name.partition("/")
        if not slash:
            return


def sql_parts(column: str) -> str:
    """Return DuckDB's expression for the parts, between slashes, of ``plain_name`` of a column's texts."""
    name = rf"nfc_normalize(replace(trim({column}), '\', '/'))"
    return rf"string_split(regexp_replace({name}, '{MEMBER_MARK}', '\1/', 'gi'), '/')"
