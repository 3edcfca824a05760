"""Some images of an export with their boxes: columns for fast writers, and records for the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "HEIF": "heic", "JPEG2000": "jp2"}
"""Extensions that are not the format's name in lower case."""


class Box(NamedTuple):
    """A box of an image."""

    place: int
    """Place of the class in ``Job.classes``."""
    name: str
    """Name of the class in the export."""
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    """Half-open, in pixels of the upright image."""
    score: float | None
    """The column box_score."""
    prob: float
    """The column class_prob."""
    rank: int
    threshold: float
    component: int
    method: str
    mask: dict[str, Any] | None
    """COCO's compressed run lengths of the box's part of the class map; None where there are none."""


class ImageRecord(NamedTuple):
    """An image with its boxes."""

    image_id: str
    uri: str
    file: str
    """Name of the picture in the export, without folders; with ``--images reference`` no file has it."""
    width_px: int
    height_px: int
    data: bytes | None
    """The encoded picture; None unless the exporter embeds pictures."""
    boxes: list[Box]


@dataclass(frozen=True)
class Batch:
    """N images with their boxes, in the order of the selection."""

    images: pa.Table
    """(N,) image_id, uri, width_px, height_px, format, and with pictures the columns of PLAN."""
    boxes: pa.Table
    """(R,) the columns of ``Box``, image by image; class_id in the place of place and name."""
    offsets: NDArray[np.int64]
    """(N + 1,) the first box of each image, then R."""
    names: Sequence[str]
    """Names of the export's classes."""
    places: NDArray[np.int64]
    """(R,) the place of each box's class in ``names``."""
    data: Sequence[bytes | None] | None = None
    """(N,) the encoded pictures; None where they were not fetched."""
    masks: Sequence[dict[str, Any] | None] | None = None
    """(R,) the masks; None where none were asked for."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def take(self, chosen: NDArray[np.int64]) -> "Batch":
        """Return the images at the places ``chosen``, ascending."""
        if len(chosen) == len(self):
            return self
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self.offsets[chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            images=self.images.take(chosen),
            boxes=self.boxes.take(rows),
            offsets=offsets,
            places=self.places[rows],
            data=None if self.data is None else [self.data[place] for place in chosen],
            masks=None if self.masks is None else [self.masks[row] for row in rows],
        )

    def with_masks(self, masks: Sequence[dict[str, Any] | None]) -> "Batch":
        """Return the batch with the masks (R,)."""
        return replace(self, masks=masks)

    def without_data(self) -> "Batch":
        """Return the batch without the encoded pictures."""
        return replace(self, data=None)

    def files(self) -> list[str]:
        """Return the name of each picture in the export: the image_id with an extension for its format."""
        formats, ids = self.images["format"].to_pylist(), self.images["image_id"].to_pylist()
        return [f"{image_id}.{suffix_for(name)}" for image_id, name in zip(ids, formats, strict=True)]

    def records(self) -> Iterator[ImageRecord]:
        """Yield the images one by one."""
        names = self.names
        columns = [self.boxes[name].to_pylist() for name in BOX_COLUMNS]
        masks = [None] * len(self.boxes) if self.masks is None else self.masks
        places = self.places.tolist()
        boxes = [
            Box._make((place, names[place], *values, mask))
            for place, *values, mask in zip(places, *columns, masks, strict=True)
        ]
        data = [None] * len(self) if self.data is None else self.data
        sides = [self.images[name].to_pylist() for name in ("image_id", "uri")]
        sizes = [self.images[name].to_pylist() for name in ("width_px", "height_px")]
        starts = self.offsets.tolist()
        for row in zip(*sides, self.files(), *sizes, data, starts[:-1], starts[1:], strict=True):
            yield ImageRecord._make((*row[:-2], boxes[row[-2] : row[-1]]))


BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax", "box_score", "class_prob", "rank", "threshold", "component", "method")
"""The columns of ``boxes`` that a Box has, in its order."""


def suffix_for(image_format: str) -> str:
    """Return the usual extension of a format as the table images names it ("PNG, 12 of 16 bits"), without the dot."""
    name = image_format.partition(",")[0]
    plain = "".join(letter for letter in name.lower() if letter.isascii() and letter.isalnum())
    return _SUFFIXES.get(name, plain or "img")
