"""COCO's JSON: its objects with their images and categories, and the annotations that can't be used."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from schemas.errors import UsageError

CocoBox = tuple[float, float, float, float]
_NAMED = 3
"""The most annotations that a message names."""


class CocoObject(NamedTuple):
    """An annotation whose image and category are known."""

    key: str
    """The image's ``file_name``."""
    label: str
    """The category's name."""
    annotation: dict[str, Any]
    name: str
    """What messages call the annotation."""

    @property
    def is_crowd(self) -> bool:
        """Whether it is a crowd, which is neither an object nor background."""
        return bool(self.annotation.get("iscrowd"))


def coco_objects(document: Any, where: str, skipped: list[str]) -> Iterator[CocoObject]:
    """Yield the annotations whose image and category the document has; ids may be numbers or texts.

    Others are named in ``skipped``, by their own ids. Raises UsageError, which begins with ``where``, for a document
    that is not COCO's.
    """
    try:
        files = {_id(image["id"]): str(image["file_name"]) for image in document["images"]}
        names = {_id(category["id"]): str(category["name"]) for category in document["categories"]}
        annotations = [
            (dict(item), _id(item["image_id"]), _id(item["category_id"])) for item in document["annotations"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{where}: not COCO's JSON (images, categories, annotations with image_id, category_id, bbox): {missing}"
        ) from error
    for place, (item, image, category) in enumerate(annotations):
        name = f"annotation {item['id']}" if "id" in item else f"annotation at place {place}"
        if image not in files:
            skipped.append(f"{name}: no image has the id {item['image_id']!r}")
        elif category not in names:
            skipped.append(f"{name}: no category has the id {item['category_id']!r}")
        else:
            yield CocoObject(files[image], names[category].strip(), item, name)


def skipped_sentence(skipped: Sequence[str], truth: str) -> str:
    """Return in one line how many annotations of ``truth`` can't be used, and which; empty where there are none."""
    if not skipped:
        return ""
    number = f"{len(skipped)} annotation{'s' * (len(skipped) > 1)}"
    named = "; ".join(skipped[:_NAMED]) + ", …" * (len(skipped) > _NAMED)
    return f"{number} of {truth} can't be used and {'do' if len(skipped) > 1 else 'does'}n't count: {named}."


def _id(value: Any) -> str:
    """Return an id as text: 7, 7.0 and "7" are one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def box_of(item: CocoObject, where: str, skipped: list[str]) -> CocoBox | None:
    """Return the box of an annotation as xmin, ymin, xmax, ymax; None, and named in ``skipped``, where it has none.

    Raises UsageError for a negative width or height.
    """
    bbox = item.annotation.get("bbox")
    try:
        x, y, width, height = map(float, bbox or ())
    except (TypeError, ValueError):
        skipped.append(f"{item.name}: {'no bbox' if bbox is None else f'bbox {bbox!r}'}")
        return None
    if width < 0 or height < 0:
        raise UsageError(
            f"{where}: {item.name}: bbox {bbox} has a negative width or height; COCO's bbox is [x, y, width, height],"
            " from the upper left corner"
        )
    if not (width and height and all(map(math.isfinite, (x, y, width, height)))):
        skipped.append(f"{item.name}: bbox {bbox} is empty")
        return None
    return x, y, x + width, y + height
