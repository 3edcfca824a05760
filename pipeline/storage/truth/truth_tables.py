"""Tables of a truth or of classes, read as people write them: CSV, TSV or Parquet."""

import io
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.inputs.file_names import PARQUET_SUFFIXES
from pipeline.storage.names import ColumnError, first_column, image_column
from pipeline.storage.store_failures import describe_failure
from schemas.errors import UsageError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset(_SEPARATORS) | PARQUET_SUFFIXES


def read_frame(content: bytes, suffix: str, where: str) -> pd.DataFrame:
    """Return the rows of a table whose name ends with ``suffix``, one of TABLE_SUFFIXES.

    Cells of a text file are texts. Raises UsageError, which begins with ``where``, for what is no such table.
    """
    try:
        if suffix in PARQUET_SUFFIXES:
            frame: pd.DataFrame = pq.read_table(io.BytesIO(content)).to_pandas()
            return frame
        return pd.read_csv(io.BytesIO(content), sep=_SEPARATORS[suffix], dtype=str, keep_default_na=False)
    except (ValueError, pa.ArrowException, OSError) as error:
        raise UsageError(f"{where}: can't be read as {suffix[1:]}: {describe_failure(error)}") from error


class TruthTable:
    """The columns of a table that names images and what is on them, whatever the case of their names."""

    def __init__(self, frame: pd.DataFrame, where: str) -> None:
        """Take a table; ``where`` is what messages begin with."""
        self.frame, self._where = frame, where
        self._names = [str(name) for name in frame.columns]

    def images(self) -> "pd.Series[Any]":
        """Return the column that names images; raises UsageError where none does, or several."""
        try:
            return self._column(image_column(self._names))
        except ColumnError as error:
            raise UsageError(f"{self._where}: {error}") from error

    def first(self, *wanted: tuple[str, ...]) -> tuple[str, "pd.Series[Any]"]:
        """Return the first column with a wanted name, in lower case, and its cells; raises UsageError for none."""
        try:
            name = first_column(self._names, *wanted)
        except ColumnError as error:
            raise UsageError(f"{self._where}: {error}") from error
        return name.strip().lower(), self._column(name)

    def _column(self, name: str) -> "pd.Series[Any]":
        return self.frame.iloc[:, self._names.index(name)]
