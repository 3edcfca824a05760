"""A reader that knows nothing of camlake: it globs the Parquet files of an output all the while, and reads them."""

import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

TABLES = ("images", "quarantine", "boxes", "features")
"""``images`` is listed first, so that the rows of all its images are there when the others are listed."""
_PAUSE_S = 0.1


class GlobReader:
    """Looks at an output again and again in a thread; ``wrong`` has what it should never have seen."""

    def __init__(self, fs: AbstractFileSystem, root: str) -> None:
        self._fs, self._root = fs, root
        self._files: dict[str, pa.Table] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_until_ended, name="glob-reader", daemon=True)
        self.looks = self.moved = 0
        """Looks that found files, and those whose files went before they were read: such a reader globs again."""
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _look_until_ended(self) -> None:
        try:
            while not self._ended.is_set():
                self.look()
                time.sleep(_PAUSE_S)
        except Exception as error:  # It would end this thread in silence.
            self.wrong.append(f"the reader ended: {type(error).__name__}: {error}")

    def look(self) -> None:
        """Read all files that a glob finds now, and note what is twice, half or in parts."""
        listed = {table: self._glob(table) for table in TABLES}
        if not listed["images"]:
            return
        rows = {}
        for table, paths in listed.items():
            read = [self._read(path) for path in paths]
            rows[table] = [one for one in read if one is not None]
        self.looks += 1
        if not set(listed["images"]) <= set(self._glob("images")) or any(
            len(rows[table]) < len(listed[table]) for table in TABLES
        ):
            self.moved += 1
            return
        ids = {table: Counter(_column(rows[table], "image_id")) for table in TABLES}
        endings = ids["images"] + Counter(_rejected_for_good(rows["quarantine"]))
        self.wrong += [f"twice: {image_id}" for image_id, times in endings.items() if times > 1]
        boxes = dict(zip(_column(rows["images"], "image_id"), _column(rows["images"], "n_boxes"), strict=True))
        for image_id, n_boxes in boxes.items():
            if (ids["boxes"][image_id], ids["features"][image_id]) != (n_boxes, 1):
                self.wrong.append(f"half: {image_id}")

    def _glob(self, table: str) -> list[str]:
        self._fs.invalidate_cache()
        return [path for path in self._fs.find(f"{self._root}/{table}") if path.endswith(".parquet")]

    def _read(self, path: str) -> pa.Table | None:
        """Return the rows of a file, whose name never has other rows; None where it was removed by now."""
        if path not in self._files:
            try:
                self._files[path] = pq.read_table(pa.BufferReader(self._fs.cat_file(path)))
            except FileNotFoundError:
                return None
            except pa.ArrowException as error:
                self.wrong.append(f"half a file: {path}: {error}")
                return None
        return self._files[path]


def _rejected_for_good(quarantine: list[pa.Table]) -> list:
    """Return the images that no later run tries again: any other may be in quarantine often, and end in images."""
    return _column([table.filter(table["permanent"]) for table in quarantine], "image_id")


def _column(tables: list[pa.Table], name: str) -> list:
    return [value for table in tables for value in table[name].to_pylist()]
