"""Reads the masks of a COCO truth: polygons and run lengths, by image and category."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.images.masks import Mask, polygon_mask, run_length_mask
from pipeline.storage.filesystems import read_url, safe_url
from schemas.config import StorageConfig
from schemas.errors import UsageError

Place = tuple[str, str]
"""An image as the truth calls it, and a category's name: with them ``Truth`` calls a pair."""


@dataclass(frozen=True)
class Masks:
    """Objects as the file has them, decoded when asked for."""

    objects: Mapping[Place, tuple[Any, ...]]
    """Segmentations of single objects: lists of polygons, or run lengths."""
    crowds: Mapping[Place, tuple[Any, ...]]
    """Those of crowds: neither object nor background."""

    def of(self, key: str, label: str, size_hw: tuple[int, int]) -> tuple[Mask, Mask]:
        """Return what is inside an object of this pair, and what is inside a crowd; (h, w) each.

        Raises UsageError where a segmentation is of another size than the image.
        """
        place = (key, label)
        try:
            return tuple(  # type: ignore[return-value] # of two
                _united(kinds.get(place, ()), size_hw) for kinds in (self.objects, self.crowds)
            )
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"truth {key!r}: segmentation of {label!r}: {error}") from error


def read_masks(url: str, storage: StorageConfig) -> Masks | None:
    """Return the masks of the truth at ``url``; None where it is no JSON file or has none.

    Raises InputError where the file can't be read, UsageError where it is not COCO's JSON.
    """
    if not url.lower().endswith(".json"):
        return None
    try:
        document = json.loads(read_url(url, storage))
    except ValueError as error:
        raise UsageError(f"truth {safe_url(url)!r}: no JSON: {error}") from error
    return masks_of_coco(document, url)


def masks_of_coco(document: Any, url: str) -> Masks | None:
    """Return the masks of a COCO document; None where it has none. Raises UsageError where it is not COCO's."""
    kinds: tuple[defaultdict[Place, list[Any]], ...] = (defaultdict(list), defaultdict(list))
    try:
        files = {image["id"]: str(image["file_name"]) for image in document["images"]}
        names = {category["id"]: str(category["name"]) for category in document["categories"]}
        for item in document["annotations"]:
            if item.get("segmentation"):
                place = files[item["image_id"]], names[item["category_id"]]
                kinds[bool(item.get("iscrowd"))][place].append(item["segmentation"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"truth {safe_url(url)!r}: not COCO's JSON: {error!r}") from error
    objects, crowds = ({place: tuple(shapes) for place, shapes in kind.items()} for kind in kinds)
    return Masks(objects, crowds) if objects else None


def _united(segmentations: tuple[Any, ...], size_hw: tuple[int, int]) -> Mask:
    mask = np.zeros(size_hw, np.bool_)
    for segmentation in segmentations:
        if isinstance(segmentation, list):
            mask |= polygon_mask(segmentation, size_hw)
            continue
        if tuple(segmentation["size"]) != size_hw:
            raise ValueError(f"is of {segmentation['size']} rows and columns, the image of {list(size_hw)}")
        mask |= run_length_mask(segmentation["counts"], size_hw)
    return mask
