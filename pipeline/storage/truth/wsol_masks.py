"""Mask files of a wsolevaluation truth, the OpenImages protocol of Choe et al. 2020 (arXiv 2001.07437).

Each line of ``localization.txt`` is ``image,mask,ignore``. ``mask`` is the file of one object's mask. ``ignore`` is the
file of the pixels that count neither as object nor as background; only one line of an image names it. A pixel is inside
where its grey value is above 0. The masks of an image are united. Each file shows the whole image, in any size.
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
    """Number of the line in its file; the first is 1."""
    key: str
    """The image."""
    mask: str
    """File of an object's mask."""
    ignored: str
    """File of the pixels that count neither as object nor as background; empty where the line names none."""


def mask_lines(content: bytes, name: str) -> list[MaskLine] | None:
    """Return the lines of a ``localization.txt`` that names masks; None where the first line has a box.

    ``name`` is what messages call the file. Raises UsageError with the number of a line that has another number of
    fields, that names no mask, or that is the second one with an ignore mask of the same image.
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
    """The mask files of images. A file is read when its image is asked for; several threads may ask at once."""

    fs: AbstractFileSystem
    root: str
    """The folder that the lines' files lie under."""
    name: str
    """What messages call the file of the lines."""
    lines: Mapping[str, Sequence[MaskLine]]
    """By image."""

    def of(self, key: str, label: str, size_hw: tuple[int, int]) -> tuple[Mask, Mask]:
        """Return two bool masks (SIDE, SIDE) of an image: pixels of its objects, and pixels that don't count.

        Raises InputError for a file that can't be read, and UsageError for a file that is no image; both fail the run
        and name the line.
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
