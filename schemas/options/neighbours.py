"""The configuration of ``camlake neighbours``."""

from typing import Self

from pydantic import model_validator

from schemas.options.config import StorageConfig, option, required
from schemas.url_secrets import safe_url

SUFFIXES = (".parquet", ".csv")


class NeighboursConfig(StorageConfig):
    """The options of ``camlake neighbours``."""

    out: str = required("An output of `camlake annotate` with features: any fsspec URL")
    of: str | None = option(None, "uri, its end after a /, or image_id of an image: its nearest ones", "Options")
    duplicates: bool = option(False, "all pairs of near duplicates, whose cosine is at least --least", "Options")
    count: int = option(10, "of: how many", "Options", ge=1, le=10_000)
    least: float = option(0.95, "duplicates: least cosine of two feature vectors", "Options", gt=0, le=1)
    index: bool = option(
        False,
        "duplicates: by an index (pip install 'camlake[index]'), for more than 1,000,000 images; may miss some pairs",
        "Options",
    )
    table: str | None = option(None, "where all rows go: *.parquet or *.csv; the first are printed", "Options")
    model: str | None = option(None, "which model's features; default: the newest run's", "Options")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.of is None) != self.duplicates:
            raise ValueError("camlake neighbours: needs one of --of and --duplicates")
        strange = {"least", "index"} if self.of else {"count"}
        if given := sorted(strange & self.model_fields_set):
            raise ValueError(f"--{given[0]}: not an option with {'--of' if self.of else '--duplicates'}")
        if self.table and not self.table.endswith(SUFFIXES):
            raise ValueError(f"--table {safe_url(self.table)}: allowed: a {' or '.join(SUFFIXES)} file")
        return self
