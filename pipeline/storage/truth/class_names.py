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

    def __init__(self, texts: Sequence[str | None]) -> None:
        """Take one text for each class; None where it is not known, which only ``StoredNames`` allows for."""
        self.texts = tuple(texts)
        self._ids: dict[str, list[int]] = {}
        for class_id, text in enumerate(self.texts):
            if text is not None:
                self._ids.setdefault(text, []).append(class_id)
        self._codes = _codes(self.texts)

    @property
    def end(self) -> int:
        """One more than the highest id that a label may mean."""
        return len(self.texts)

    def name(self, class_id: int) -> str:
        """Return what an id is called, or its number in words where its label is not known."""
        return self.texts[class_id] or f"class {class_id}"

    @property
    def names(self) -> tuple[str, ...]:
        """All labels that mean a class."""
        return (*self._codes, *self._ids)

    def ids(self, label: str) -> tuple[int, ...]:
        """Return the classes called ``label``, ascending: every one of that name; none where no class is."""
        if label in self._ids:
            return tuple(self._ids[label])
        return (self._codes[label],) if label in self._codes else ()


class StoredNames(ClassNames):
    """The names that the rows of an output show: a class that no row shows has no known name.

    A label that none of the known classes has may be the name of another class. It means an id of its own, above the
    ids of the network, to which no stored map belongs.
    """

    def __init__(self, texts: Sequence[str | None]) -> None:
        """Take one text for each class of the network; None where no row shows the class."""
        super().__init__(texts)
        self._others: dict[str, int] = {}

    @property
    def end(self) -> int:
        """One more than the highest id that a label may mean."""
        return len(self.texts) + len(self._others)

    def ids(self, label: str) -> tuple[int, ...]:
        """Return the classes called ``label``; an id above the network's where no known class is called so."""
        found = super().ids(label)
        if found or not label:
            return found
        return (self._others.setdefault(label, len(self.texts) + len(self._others)),)

    def name(self, class_id: int) -> str:
        """Return what an id is called, or its number in words where its label is not known."""
        return super().name(class_id) if class_id < len(self.texts) else list(self._others)[class_id - len(self.texts)]


def _codes(texts: Sequence[str | None]) -> dict[str, int]:
    """Return the class of each first word, where first words name classes as ILSVRC's do, else nothing.

    Where some texts are not known, first words name classes only if each has a digit, as ILSVRC's have: the unknown
    texts might have no second word.
    """
    words = {class_id: text.split(maxsplit=1) for class_id, text in enumerate(texts) if text is not None}
    codes = {each[0]: class_id for class_id, each in words.items() if len(each) > 1}
    is_whole = len(words) == len(texts) or all(any(letter.isdigit() for letter in code) for code in codes)
    return codes if is_whole and len(codes) == len(words) else {}


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
