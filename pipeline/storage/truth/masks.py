"""Reads the masks of a truth: COCO's polygons and run lengths, by image and category, or wsolevaluation's files."""

import posixpath
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.images.mask_decoding import Mask, polygon_mask, run_length_mask
from pipeline.storage.filesystems import connect, read_object, read_url
from pipeline.storage.store_failures import store_errors
from pipeline.storage.truth.coco import coco_objects
from pipeline.storage.truth.wsol_masks import LOCALIZATION, MaskFiles, MaskLine, mask_lines
from schemas.errors import InputError, UsageError
from schemas.label_text import parse_json
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url

Place = tuple[str, str]
"""The image's name in the truth, and the category's name; ``Truth`` calls a pair by the same two."""


class Masks(Protocol):
    """The masks of a truth."""

    def of(self, key: str, label: str, size_hw: tuple[int, int]) -> tuple[Mask, Mask] | None:
        """Return what is inside an object of a pair of ``Truth``, and what is left out where it is not inside.

        None where the pair has no mask. ``size_hw`` is the image's; the masks show all of it, in a size of their own.
        Threads may ask side by side.
        """


@dataclass(frozen=True)
class CocoMasks:
    """The segmentations of a COCO file, as they stand in it; each is decoded when its pair is asked for."""

    objects: Mapping[Place, tuple[Any, ...]]
    """Segmentations of single objects: lists of polygons, or run lengths."""
    crowds: Mapping[Place, tuple[Any, ...]]
    """Segmentations of crowds, whose pixels count neither as object nor as background."""

    def of(self, key: str, label: str, size_hw: tuple[int, int]) -> tuple[Mask, Mask] | None:
        """Return what is inside an object of this pair, and what is inside a crowd; (h, w) each.

        None where the pair has no segmentation. Raises UsageError where one is of another size than the image.
        """
        place = (key, label)
        if place not in self.objects:
            return None
        try:
            return _united(self.objects[place], size_hw), _united(self.crowds.get(place, ()), size_hw)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"truth {key!r}: segmentation of {label!r}: {error}") from error


def read_masks(url: str, storage: StorageConfig, root: str | None = None) -> Masks | None:
    """Return the masks of the truth at ``url``; None where it is neither COCO's JSON nor wsolevaluation's, or has none.

    ``root`` is the folder of wsolevaluation's mask files, by default the truth itself. Raises InputError where a file
    can't be read, UsageError where it is not what its name says, and for a ``root`` that is not there, or that is given
    with a truth that names no masks.
    """
    is_json = url.lower().endswith(".json")
    files = None if is_json else _mask_files(url, storage, root)
    if root is not None and files is None:
        raise UsageError(f"--masks {safe_url(root)}: allowed: with a --truth folder whose {LOCALIZATION} names masks")
    if not is_json:
        return files
    try:
        document = parse_json(read_url(url, storage))
    except ValueError as error:
        raise UsageError(f"truth {safe_url(url)!r}: no JSON: {error}") from error
    return masks_of_coco(document, url)


def _mask_files(url: str, storage: StorageConfig, root: str | None) -> MaskFiles | None:
    """Return the mask files of a wsolevaluation folder; None where it is none, or has boxes."""
    fs, folder = connect(url, storage, anonymous=storage.anonymous)
    name = posixpath.join(safe_url(url), LOCALIZATION)
    path = posixpath.join(folder, LOCALIZATION)
    with store_errors(f"truth {name}", InputError):
        lines = mask_lines(read_object(fs, path), name) if fs.isdir(folder) and fs.exists(path) else None
    if lines is None:
        return None
    of_image: defaultdict[str, list[MaskLine]] = defaultdict(list)
    for line in lines:
        of_image[line.key].append(line)
    if root is not None:
        fs, folder = connect(root, storage, anonymous=storage.anonymous)
        with store_errors(f"--masks {safe_url(root)}", InputError):
            is_there = fs.exists(folder)
        if not is_there:
            raise UsageError(
                f"--masks {safe_url(root)}: not there; allowed: the folder that the files of {name} lie under"
            )
    return MaskFiles(fs, folder, name, dict(of_image))


def masks_of_coco(document: Any, url: str) -> CocoMasks | None:
    """Return the masks of a COCO document; None where it has none. Raises UsageError where it is not COCO's."""
    kinds: tuple[defaultdict[Place, list[Any]], ...] = (defaultdict(list), defaultdict(list))
    for item in coco_objects(document, f"truth {safe_url(url)!r}", skipped=[]):  # They are named with the boxes.
        if item.annotation.get("segmentation"):
            kinds[item.is_crowd][item.key, item.label].append(item.annotation["segmentation"])
    objects, crowds = ({place: tuple(shapes) for place, shapes in kind.items()} for kind in kinds)
    return CocoMasks(objects, crowds) if objects else None


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
