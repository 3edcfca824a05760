"""Reads the truth that outputs are scored against: pairs of an image and a class of an object in it, with boxes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.storage.names import ends_of, plain_name
from pipeline.storage.truth.box_units import refuse_fractions
from pipeline.storage.truth.class_names import ClassNames
from pipeline.storage.truth.coco import skipped_sentence
from pipeline.storage.truth.truth_files import TrueBox, true_objects
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url


@dataclass(frozen=True)
class Truth:
    """P pairs of an image and a class of objects in it, with the G boxes of these objects.

    Every pair has a box; a truth that has masks only has no boxes at all.
    """

    keys: tuple[str, ...]
    """(P,) name of the pair's image: a uri, or the end of a uri after a ``/``."""
    class_ids: tuple[tuple[int, ...], ...]
    """(P,) ids of the network's classes that fit the pair; empty where the pair has a label only."""
    labels: tuple[str, ...]
    """(P,) name of the pair's class; empty where the truth has no name."""
    boxes_xyxy: NDArray[np.float64]
    """(G, 4) xmin, ymin, xmax, ymax in pixels of the upright original, in the convention of the truth."""
    owner: NDArray[np.int64]
    """(G,) index of the pair of each box, ascending."""
    without_class: int
    """Number of objects that are left out because they have no class id, or a label that the network does not have."""
    lacking: tuple[str, ...] = ()
    """Labels that the list of the network's classes does not have."""
    skipped: tuple[str, ...] = ()
    """Annotations that can't be used, each with the reason."""

    def skipped_sentence(self, name: str) -> str:
        """Return in one line which annotations of the truth ``name`` can't be used; empty where all can."""
        return skipped_sentence(self.skipped, name)

    def match(self, uris: Sequence[str]) -> NDArray[np.int64]:
        """Return (P,) int64: the index in ``uris`` of each pair's image; -1 where the image is not among them.

        A key fits a uri that is equal to the key or ends with ``/`` and the key; ``pipeline.storage.names`` compares
        the names. Where several keys fit a uri, the longest key counts. Raises UsageError for a key that fits several
        uris.
        """
        known = {plain_name(key): key for key in self.keys}
        found: dict[str, int] = {}
        for index, uri in enumerate(uris):
            name = next((end for end in ends_of(uri) if end in known), None)
            if name is None:
                continue
            if name in found:
                raise UsageError(
                    f"truth {known[name]!r} fits both {uris[found[name]]!r} and {uri!r}; write more of the path in the"
                    " truth"
                )
            found[name] = index
        return np.array([found.get(plain_name(key), -1) for key in self.keys], dtype=np.int64)


def read_truth(url: str, storage: StorageConfig, names: ClassNames | None = None) -> Truth:
    """Return the truth at ``url``: a .csv, .tsv, .parquet or .json file, or a folder, as ``truth_files`` reads it.

    ``names`` maps the labels of a truth without class ids to the network's class ids. Raises InputError where nothing
    can be read. Raises UsageError for an unknown format, a missing column, a coordinate that is not a number, a truth
    without an object of a class, and with ``names`` a truth without any of these labels.
    """
    skipped: list[str] = []
    rows = true_objects(url, storage, anonymous=storage.anonymous, skipped=skipped)
    lacking: dict[str, None] = {}
    if names is not None:
        rows = _named(rows, names, lacking)
    return replace(_grouped(rows, safe_url(url), lacking, skipped), skipped=tuple(skipped))


def _named(objects: Iterable[TrueBox], names: ClassNames, lacking: dict[str, None]) -> Iterator[TrueBox]:
    """Yield objects with the class ids of their labels; an unknown label is removed and added to ``lacking``."""
    for each in objects:
        ids = each.class_ids or names.ids(each.label)
        if each.label and not ids:
            lacking[each.label] = None
        yield each._replace(class_ids=ids, label=each.label if ids else "")


def _grouped(boxes: Iterable[TrueBox], path: str, lacking: dict[str, None], skipped: list[str]) -> Truth:
    """Return the pairs of ``boxes`` in the order of their first objects.

    Raises UsageError for a box with xmax < xmin or ymax < ymin, and where there is no pair.
    """
    pairs: dict[tuple[str, tuple[int, ...], str], list[tuple[float, float, float, float]]] = {}
    labels: list[str] = []
    without_class = 0
    for key, class_ids, label, box in boxes:
        if not class_ids and not label:
            without_class += 1
            continue
        if box and (box[2] < box[0] or box[3] < box[1]):
            raise UsageError(
                f"truth {path!r}: {key!r} has xmax < xmin or ymax < ymin in {box}; are these width, height?"
            )
        pair = (key, class_ids, "" if class_ids else label)
        if pair not in pairs:
            pairs[pair] = []
            labels.append(label)
        pairs[pair] += [box] if box else []
    if not pairs and lacking:
        raise UsageError(f"truth {path!r}: --labels has none of its labels, like {next(iter(lacking))!r}")
    if not pairs:
        left_out = f"; {len(skipped)} annotations can't be used, such as {skipped[0]}" if skipped else ""
        raise UsageError(f"truth {path!r}: no object of a class{left_out}")
    boxes_xyxy = np.array([box for group in pairs.values() for box in group], dtype=np.float64)
    refuse_fractions(boxes_xyxy, f"truth {path!r}")
    return Truth(
        keys=tuple(key for key, _, _ in pairs),
        class_ids=tuple(class_ids for _, class_ids, _ in pairs),
        labels=tuple(labels),
        boxes_xyxy=boxes_xyxy.reshape(-1, 4),
        owner=np.repeat(np.arange(len(pairs)), [len(group) for group in pairs.values()]),
        without_class=without_class,
        lacking=tuple(lacking),
    )
