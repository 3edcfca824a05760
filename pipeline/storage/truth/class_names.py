"""What a network's classes are called: a list of one text a class, and the classes that a truth's label means in it."""

from collections.abc import Sequence

from pipeline.storage.filesystems import read_url
from schemas.errors import UsageError
from schemas.label_text import parse_labels
from schemas.options.config import StorageConfig
from schemas.url_secrets import safe_url


class ClassNames:
    """Finds the classes that a label means, in a list of one text a class.

    A label means the classes whose whole text it is. Where every text has several words and each first word is another
    one, as in ILSVRC's ``n02119789 kit fox, Vulpes macrotis``, a label may also be a first word. In a plain list of
    names it may not, so that "horse" never means "horse cart".
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
        """All labels that mean a class."""
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
    return ClassNames(read_label_text(url, storage))


def read_label_text(url: str, storage: StorageConfig) -> tuple[str, ...]:
    """Return the names that a file lists, as ``schemas.label_text`` reads it for every verb.

    Raises InputError where it can't be read, UsageError where it lists no names.
    """
    content = read_url(url, storage)
    try:
        return parse_labels(content)
    except ValueError as error:
        allowed = "allowed: UTF-8 text, one class a line in the order of the class ids, or a JSON list"
        raise UsageError(f"--labels {safe_url(url)}: {error}; {allowed}") from error
