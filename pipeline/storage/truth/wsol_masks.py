"""Mask files of a wsolevaluation truth, the OpenImages protocol of Choe et al. 2020 (arXiv 2001.07437).

Each line of ``localization.txt`` is ``image,mask,ignore``: the file of one object's mask, and on one of an image's
lines the file of what counts neither as object nor as background, empty elsewhere. A pixel is inside where its grey
value is above 0; an image's masks are united. Files are as large as they like: each shows its whole image.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fsspec import AbstractFileSystem

from pipeline.images.mask_decoding import SIDE, Mask, mask_of_file
from pipeline.storage.filesystems import read_object
from pipeline.storage.store_failures import store_errors
from schemas.errors import InputError, RejectedImage, UsageError

LOCALIZATION = "localization.txt"
_MASK_FIELDS, _BOX_FIELDS = 3, 5


class MaskLine(NamedTuple):
    """One line of ``localization.txt``."""

    number: int
    """Of the line, from 1."""
    key: str
    """The image."""
    mask: str
    """File of an object's mask."""
    ignored: str
    """File of what is left out; empty where the line names none."""


def mask_lines(content: bytes, name: str) -> list[MaskLine] | None:
    """Return the lines of a ``localization.txt`` of masks; None where its first line is that of a box.

    ``name`` is what messages call the file. Raises UsageError, with the line's number, for one that is neither, that
    names no mask, or that names what is left out of an image a second time.
    """
    rows = [(number, line.split(",")) for number, line in enumerate(_lines(content, name), 1) if line]
    if not rows or len(rows[0][1]) == _BOX_FIELDS:
        return None
    ignoring: dict[str, int] = {}
    found = []
    for number, row in rows:
        where = f"truth {name!r}: line {number}"
        if len(row) != _MASK_FIELDS or not all(row[:2]):
            raise UsageError(f"{where}: {','.join(row)!r}; allowed: image,mask,ignore, or image,x0,y0,x1,y1")
        line = MaskLine(number, *row)
        if line.ignored and ignoring.setdefault(line.key, number) != number:
            raise UsageError(f"{where}: a second ignore mask of {line.key!r}; line {ignoring[line.key]} has the first")
        found.append(line)
    return found


def _lines(content: bytes, name: str) -> list[str]:
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"truth {name!r}: no UTF-8 text: {error.reason}") from error


@dataclass(frozen=True)
class MaskFiles:
    """The masks of images, read when asked for; threads may ask side by side."""

    fs: AbstractFileSystem
    root: str
    """The folder that the lines' files lie under."""
    name: str
    """What messages call the file of the lines."""
    lines: Mapping[str, Sequence[MaskLine]]
    """By image."""

    def of(self, key: str, label: str, size_hw: tuple[int, int]) -> tuple[Mask, Mask]:
        """Return what is inside an object of this image, and what is left out, (SIDE, SIDE) each.

        Raises InputError for a file that can't be read, UsageError for one that is no image; both name the line.
        """
        inside, ignored = np.zeros((2, SIDE, SIDE), np.bool_)
        for line in self.lines[key]:
            inside |= self._read(line, line.mask)
            if line.ignored:
                ignored |= self._read(line, line.ignored)
        return inside, ignored

    def _read(self, line: MaskLine, file: str) -> Mask:
        where = f"truth {self.name!r}: line {line.number}: mask {file}"
        with store_errors(where, InputError):
            content = read_object(self.fs, posixpath.join(self.root, file))
        try:
            return mask_of_file(content)
        except RejectedImage as error:
            raise UsageError(f"{where}: {error}") from error
