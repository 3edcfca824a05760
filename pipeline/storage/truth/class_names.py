"""What a network's classes are called: a list of one text a class, and the classes that a truth's label means in it."""

import json
from collections.abc import Sequence

from pipeline.storage.filesystems import read_url, safe_url
from schemas.config import StorageConfig
from schemas.errors import UsageError


class ClassNames:
    """Finds the classes that a label means, by texts in the order of their class ids.

    A text answers to itself as a whole. Where each text has several words and no two the same first one, as in ILSVRC's
    ``n02119789 kit fox, Vulpes macrotis``, it answers to its first word too; in a plain list of names it does not, so
    that "horse" never means "horse cart".
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Take one text for each class."""
        self.texts = tuple(texts)
        self._ids: dict[str, list[int]] = {}
        for class_id, text in enumerate(self.texts):
            self._ids.setdefault(text, []).append(class_id)
        words = [text.split(maxsplit=1) for text in self.texts]
        codes = {each[0]: class_id for class_id, each in enumerate(words) if len(each) > 1}
        self._codes = codes if len(codes) == len(self.texts) else {}

    @property
    def names(self) -> tuple[str, ...]:
        """All that a class answers to."""
        return (*self._codes, *self._ids)

    def ids(self, label: str) -> tuple[int, ...]:
        """Return the classes called ``label``, ascending: every one of that name; none where no class is."""
        if label in self._ids:
            return tuple(self._ids[label])
        return (self._codes[label],) if label in self._codes else ()


def read_class_names(url: str, storage: StorageConfig) -> ClassNames:
    """Return the names that a file lists, one class a line or a JSON list, in the order of the class ids.

    Raises InputError where it can't be read; UsageError where it is neither, is empty, or has an empty line between.
    """
    option = f"--labels {safe_url(url)}"
    try:
        text = read_url(url, storage).decode("utf-8-sig")
        texts = json.loads(text) if text.lstrip().startswith("[") else text.rstrip().splitlines()
    except ValueError as error:
        raise UsageError(f"{option}: neither lines of UTF-8 text nor a JSON list: {error}") from error
    if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
        raise UsageError(f"{option}: an empty name; allowed: one class a line, in the order of the class ids")
    return ClassNames([each.strip() for each in texts])
