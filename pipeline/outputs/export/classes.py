"""The classes of an export: which of the network's classes it has, and what they are called there."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import yaml

from pipeline.outputs.reader import Lake
from pipeline.storage.filesystems import read_url
from schemas.errors import UsageError
from schemas.options.export import ExportConfig
from schemas.url_secrets import safe_url, shown_value
from schemas.yaml_text import parse_yaml

_SHOWN = 5
"""Most names that a note lists."""


class ExportClass(NamedTuple):
    """A class of the export, of one or several classes of the network."""

    name: str
    class_ids: tuple[int, ...]
    """Ascending. The first one gives the class its place and its id, so that filters of boxes change neither."""


class Classes(NamedTuple):
    """The classes of an export, ordered by their first ids, and what the user should know of them."""

    chosen: tuple[ExportClass, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names, all different."""
        return [one.name for one in self.chosen]

    @property
    def place_of(self) -> dict[int, int]:
        """The place of each of the network's classes in ``chosen``."""
        return {class_id: place for place, one in enumerate(self.chosen) for class_id in one.class_ids}


def export_classes(lake: Lake, model: str, config: ExportConfig) -> Classes:
    """Return the classes that the model's boxes have and ``config`` wants.

    They follow from all of the model's current boxes, so that two exports with different filters have the same ids.
    Raises UsageError for a class that the output does not have, and for a file of names that can't be used.
    """
    query = "SELECT class_id, max_by(label, run_id) FROM boxes WHERE model = $model GROUP BY class_id ORDER BY class_id"
    labels: dict[int, str] = dict(lake.sql(query, {"model": model}).fetchall())
    new_names = _read_names(config) if config.rename else {}
    renamed = {class_id: name for class_id, label in labels.items() if (name := _new_name(class_id, label, new_names))}
    wanted = set(labels) if config.classes is None else _wanted(config.classes, labels)
    if config.only_renamed:
        wanted &= set(renamed)
    plain = Counter(label for class_id, label in labels.items() if class_id not in renamed)
    named: dict[str, list[int]] = defaultdict(list)
    for class_id in sorted(wanted):
        label = labels[class_id]
        shared = plain[label] > 1 and class_id not in renamed
        named[f"{label} ({class_id})" if shared else renamed.get(class_id, label)].append(class_id)
    classes = [ExportClass(name, tuple(class_ids)) for name, class_ids in named.items()]
    notes = _unknown_names(new_names, labels)
    for label in sorted({labels[class_id] for class_id in wanted - renamed.keys() if plain[labels[class_id]] > 1}):
        notes.append(
            f"{plain[label]} classes of the network are called {label!r}; they stay apart, with the class id behind the"
            " name (--rename can merge them)"
        )
    return Classes(tuple(sorted(classes, key=lambda one: one.class_ids[0])), tuple(notes))


def _wanted(asked: str | int | Sequence[str | int], labels: Mapping[int, str]) -> set[int]:
    """Return the ids of the classes that --classes names; one label may contain commas."""
    if isinstance(asked, str):
        asked = [asked] if asked in labels.values() else [part.strip() for part in asked.split(",") if part.strip()]
    asked = [asked] if isinstance(asked, int) else asked
    found: set[int] = set()
    for name in map(str, asked):
        ids = {class_id for class_id, label in labels.items() if label == name}
        ids = ids or {class_id for class_id in labels if str(class_id) == name}
        if not ids:
            some = ", ".join(f"{class_id} {label!r}" for class_id, label in list(labels.items())[:_SHOWN])
            raise UsageError(
                f"--classes {shown_value(name)}: allowed: labels or class ids of boxes in OUT, such as {some or 'none'}"
            )
        found |= ids
    return found


def _new_name(class_id: int, label: str, new_names: Mapping[str, str]) -> str | None:
    return new_names.get(label, new_names.get(str(class_id)))


def _unknown_names(new_names: Mapping[str, str], labels: Mapping[int, str]) -> list[str]:
    known = set(labels.values()) | set(map(str, labels))
    unknown = [name for name in new_names if name not in known]
    shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
    return [f"{len(unknown)} names of --rename are no class with boxes in OUT: {shown}"] if unknown else []


def _read_names(config: ExportConfig) -> dict[str, str]:
    """Return the new name of each label or class id in the file of --rename."""
    where = f"--rename {safe_url(config.rename or '')}"
    content = read_url(config.rename or "", config)
    try:
        text = content.decode("utf-8-sig")
        pairs = _yaml_pairs(text) if (config.rename or "").endswith((".yaml", ".yml")) else _csv_pairs(text)
    except (UnicodeDecodeError, yaml.YAMLError, csv.Error, ValueError) as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from error
    names: dict[str, str] = {}
    for old, new in pairs:
        if not old or not new:
            raise UsageError(f"{where}: {old!r} to {new!r}; allowed: two names that are not empty")
        if names.setdefault(old, new) != new:
            raise UsageError(f"{where}: {old!r} gets two names, {names[old]!r} and {new!r}; allowed: one")
    return names


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if not {"from", "to"} <= set(rows.fieldnames or ()):
        raise ValueError(
            f"columns {', '.join(rows.fieldnames or ()) or 'none'}; allowed: CSV with the columns from, to"
        )
    return [((row["from"] or "").strip(), (row["to"] or "").strip()) for row in rows]


def _yaml_pairs(text: str) -> list[tuple[str, str]]:
    names = parse_yaml(text)
    if not isinstance(names, dict):
        raise ValueError(  # noqa: TRY004 (the text is wrong, not an argument)
            "allowed: YAML with one line `from: to` for each class"
        )
    odd = next((one for pair in names.items() for one in pair if type(one) not in {str, int}), None)
    if odd is not None:
        raise ValueError(f"{odd!r} is no name in YAML; write it in quotes")
    return [(str(old), str(new)) for old, new in names.items()]
