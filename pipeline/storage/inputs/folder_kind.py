"""Finds the kind of a folder: images, or shards or Parquet files with images. The kind with nearly all bytes counts.

Files of other kinds count as skipped, by kind. A folder in which no kind has nearly all bytes is an error, whose
message names the kinds and the option that chooses one.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pipeline.storage.inputs.entries import Entry
from pipeline.storage.inputs.file_names import (
    IMAGE_SUFFIXES,
    MANIFEST_SUFFIXES,
    PARQUET_SUFFIXES,
    SIDECAR_SUFFIXES,
    is_archive,
    kind_of,
    suffix_of,
)
from pipeline.storage.prefetch import map_ahead
from schemas.errors import InputError
from schemas.input_options import InputKind
from schemas.runs import say_kinds

_CLEAR_SHARE = 0.9
"""Share of the bytes of a clear kind: a cover picture beside shards, or a small table beside images, is under 10 %."""
_HELD_UNNAMED = 256
"""Number of files without extension whose first bytes show whether such files are the folder's images."""
_LOOK_THREADS = 16

Pile = Literal["images", "shards", "parquet", "manifest", "archives"]
_NAMES: dict[Pile, str] = {
    "images": "image",
    "shards": ".tar",
    "parquet": ".parquet",
    "manifest": "manifest",
    "archives": "compressed",
}
UNPACK = (
    "compressed archives are not read, because one image in them can't be fetched by itself; unpack them first"
    " (gunzip makes a .tar of a .tar.gz, which is read)"
)

LooksLikeImage = Callable[[Entry], bool]
"""A function that returns whether a file is an image, by its first bytes."""


@dataclass
class _Piles:
    """The files of a folder by kind: their amounts, and the containers."""

    entries: dict[Pile, list[Entry]] = field(default_factory=lambda: {pile: [] for pile in _NAMES})
    """The entries of each kind; of the images only the entries that are held back."""
    files: Counter[Pile] = field(default_factory=Counter)
    size_bytes: Counter[Pile] = field(default_factory=Counter)
    kinds: dict[Pile, Counter[str]] = field(default_factory=lambda: {pile: Counter() for pile in _NAMES})
    """The numbers of each pile's files by the kind under which they count when they are skipped."""

    def add(self, pile: Pile, entry: Entry) -> None:
        self.files[pile] += 1
        self.size_bytes[pile] += entry.size_bytes or 0
        self.kinds[pile][kind_of(entry.path)] += 1

    def skip_others(self, kind: Pile, skipped: Counter[str]) -> None:
        for pile, kinds in self.kinds.items():
            if pile != kind:
                skipped.update(kinds)


