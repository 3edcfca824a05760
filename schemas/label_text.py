"""Parse the texts that list the names of classes in the order of their ids; every verb uses this module."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raises ValueError for any other text and for too deep nesting."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_labels(content: bytes) -> tuple[str, ...]:
    """Return the names in a file's bytes: UTF-8 text with one name a line, a JSON list of texts, or a JSON object.

    The object is Keras's ``imagenet_class_index.json``, a ``config.json`` of Hugging Face with ``id2label`` or of timm
    with ``label_names``, or another object that maps numbers to names or names to numbers. Spaces around a name and
    empty lines at the end are ignored.
    Raises ValueError for any other content, for a file without names, for a missing number, and for an empty name
    between others, because without it all later names would move to another class.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    if text.lstrip().startswith(("[", "{")):
        names = _names_in(parse_json(text))
    else:
        names = text.rstrip().replace("\r\n", "\n").split("\n")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a JSON list with an empty name or a name that is no text")
    labels = tuple(name.strip() for name in names) or ("",)
    if not all(labels):
        raise ValueError(f"an empty name in place {labels.index('') + 1} of {len(labels)}" if labels[1:] else "no name")
    return labels


INSIDE = ("label_names", "id2label", "idx_to_class", "class_names", "classes", "label2id", "class_to_idx")
"""Keys under which a configuration holds the names, in the order of preference."""


def _names_in(listed: Any) -> list[Any]:
    """Return the names of a JSON list or object in the order of their numbers."""
    if isinstance(listed, dict):
        listed = next((listed[key] for key in INSIDE if isinstance(listed.get(key), dict | list)), listed)
    if isinstance(listed, list):
        return listed
    pairs = list(listed.items())
    if all(isinstance(number, int) for _, number in pairs):
        pairs = [(str(number), name) for name, number in pairs]
    named = dict(pairs)
    missing = [number for number in range(len(pairs)) if str(number) not in named]
    if missing:
        raise ValueError(f"a JSON object of {len(pairs)} names without the number {missing[0]}")
    # Keras's file has a pair for each class: a WordNet id and the name.
    names = [named[str(number)] for number in range(len(pairs))]
    return [name[-1] if isinstance(name, list) and len(name) == 2 else name for name in names]


def labels_in_config(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes in a config.json of timm or Hugging Face, None where it has none.

    LABEL_0, LABEL_1, ... stand there for names that nobody gave. Raises ValueError for names that can't be used.
    """
    names, described = config.get("label_names"), config.get("label_descriptions")
    if isinstance(names, list) and isinstance(described, dict):
        config = {"label_names": [described.get(name, name) for name in names]}
    if not any(config.get(key) for key in INSIDE):
        return None
    labels = parse_labels(json.dumps(config).encode())
    return None if labels == tuple(f"LABEL_{number}" for number in range(len(labels))) else labels