class Folder:
    """The files of a folder, prefix or glob, sorted by kind while they are listed."""

    def __init__(
        self,
        url: str,
        objects: Iterable[Entry],
        skipped: Counter[str],
        looks_like_image: LooksLikeImage | None,
        chosen: InputKind | None,
        most_held: int,
    ) -> None:
        """Store the arguments; nothing is read yet.

        ``url`` is the folder's name in messages. ``looks_like_image`` decides on files without extension; None for a
        glob, which lists every file that it matches. ``chosen`` is the user's ``--input-kind``. ``most_held`` images
        are held back until the folder's kind is known; the later images of a larger folder are streamed.
        """
        self._url, self._skipped, self._chosen, self._most_held = url, skipped, chosen, most_held
        self._is_glob = looks_like_image is None
        self._piles = _Piles()
        self._objects = iter(objects) if looks_like_image is None else self._named(objects, looks_like_image)

    def open(self) -> tuple[Pile, Iterator[Entry]]:
        """Return the folder's kind with its images, or with its containers in the order of their uris.

        Raises InputError, at once or while images are read, where nothing can be used or no kind is clear.
        """
        for entry in self._objects:
            self._sort(entry, hold=True)
            if len(self._piles.entries["images"]) >= self._most_held:
                break
        kind = self._chosen or self._decide()
        if kind == "images":
            return kind, self._images()
        for entry in self._objects:
            self._sort(entry, hold=False)
        kind = self._chosen or self._decide()
        if not self._piles.files[kind]:
            raise InputError(self._nothing_usable())
        self._piles.skip_others(kind, self._skipped)
        return kind, iter(sorted(self._piles.entries[kind]))

    def _sort(self, entry: Entry, *, hold: bool) -> Pile | None:
        """Count an entry, keep it where it is to be kept, and return its kind; None for one that is skipped."""
        pile = self._pile_of(entry)
        if pile is None:
            self._skipped[kind_of(entry.path)] += 1
            return None
        self._piles.add(pile, entry)
        if hold or pile != "images":
            self._piles.entries[pile].append(entry)
        return pile

    def _pile_of(self, entry: Entry) -> Pile | None:
        suffix = suffix_of(entry.path)
        if suffix in IMAGE_SUFFIXES:  # nearly all of a large folder's files
            return "images"
        if self._chosen == "manifest" and suffix in MANIFEST_SUFFIXES:
            return "manifest"
        if suffix == ".tar":
            return "shards"
        if suffix in PARQUET_SUFFIXES:
            return "parquet"
        if is_archive(entry.path):
            return "archives"
        return None if suffix in SIDECAR_SUFFIXES and not self._is_glob else "images"

    def _images(self) -> Iterator[Entry]:
        """Yield the images; raises InputError, at the end at the latest, where images are not the clear kind."""
        held = self._piles.entries["images"]
        if not held:
            raise InputError(self._nothing_usable())
        return self._stream(held)

    def _stream(self, held: list[Entry]) -> Iterator[Entry]:
        yield from held
        for entry in self._objects:
            if self._sort(entry, hold=False) == "images":
                yield entry
        if not self._chosen and (kind := self._decide()) != "images":
            raise InputError(self._unclear(["images", kind]))
        self._piles.skip_others("images", self._skipped)

    def _decide(self) -> Pile:
        """Return the kind with nearly all bytes; raises InputError where no kind has, or where no file is usable."""
        files, sizes = self._piles.files, self._piles.size_bytes
        present: list[Pile] = [pile for pile in _NAMES if files[pile] and pile != "archives"]
        if not present:
            raise InputError(self._nothing_usable())
        if sizes["archives"] > _CLEAR_SHARE * sizes.total():
            raise InputError(f"{self._unclear([*present, 'archives'])}; {UNPACK}")
        size_bytes = sum(sizes[pile] for pile in present)
        if len(present) == 1 or (not size_bytes and "images" in present):
            return present[0]
        largest = max(present, key=lambda pile: sizes[pile])
        if sizes[largest] <= _CLEAR_SHARE * size_bytes:
            raise InputError(self._unclear(present))
        return largest

    def _unclear(self, present: list[Pile]) -> str:
        names = " and ".join(_NAMES[pile] for pile in present)
        sizes = ", ".join(f"{self._piles.size_bytes[pile]:,}" for pile in present)
        options = " or ".join(f"--input-kind {pile}" for pile in present if pile != "archives")
        example = f"{self._url.rstrip('/')}/**/*{'.jpg' if present[0] == 'images' else _NAMES[present[0]]}"
        return f"{self._url} holds both {names} files ({sizes} bytes); choose by {options}, or name one kind: {example}"

    def _nothing_usable(self) -> str:
        for kinds in self._piles.kinds.values():
            self._skipped.update(kinds)
        wanted = f"{self._chosen} input" if self._chosen and self._chosen != "images" else "images"
        if not self._skipped:
            return f"no {wanted} at {self._url}: it is empty"
        hint = f"; {UNPACK}" if self._piles.files["archives"] else "; a manifest must be named itself"
        return f"no {wanted} at {self._url}: only {say_kinds(self._skipped)} files{hint}"

    def _named(self, objects: Iterable[Entry], looks_like_image: LooksLikeImage) -> Iterator[Entry]:
        """Leave out files without extension, such as a LICENSE, unless they are images by their first bytes.

        Where most of the first _HELD_UNNAMED ones are images, all are taken: a damaged one becomes a rejected input.
        """
        held: list[Entry] = []
        are_images = False
        looked = False
        for entry in objects:
            if suffix_of(entry.path) or are_images:
                yield entry
                continue
            held.append(entry)
            if len(held) == _HELD_UNNAMED:
                are_images = yield from self._look(held, looks_like_image, all_alike=not looked)
                looked, held = True, []
        yield from self._look(held, looks_like_image, all_alike=not looked)

    def _look(
        self, held: list[Entry], looks_like_image: LooksLikeImage, *, all_alike: bool
    ) -> Generator[Entry, None, bool]:
        seen = list(map_ahead(looks_like_image, held, _LOOK_THREADS))
        most = all_alike and 2 * sum(seen) > len(seen)
        for entry, is_image in zip(held, seen, strict=True):
            if is_image or most:
                yield entry
            else:
                self._skipped[kind_of(entry.path)] += 1
        return most
